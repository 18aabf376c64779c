"""Samples in memory: images of a split, and the pools of paired and unpaired samples that training draws from."""
