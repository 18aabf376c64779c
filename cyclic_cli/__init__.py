"""`cyclic` learns joint representations of medical images and reports by cycle consistency.

Use it from the shell (`cyclic --help`), or through its task modules such as `cyclic_cli.prepare.task` and
`cyclic_cli.training.task`. Importing `cyclic_cli` loads none of them, so that `cyclic --help` stays fast.
"""
