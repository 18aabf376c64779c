"""Objectives: one file each, found by its name.

An objective file has

    NEEDS        the names it reads of a model's outputs
    PER_SAMPLE   True when the loss is the mean over the samples of a function of each sample alone: the losses of
                 micro-batches, weighted by their sizes, then add up to the loss of the whole batch
    PAIRS_ONLY   optional: True when values without a partner add nothing: batches for such objectives alone have none
    NEEDS_PAIRS  optional: True when it is nothing in a batch without any pair, as all of those are
    JOINT        optional: False when joint models lack what it looks at, which is more than their outputs' names say
    def loss(outputs, batch, *, ...) -> Tensor

which returns a scalar; keywords with defaults are its settings. Of an autoencoder, `outputs` are its tensors and
`batch["image"]` (N, C, H, W), in [0, 1], is what it was shown. Of a joint model, `outputs` are those of
`joint.OUTPUTS`, by modality or by (from, to), and `batch` tells what belongs together:

    batch["sample"]    by modality (N,): equal numbers are one sample, `mixing.UNPAIRED` knows no partner
    batch["content"]   by modality (N,): equal numbers are equal values, such as a report that others repeat
    batch["step"]      the step's number, to draw random numbers from

A model names the objectives it is trained with, and their weights, in its `OBJECTIVES`; `--objective` names a mixture
for joint models (`config.PRESETS`); a run mixes others with `--set 'objectives={reconstruction: 1, similarity: 0.1}'`.
"""
