"""Metrics of reconstructions, retrieval, embeddings (probes) and generated text."""
