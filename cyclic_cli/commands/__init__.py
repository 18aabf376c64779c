"""Commands: one file each, found by its name; each is a function of that name.

What is typed becomes plain values for a task, its summary JSON or a table. Nothing heavy is imported at the top of a
file; a command imports its task when it runs, so that `--help` is instant.
"""
