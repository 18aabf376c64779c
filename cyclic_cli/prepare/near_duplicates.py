"""Finds images that look nearly the same, by comparing perceptual hashes.

The hash is a difference hash of 256 bits. The image is reduced to 17 × 16 cells, and each bit says whether the image
becomes brighter from one cell to the next in its row. Copies that are scaled, compressed again or slightly edited share
nearly all bits.
"""

from collections.abc import Iterable

import numpy as np
from PIL import Image

CELLS = 16  # cells per side
BANDS = 8  # bands of 32 bits: two hashes that differ in fewer bits than there are bands agree in at least one band
NEAR = BANDS - 1  # largest number of bits in which near duplicates differ
NEIGHBOURS = 4  # hashes with an equal band that each hash is compared with; bounds the pairs among many equal images


def perceptual_hash(image: np.ndarray) -> str:
    """The perceptual hash of an image (H, W), uint8 or uint16.

    Returns:
        64 hexadecimal digits; an empty string when no bit is set, as for a uniform image.
    """
    small = Image.fromarray((image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image)
    cells = np.asarray(small.resize((CELLS + 1, CELLS), Image.Resampling.BOX), dtype=np.int16)
    bits = cells[:, 1:] > cells[:, :-1]
    return np.packbits(bits).tobytes().hex() if bits.any() else ""


def near_duplicates(hashes: Iterable[tuple[int, str]]) -> list[tuple[int, int, int]]:
    """Pairs of images whose hashes differ in at most `NEAR` bits.

    Args:
        hashes: Number and hash of every image. Empty hashes are ignored.

    Returns:
        Triples, sorted by the order of the images: the numbers of the two images, and the number of bits that differ.
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
