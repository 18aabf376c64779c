"""Architectures: one file each, found by its name. Files that begin with an underscore are shared code.

A model file has

    @dataclass(frozen=True, kw_only=True)
    class Config                its own settings, plain types with defaults
    OUTPUTS                     the names that `forward` returns, at least "reconstruction" and "code"
    OBJECTIVES                  objectives, by file name, and their weights: what autoencoding means for it
    RECIPE                      training defaults: lr (peak), batch_size, weight_decay, warmup (share of steps), and
                                where it has them augment (strength) and fitted_lr (share of lr for FITTED)
    FITTED                      optional: the parts of the model, by attribute, whose start is a fitted optimum
    class Model(nn.Module)      made from (config, (channels, height, width)); ValueError when impossible

and its Model, for float images (N, C, H, W) in [0, 1],

    initialise(images)          the data-dependent start, from one pass over batches of images in random
                                order; draws from torch's global generator and from nothing else
    encode(image)               the code, (N, D) or (N, C, h, w); deterministic
    decode(code)                the reconstruction (N, C, H, W), nominally in [0, 1]
    forward(image)              a dictionary of OUTPUTS. With "log_variance" among them the model is
                                variational and takes `forward(image, noise=None)`: standard normal noise
                                (N, D) draws the code, without noise the code is the mean

What a model makes of an image depends on no other image of the batch: no model has batch statistics.
"""
