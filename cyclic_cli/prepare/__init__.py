"""Makes a dataset from image files and reports (`cyclic prepare`). Nothing here imports torch."""
