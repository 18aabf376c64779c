"""Sums of outer products of paired codes. They stream, add up over processes, and do not grow with the pairs.

`Pairs` are the known pairs of all processes, of which each holds the codes of its own.

The sums without a fold are the sums of all pairs minus those of the fold, so folds need no second pass over the data.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from cyclic_cli.codes.exchange import ALONE, Exchange, rows_of_all

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

    def __sub__(self, other: Moments) -> Moments:
        """Without pairs that were added before."""
        return self._with(self.count - other.count, self.sums - other.sums, self.products - other.products)

    def joined(self, other: Moments) -> Moments:
        """Together with other pairs."""
        return self._with(self.count + other.count, self.sums + other.sums, self.products + other.products)

    def _with(self, count: int, sums: np.ndarray, products: np.ndarray) -> Moments:
        moments = Moments.__new__(Moments)
        moments.images, moments.texts = self.images, self.texts
        moments.count, moments.sums, moments.products = count, sums, products
        return moments

    @classmethod
    def from_covariances(
        cls, count: int, means: tuple[np.ndarray, np.ndarray], covariances: tuple[np.ndarray, np.ndarray, np.ndarray]
    ) -> Moments:
        """The moments of `count` pairs with the given `means` and `covariances`, see the methods of these names."""
        mean = np.concatenate(means)
        images, texts, cross = covariances
        both = np.block([[images, cross], [cross.T, texts]]) + np.outer(mean, mean)
        return cls(len(images), len(texts))._with(count, count * mean, count * both)

    def mixed(self, other: Moments, share: float) -> Moments:
        """Moments whose means and covariances are weighted means: those of `other` have the weight `share` in [0, 1].

        A difference between the means of the two adds nothing to the covariances.
        """
        own, others = (self.means(), self.covariances()), (other.means(), other.covariances())
        means, covariances = (
            tuple((1 - share) * a + share * b for a, b in zip(first, second, strict=True))
            for first, second in zip(own, others, strict=True)
        )
        return Moments.from_covariances(self.count, means, covariances)  # type: ignore[arg-type]

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

    def added(self, ranks: Exchange) -> Moments:
        """The moments of the pairs of all processes, in all processes."""
        count = round(float(ranks.added(np.array([float(self.count)]))[0]))
        return self._with(count, ranks.added(self.sums), ranks.added(self.products))


class Pairs:
    """The codes of the known pairs. Each process has those of its share, and all call the methods together."""

    def __init__(self, images: Rows, texts: Rows, places: np.ndarray | None = None, ranks: Exchange = ALONE) -> None:
        """
        Args:
            images: (n, P) image codes of the pairs of this process.
            texts: (n, Q) text codes of the same samples.
            places: (n,) the places of these pairs among all known pairs, rising; None: they are all pairs.
            ranks: The processes.
        """
        self._images, self._texts, self._ranks = images, texts, ranks
        self._places = np.arange(len(images)) if places is None else places

    def moments(self, rows: np.ndarray | None = None) -> Moments:
        """Of all pairs, or of those at the places `rows` (M,), rising."""
        own = None if rows is None else np.flatnonzero(np.isin(self._places, rows))
        return Moments.of(self._images, self._texts, own).added(self._ranks)

    def codes(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The image codes (M, P) and text codes (M, Q) of the pairs at the places `rows` (M,), rising."""
        own = np.flatnonzero(np.isin(self._places, rows))
        places = np.searchsorted(rows, self._places[own])
        image, text = (
            rows_of_all(np.asarray(codes[own]), places, len(rows), self._ranks) for codes in (self._images, self._texts)
        )
        return image, text
