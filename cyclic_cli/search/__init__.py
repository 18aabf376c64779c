"""`cyclic search`: find the nearest cases in a file of embeddings."""
