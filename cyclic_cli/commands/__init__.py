"""The commands of the command line: one file and one function per command, with the name of the command.

A command turns its arguments into plain values for a task, and shows the summary of the task as a table or as JSON.
Heavy modules are imported inside the functions, so that `--help` stays fast.
"""
