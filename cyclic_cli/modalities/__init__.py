"""Modalities, one file each: the kinds of content that a sample can have, such as an image or a report.

A modality is known by the name of its file. A sample may have content in some modalities and none in others. To add a
modality, write a new file here that meets the contract below; nothing has to be registered. Training, the objectives,
evaluation and export work on all modalities of a model and on all pairs of them. For a complete small example see the
tabular modality in `tests/training/test_alignment.py`.

The file defines

    COLUMNS                     the columns of a dataset's `index` that the modality reads. Below, `index` maps these
                                names, and "sample" and "patient", to arrays (N,)
    @dataclass(frozen=True, kw_only=True)
    class Config                the settings of the modality: plain types, each with a default
    def present(index)          returns (N,) bool: which samples have content in this modality
    def fit(dataset, index, config)
                                returns the facts that `Samples` and `Encoder` need, such as a tokenizer, learned from
                                the training samples of `index`. Facts are plain types (JSON), because the checkpoint
                                stores them. They must not depend on which content is paired with which
    class Samples               the content of some samples of a dataset
    class Encoder(nn.Module)    the encoder and the decoder of the content

and may define

    def portable(config)        returns the settings as the checkpoint stores them: without those that name a place on
                                this machine
    def inputs_of(content)      returns the inputs of an exported encoder for content as `Samples.load` returns it: by
                                name, a tensor and its dimensions of any length, such as
                                {"input_ids": (tokens, {0: "batch", 1: "length"})}. Without it there is one input with
                                the name of the modality
    def value_of(*inputs)       needed with `inputs_of`: returns the content for the input tensors

`Samples(dataset, index, config, facts)`, where `index` holds only samples with content in this modality, has

    len(samples)                the number of samples, N
    keys                        (N,) uint64: a number per sample that seeds its random augmentations
    load(chosen)                returns the content of the samples with the numbers `chosen` (M,), each below N, as a
                                tensor (M, ...)
    augmented(content, keys, seed, epoch)
                                returns the content (M, ...) as training reads it. Random numbers depend only on
                                the seed, the epoch and the keys (M,)

`Encoder(config, facts)` has

    code                        the number of dimensions of its code
    fitted                      whether `initialise` sets the encoder to a closed-form solution for the training data.
                                If so, unpaired samples send no gradient into it (see `models/_joint.py`)
    initialise(contents)        initialises the weights from the training data, in one pass over batches of content in
                                random order
    encode(content)             returns codes (N, code) of content as `Samples.load` or `soft_decode` returns it
    decode(code)                returns the predicted content
    errors(code, content)       returns errors (N,) of the predictions, relative to the error of the mean predictor,
                                which predicts the same for all samples and has the error 1
    soft_decode(code)           returns predicted content in a form that `encode` accepts and that passes gradients on.
                                Cycles encode it again

The result for a sample must not depend on the other samples of the batch.
"""
