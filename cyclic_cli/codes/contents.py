"""Digests of images and texts: equal contents have equal digests, and their features are computed once.

An image has the digest that `prepare` writes into the column `content` of a dataset's index: half of the SHA-256 of its
stored pixels. It has no salt, so that datasets with different salts share features. The cache stores digests only after
it has hashed them again with a key, see `cache`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from cyclic_cli.storage.dataset import StoredDataset

DIGEST = 16  # bytes
BLOCK = 256  # images that are read together


def image_digests(pixels: np.ndarray) -> list[bytes]:
    """The digests of images (N, C, H, W) uint8 or uint16, as a dataset stores them."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"pixels of {pixels.dtype}: only stored pixels have a digest")
    return [hashlib.sha256(image.tobytes()).digest()[:DIGEST] for image in pixels]


def text_digests(texts: Iterable[str]) -> list[bytes]:
    """The digests (BLAKE2b, RFC 7693) of texts."""
    return [hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=DIGEST).digest() for text in texts]


def stored_image_digests(dataset: StoredDataset, contents: Sequence[str | None], places: np.ndarray) -> list[bytes]:
    """The digests of images of a dataset. Images are read only where the index has none.

    Args:
        dataset: The dataset.
        contents: N values of the column `content`.
        places: (N, 2) integers, the shard and the row of each image.

    Raises:
        CyclicError: a shard is missing or damaged.
    """
    digests = [_digest_of(content) for content in contents]
    unknown = [number for number, digest in enumerate(digests) if digest is None]
    for some in _blocks(unknown):
        hashed = image_digests(dataset.images(places[some, 0], places[some, 1]))
        for number, digest in zip(some, hashed, strict=True):
            digests[number] = digest
    return [digest for digest in digests if digest is not None]


def _digest_of(content: str | None) -> bytes | None:
    try:
        digest = bytes.fromhex(content or "")
    except ValueError:
        return None
    return digest if len(digest) == DIGEST else None


def _blocks(numbers: list[int]) -> Iterator[list[int]]:
    for first in range(0, len(numbers), BLOCK):
        yield numbers[first : first + BLOCK]
