"""Reads and writes all files of this program: datasets, checkpoints, runs, embeddings and ONNX models.

No other room knows these formats.
"""
