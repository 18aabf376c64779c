"""`cyclic prepare`: files and reports become a dataset. Nothing here loads torch."""
