"""`cyclic`: joint image and text representations of diagnostic images, learned by cycle consistency.

The package is used from the shell (`cyclic --help`) or through its task modules: `prepare`, `training`,
`inference`. Importing `cyclic_cli` loads nothing else, so that `cyclic --help` stays instant.
"""
