"""Images that look nearly the same: a perceptual hash of each, and the pairs whose hashes are close.

The hash is a difference hash: 256 bits, each telling whether the image, shrunk to 17 × 16 cells, grows brighter from
one cell to the next. Scaled, re-encoded and slightly edited copies keep nearly all of them.
"""

from collections.abc import Iterable

import numpy as np
from PIL import Image

CELLS = 16  # of a side
BANDS = 8  # of 32 bits each: two hashes that differ in fewer bits than there are bands have one of them in common
NEAR = BANDS - 1  # bits
NEIGHBOURS = 4  # with which a hash is compared in a band: among very many equal ones not every pair is named


def perceptual_hash(image: np.ndarray) -> str:
    """The perceptual hash of an image (H, W), uint8 or uint16: 64 hexadecimal digits; empty where all is flat."""
    small = Image.fromarray((image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image)
    cells = np.asarray(small.resize((CELLS + 1, CELLS), Image.Resampling.BOX), dtype=np.int16)
    bits = cells[:, 1:] > cells[:, :-1]
    return np.packbits(bits).tobytes().hex() if bits.any() else ""


def near_duplicates(hashes: Iterable[tuple[int, str]]) -> list[tuple[int, int, int]]:
    """Pairs of images whose hashes differ in at most `NEAR` bits.

    Args:
        hashes: Number and hash of every image.

    Returns:
        The two numbers, in the order given, and the bits that differ; sorted.
    """
    numbers: list[int] = []
    content = bytearray()
    for number, digits in hashes:
        if digits:
            numbers.append(number)
            content += bytes.fromhex(digits)
    hashes = np.frombuffer(content, dtype=np.uint8).reshape(-1, CELLS * CELLS // 8)
    pairs: dict[tuple[int, int], int] = {}
    bands = np.ascontiguousarray(hashes).view("<u4").reshape(len(hashes), BANDS) if len(hashes) else hashes
    for band in range(BANDS if len(hashes) else 0):
        order = np.argsort(bands[:, band], kind="stable")
        for step in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            one, two = order[:-step], order[step:]
            same = bands[one, band] == bands[two, band]
            if not same.any():
                break
            one, two = one[same], two[same]
            distance = np.bitwise_count(hashes[one] ^ hashes[two]).sum(axis=1)
            for first, second, bits in zip(
                one[distance <= NEAR], two[distance <= NEAR], distance[distance <= NEAR], strict=True
            ):
                pairs[int(first), int(second)] = int(bits)
    return [(numbers[first], numbers[second], bits) for (first, second), bits in sorted(pairs.items())]
