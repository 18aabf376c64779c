"""Objectives: one file each, found by its name.

An objective file has

    NEEDS        the names it reads of a model's outputs
    PER_SAMPLE   True when the loss is the mean over the samples of a function of each sample alone: the losses of
                 micro-batches, weighted by their sizes, then add up to the loss of the whole batch
    def loss(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor

which returns a scalar, the mean over the samples of the batch. `batch["image"]` (N, C, H, W), in [0, 1], is
what the model was shown. A model names the objectives it is trained with, and their weights, in its `OBJECTIVES`;
a run mixes others with `--set 'objectives={reconstruction: 1, similarity: 0.1}'`.
"""
