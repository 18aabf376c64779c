"""An encoder of texts that counts how often it is asked, for tests of the cache of features."""

import hashlib
from pathlib import Path

import numpy as np

from cyclic_cli.codes.cache import FeatureCache
from cyclic_cli.codes.cached_features import CachedFeatures
from cyclic_cli.codes.contents import text_digests

DIMS = {"embedding": 24, "layer 6": 5}


class Encoder:
    """Gives a text features that depend on it alone, and counts how often it is asked."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.asked = texts, list[str]()
        self.digests = text_digests(texts)

    def __call__(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        some = [self.texts[number] for number in numbers]
        self.asked += some
        return {name: np.stack([expected(text, name) for text in some]) for name in DIMS}

    def run(self, cache: FeatureCache, key: str = "encoder", batch: int = 4) -> dict[str, CachedFeatures]:
        return cache.features(key, DIMS, self.digests, self, batch)


def expected(text: str, output: str) -> np.ndarray:
    """Features that float16 represents exactly."""
    seed = int.from_bytes(hashlib.sha256((output + text).encode()).digest()[:8], "little")
    return np.random.default_rng(seed).integers(-1000, 1000, DIMS[output]).astype(np.float32) / 16


def texts(count: int, first: int = 0) -> list[str]:
    """Different texts."""
    return [f"text {number}" for number in range(first, first + count)]


def check(features: dict[str, CachedFeatures], wanted: list[str]) -> None:
    """Fail if the features are not those of the texts, bit for bit."""
    for name, found in features.items():
        assert len(found) == len(wanted)
        assert found.dims == DIMS[name]
        rows = found.rows(np.arange(len(wanted)))
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, np.reshape([expected(text, name) for text in wanted], rows.shape))


def files(root: Path) -> list[Path]:
    """The segments of a cache."""
    return sorted(root.glob("*/*.safetensors"))
