"""Text encoders (each with its decoder), one file each. `modalities/text.py` uses the one that its settings name.

Files whose names begin with an underscore hold shared code. To add a text encoder, write a new file here that meets the
contract below; nothing has to be registered. `tests/text_encoders` then tests it.

Texts are token numbers (N, L), int64, where L is the same for all texts of a batch. `_vocabulary.PADDING` (0) follows
the end of a text. Negative tokens are hidden from `encode`, and count in `errors` like all others.

The file defines

    @dataclass(frozen=True, kw_only=True)
    class Config                the settings of the text encoder: plain types, each with a default
    GENERATES                   whether it can write sentences; its Encoder then has `generate`
    FITTED                      whether `initialise` sets its encoder to a closed-form solution for the training texts
    class Encoder(nn.Module)    the encoder and the decoder

and may define

    LOCAL                       names of settings that name a place on this machine; checkpoints do not store them
    def fit(config)             returns a vocabulary of its own (or None), and further facts (a dictionary of plain
                                types) for `Encoder`, where they are `facts["further"]`

`Encoder(config, facts, vocabulary)`, with the facts of `modalities.text.fit` and the number of tokens, has

    code                        the number of dimensions of its code
    initialise(tokens)          initialises the weights from the training data, in one pass over batches of texts
    encode(tokens)              returns codes (N, code) of texts, or of what `soft_decode` returned
    decode(code)                returns the predicted texts, in a form that each encoder documents
    errors(code, tokens)        returns (N,): the cross-entropy per token of the decoder's prediction, relative to
                                predicting the frequencies of the tokens in the training texts (`facts["nats"]`)
    soft_decode(code)           returns predicted texts in a form that `encode` accepts and that passes gradients on
    generate(code, beams, length)
                                returns generated texts, a list of at most `length` tokens for each code, by beam search

The result for a text must not depend on the other texts of the batch. `encode`, `errors` and `soft_decode` must draw no
random numbers.
"""
