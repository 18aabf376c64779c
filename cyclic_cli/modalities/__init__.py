"""Modalities: what a sample may have or lack, such as an image or a report; one file each, found by its name.

Nothing else knows how many there are: objectives, evaluation and export work on all that a model has, and on all pairs
of them. A modality file has

    COLUMNS                     the columns of a dataset's index that it reads
    @dataclass(frozen=True, kw_only=True)
    class Config                its settings, plain types with defaults
    def present(index)          (N,) bool: which samples of an index have it; `index` maps COLUMNS to arrays (N,)
    def fit(dataset, index, config)     facts that its values and its encoder need, learned from the training samples of
                                `index`, such as a tokenizer: plain values, which travel in the checkpoint. They depend
                                on which values there are, and whose, never on which other values go with them
    def portable(config)        optional: the settings without those that name a place on this machine
    INPUTS                      optional: names of what an exported encoder takes, and by name its sides of any length,
                                as {"input": {0: "batch"}}; without it the one input is called as the modality
    def inputs_of(value)        with INPUTS: their tensors, of a value of `Samples.load`; and back again
    def value_of(*inputs)
    class Samples                the values of some samples of a dataset:
        __init__(dataset, index, config, facts)     `index` holds the COLUMNS, and `sample` and `patient`, of these
        __len__()
        keys                    (N,) uint64, which the random numbers of a value are drawn from
        load(chosen)            a tensor whose first dimension is that of `chosen` (M,), numbers below N
        varied(value, keys, seed, epoch)    the tensor as training sees it: augmented by (seed, epoch, key) alone
    class Encoder(nn.Module)      made from (config, facts): encodes a value to a code, and decodes it:
        code                    numbers in its code
        fitted                  whether its encoder starts from all values in closed form: then it learns from pairs
                                alone (see `joint`)
        initialise(values)      the start from the data, from one pass over batches of values in random order
        encode(value)           codes (N, code) of a value of `Samples.load`, or of one that `drawn` gave
        decode(code)            a prediction of values
        errors(code, value)     (N,): how far the prediction is from each value; 1 is the error of the best constant
        drawn(code)             values as the decoder would write them, for a cycle to encode again; the gradient
                                passes through them

What an encoder makes of a value depends on no other value of the batch.
"""
