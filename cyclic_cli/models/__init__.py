"""Architectures of image autoencoders, one file each. `--arch NAME` trains the architecture of `NAME.py`.

Files whose names begin with an underscore hold shared code and are not architectures. To add an architecture, write a
new file here that meets the contract below; nothing has to be registered. The tests over all architectures
(`tests/models`, `tests/training`) then run on it.

The file defines

    @dataclass(frozen=True, kw_only=True)
    class Config                the architecture's own settings: plain types, each with a default
    OUTPUTS                     names of the tensors that `forward` returns; at least "reconstruction" and "code"
    OBJECTIVES                  the loss of `--objective autoencode`: weights by objective (file names in `objectives/`)
    RECIPE                      training defaults: "lr" (peak learning rate), "batch_size", "weight_decay" and "warmup"
                                (fraction of the training steps). Optional: "augment" (strength of the augmentation) and
                                "fitted_lr" (learning rate of the parts in FITTED, as a fraction of "lr")
    FITTED                      optional: attribute names of the parts of the model that are initialised at a fitted
                                optimum. Such parts need a smaller learning rate, so RECIPE must then have "fitted_lr"
    class Model(nn.Module)

The model is made by `Model(config, (channels, height, width))`, which raises ValueError when the settings or the image
size are impossible. For float images (N, C, H, W) in [0, 1] it has the methods

    initialise(images)          initialises the weights from the training data, in one pass over batches of images in
                                random order. Random numbers come from torch's global generator only
    encode(image)               returns the code, (N, D) or (N, C, h, w); deterministic
    decode(code)                returns the reconstruction (N, C, H, W), nominally in [0, 1]
    forward(image)              returns a dictionary with the tensors named in OUTPUTS

An architecture may offer the setting `embedding`, the dimensions of a separate network that embeds images (see
`_embedding`). Its attribute `embedding` then holds the network, or None when the setting is 0. Otherwise the embedding
is the code.

A variational model lists "log_variance" in OUTPUTS and has `forward(image, noise=None)` instead. With standard normal
noise (N, D) the code is sampled; without noise the code is the mean.

The result for an image must not depend on the other images of the batch. Batch normalisation is therefore not allowed.
"""
