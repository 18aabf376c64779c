"""`cyclic search`: the nearest cases of a file of embeddings."""
