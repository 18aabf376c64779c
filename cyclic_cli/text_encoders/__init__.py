"""Text encoders: one file each, found by its name; `modalities/text.py` takes one of them. A file has

    @dataclass(frozen=True, kw_only=True)
    class Config                its settings, plain types with defaults
    GENERATES                   whether it can write sentences: then its Encoder has `generate`
    FITTED                      whether its encoder starts from all texts in closed form
    LOCAL                       optional: settings that name a place on this machine, which no checkpoint holds
    def fit(config)             optional: a vocabulary of its own, and further facts
    class Encoder(nn.Module)      made from (config, facts, vocabulary), the latter the number of tokens:
        code                    numbers in its code
        initialise(tokens)      the start from the data, from one pass over batches (N, L) of tokens
        encode(tokens)          codes (N, code) of tokens (N, L) int64, 0 behind their end, or of what `drawn` gave
        decode(code)            what the words of a text would be: see each encoder
        errors(code, tokens)    (N,): nats a token of the decoder's prediction, as a share of those of the tokens'
                                frequencies in the training texts
        drawn(code)             texts as the decoder would write them, in numbers that a gradient passes through
        generate(code, beams, length)   the tokens of texts (a list each) of codes (N, code), at most `length` of them

Tokens below 0 are hidden from `encode` and count in `errors` like all others.
"""
