"""`cyclic train`: a dataset becomes a run."""
