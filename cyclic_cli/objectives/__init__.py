"""Objectives (loss functions), one file each. An objective is known by the name of its file.

Files whose names begin with an underscore hold shared code. To add an objective, write a new file here that meets the
contract below; nothing has to be registered. A model is trained with a weighted sum of objectives:

- an autoencoder with `OBJECTIVES` of its architecture's file,
- an encoder of images (`--objective views`) or an image–text model with the preset that `--objective` names (see
  `PRESETS` in the configuration),
- each with `--set 'objectives={reconstruction: 1, similarity: 0.1}'`.

The module docstring states in one sentence what the objective asks of the model, its formula, and the paper it comes
from. The file defines

    NEEDS        names of the outputs of the model that `loss` reads
    PER_SAMPLE   whether the loss is the mean over the samples of a function of each sample. The losses of
                 micro-batches, weighted by their sizes, then add up to the loss of the whole batch
    PAIRS_ONLY   optional, default False: unpaired samples contribute nothing, so the loss is zero in a batch without
                 any pair. When this holds for all objectives of a run, its batches have no unpaired samples
    JOINT        optional, default True: False when the objective is not for image–text models, although they have
                 outputs of the names in NEEDS
    def loss(outputs, batch, *, ...) -> Tensor

`loss` returns a scalar. Its keyword arguments with defaults are the settings of the objective. When there is nothing to
compare, such as a batch without pairs, it returns a zero that has a gradient (see `_pairs.mean`).

For an autoencoder, `outputs` are the tensors that its `forward` returns, and `batch["image"]` (N, C, H, W), in [0, 1],
holds the images that it was given. For `--objective views`, `outputs["projection"]` (N, V, D) holds the projections of
V views of N images, and `batch` is empty. For an image–text model, `outputs` are those of `OUTPUTS` in
`models/_joint.py`, with residual heads also those of `REFINED` in `models/_aligned.py`, by modality or by (from, to),
and `batch` holds

    batch["sample"]    by modality, (N,) sample numbers. Equal numbers are paired; `data.mixture.UNPAIRED` marks an
                       unpaired sample
    batch["content"]   by modality, (N,) hashes of the content. Equal hashes mean equal content, such as a report text
                       that occurs several times
"""
