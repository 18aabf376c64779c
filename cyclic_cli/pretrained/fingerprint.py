"""The fingerprint of a pretrained encoder: equal for equal weights and settings, however their files were written."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from torch import Tensor

from cyclic_cli.pretrained.encoder import EncoderFacts

DIGITS = 32
NOT_COUNTED = ("fingerprint", "licence", "family")  # names of an encoder, which do not change its features
LIBRARY = "library"  # the entry of the settings that names the version of the library that read the encoder


def fingerprint_of(facts: EncoderFacts, weights: Mapping[str, Tensor] | bytes) -> str:
    """Return the first 32 hexadecimal digits of the SHA-256 of the facts and the weights.

    Args:
        facts: Their own fingerprint, family and licence do not count: the family of an ONNX file is its name.
        weights: Tensors by name, whose order does not matter; or the content of an ONNX file.
    """
    described = {name: value for name, value in asdict(facts).items() if name not in NOT_COUNTED}
    described["settings"] = {name: value for name, value in facts.settings.items() if name != LIBRARY}
    plain = json.loads(json.dumps(described))  # as a file gives them back: the names in it are texts
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    if isinstance(weights, bytes):
        digest.update(weights)
        return digest.hexdigest()[:DIGITS]
    for name in sorted(weights):
        array = weights[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype.str} {np.atleast_1d(array).shape}".encode())  # files hold scalars as (1,)
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:DIGITS]
