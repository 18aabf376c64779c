"""Figures: reconstruction error, retrieval, probes, generated text."""
