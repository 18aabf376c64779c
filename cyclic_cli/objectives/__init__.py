"""Objectives: one file each, found by its name.

An objective file has `NEEDS`, the names it reads of a model's outputs, and

    def loss(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor

which returns a scalar, the mean over the samples of the batch. `batch["image"]` (N, C, H, W), in [0, 1], is
what the model was shown. A model names the objectives it is trained with, and their weights, in its `OBJECTIVES`.
"""
