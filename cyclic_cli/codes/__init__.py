"""Codes: vectors that describe an image or a text, from encoders that stay as they are.

A code is a concatenation of parts. A part is features, either of a pretrained encoder or computed cheaply from the
content, that principal components analysis (PCA) reduces, scaled to a total variance of one. What is fitted is fitted
on training samples alone. On codes, the room `alignment` compares images with texts.

    image_features.py    cheap features of images: pixels, histograms of gradients
    terms.py             cheap features of texts: weights of their terms
    components.py        PCA from sums of outer products, which stream
    exchange.py          how processes add their sums
    text_reader.py       reads texts for their parts: terms, and tokens of pretrained encoders
    image_codes.py       the parts of an image's code, and how an image is drawn from it
    text_codes.py        the parts of a text's code, and the decoder that writes texts from codes
    sources.py           gives features: a pretrained encoder, a cheap function, terms
    cached_codes.py      the codes of many samples, from such features
    code_reader.py       the codes of batches, for a trained model
    coded.py             an encoder whose code is fixed, as a torch module

    contents.py          digests of images and texts
    cache.py             features of encoders, computed once: the call
    open_cache.py        the same for batches that come one after another
    cached_features.py   reads them row by row
    segments.py          the files of the cache
    cache_lock.py        which of them are in use
    cache_size.py        the limit of the cache; describes and removes it
"""
