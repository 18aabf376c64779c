"""Sums of outer products of paired codes. They stream, add up over processes, and do not grow with the pairs.

The sums without a fold are the sums of all pairs minus those of the fold, so folds need no second pass over the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

ROWS = 4096  # pairs that are converted to float64 at the same time


class Rows(Protocol):
    """Codes (N, P) float32: an array, a memory map, or anything else that gives the rows (M,) asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


class Moments:
    """Number, sums and outer products, all float64, of pairs of an image code (P,) and a text code (Q,)."""

    def __init__(self, images: int, texts: int) -> None:
        """`images` is P, `texts` is Q."""
        self.images, self.texts = images, texts
        self.count = 0
        self.sums = np.zeros(images + texts)  # of both codes of a pair, one after the other
        self.products = np.zeros((images + texts, images + texts))

    @classmethod
    def of(cls, images: Rows, texts: Rows, rows: np.ndarray | None = None) -> Moments:
        """Of image codes (N, P) and text codes (N, Q) whose rows are pairs, or of some `rows` (M,) of them."""
        moments = cls(images.shape[1], texts.shape[1])
        total = len(images) if rows is None else len(rows)
        for first in range(0, total, ROWS):
            block = slice(first, min(first + ROWS, total)) if rows is None else rows[first : first + ROWS]
            moments.add(images[block], texts[block])
        return moments

    def add(self, images: np.ndarray, texts: np.ndarray) -> None:
        """Add the pairs of image codes (N, P) and text codes (N, Q)."""
        for first in range(0, len(images), ROWS):
            block = slice(first, first + ROWS)
            both = np.concatenate([images[block], texts[block]], axis=1, dtype=np.float64)
            self.count += len(both)
            self.sums += both.sum(axis=0)
            self.products += both.T @ both

    def __add__(self, other: Moments) -> Moments:
        return self._with(self.count + other.count, self.sums + other.sums, self.products + other.products)

    def __sub__(self, other: Moments) -> Moments:
        """Without pairs that were added before."""
        return self._with(self.count - other.count, self.sums - other.sums, self.products - other.products)

    def _with(self, count: int, sums: np.ndarray, products: np.ndarray) -> Moments:
        moments = Moments.__new__(Moments)
        moments.images, moments.texts = self.images, self.texts
        moments.count, moments.sums, moments.products = count, sums, products
        return moments

    def select(self, images: np.ndarray, texts: np.ndarray) -> Moments:
        """Of some columns of the image codes (p,) and of the text codes (q,)."""
        both = np.concatenate([images, self.images + texts])
        moments = self._with(self.count, self.sums[both], self.products[np.ix_(both, both)])
        moments.images, moments.texts = len(images), len(texts)
        return moments

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """The means (P,) and (Q,)."""
        mean = self.sums / max(1, self.count)
        return mean[: self.images], mean[self.images :]

    def covariances(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Covariances of the image codes (P, P), of the text codes (Q, Q), and between them (P, Q); divided by N."""
        mean = self.sums / max(1, self.count)
        both = self.products / max(1, self.count) - np.outer(mean, mean)
        cut = self.images
        return both[:cut, :cut], both[cut:, cut:], both[:cut, cut:]

    # ------------------------------------------------------------------------------------ several processes

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays that may be added up over processes: count (1,), sums (P + Q,), products (P + Q, P + Q); float64."""
        return {"count": np.array([float(self.count)]), "sums": self.sums, "products": self.products}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], images: int) -> Moments:
        """The moments behind the arrays of one process, or behind the added arrays of several. `images` is P."""
        moments = cls.__new__(cls)
        moments.images, moments.texts = images, len(arrays["sums"]) - images
        moments.count = round(float(arrays["count"][0]))
        moments.sums, moments.products = arrays["sums"], arrays["products"]
        return moments
