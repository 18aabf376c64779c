"""Linear maps of image codes and text codes into common spaces, in closed form from the moments of their pairs.

A map is one or more blocks. A block maps both codes linearly into one space, where the similarity of an image and a
text is the cosine. The embedding is the concatenation of the L2-normalised blocks, each times its weight. The squared
weights add up to one, so the dot product of two embeddings is the weighted mean of the cosines.

    cca     one block: regularised canonical correlation analysis
    ridge   two blocks: regression of texts on images, in the space of the texts, and of images on texts
    both    three blocks: the mean of the similarities of cca and ridge
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cyclic_cli.alignment.moments import Moments, Rows
from cyclic_cli.linear_algebra import eigh
from cyclic_cli.metrics.retrieval import l2_normalised

VARIATES = 128  # most canonical variates
MODALITIES = ("image", "text")


@dataclass(frozen=True)
class Setting:
    """What a map leaves open. At least one of both maps is given; with both, their similarities are averaged."""

    cca: tuple[float, int] | None = None  # regularisation, relative to the mean variance of a code's entries; variates
    ridge: float | None = None  # regularisation, relative to the mean variance of the regressors

    @property
    def map(self) -> str:
        """cca, ridge or both."""
        return "both" if self.cca and self.ridge is not None else "cca" if self.cca else "ridge"


@dataclass(frozen=True)
class Block:
    """A common space of D dimensions, by modality."""

    mean: dict[str, np.ndarray]  # (P,) float32
    matrix: dict[str, np.ndarray]  # (P, D) float32: codes are mapped to (codes − mean) @ matrix
    weight: float

    def embed(self, modality: str, codes: np.ndarray) -> np.ndarray:
        """L2-normalised embeddings (N, D) float32 of codes (N, P), before the weight."""
        return l2_normalised((codes - self.mean[modality]) @ self.matrix[modality])


Blocks = tuple[Block, ...]


def embed(blocks: Blocks, modality: str, codes: np.ndarray) -> np.ndarray:
    """L2-normalised embeddings (N, D) float32 of codes (N, P) of a modality."""
    return np.concatenate([np.float32(one.weight) * one.embed(modality, codes) for one in blocks], axis=1)


class Factors:
    """Fits maps to the moments of pairs. All settings share one eigendecomposition of each covariance."""

    def __init__(self, moments: Moments, sides: Mapping[str, Side] | None = None) -> None:
        """`sides` are the decompositions of the covariances by modality, where they are known."""
        images, texts, cross = moments.covariances()
        sides = sides or {"image": Side(images), "text": Side(texts)}
        self._image, self._text = sides["image"], sides["text"]
        self._cross = self._image.vectors.T @ cross @ self._text.vectors
        self._mean = {name: mean.astype(np.float32) for name, mean in zip(MODALITIES, moments.means(), strict=True)}
        self._variates: dict[float, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def blocks(self, setting: Setting) -> Blocks:
        """The blocks of a setting."""
        found: list[Block] = []
        share = 1 / ((setting.cca is not None) + (setting.ridge is not None))
        if setting.cca:
            found.append(self.cca(*setting.cca, weight=share**0.5))
        if setting.ridge is not None:
            found += self.ridge(setting.ridge, weight=share**0.5)
        return tuple(found)

    def cca(self, regularisation: float, dims: int, weight: float = 1.0) -> Block:
        """Canonical correlation analysis with a ridge on both covariances (Vinod, Journal of Econometrics 1976).

        Each canonical variate is scaled by its correlation, as in Gong et al. (IJCV 2014), who use another power: the
        most correlated variates dominate the similarity. There are at most `dims` variates.
        """
        image, text, _ = self.variates(regularisation)
        return self._block(image[:, :dims], text[:, :dims], weight)

    def variates(self, regularisation: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Maps (P, K) and (Q, K) to the canonical variates scaled by their correlations, and the correlations (K,).

        The directions are the singular vectors of Cxx^-½ Cxy Cyy^-½, where Cxx and Cyy include the ridge.
        """
        if regularisation not in self._variates:
            x, y = self._image.whitened(regularisation), self._text.whitened(regularisation)
            inner = x[:, None] * self._cross * y  # the matrix above in the bases of eigenvectors
            # One factor comes from the smaller Gram matrix. The other one times its singular values needs no division.
            wide = inner.shape[0] < inner.shape[1]
            squares, vectors = eigh(inner @ inner.T if wide else inner.T @ inner)
            correlations = np.sqrt(np.maximum(squares[::-1][:VARIATES], 0))
            vectors = vectors[:, ::-1][:, :VARIATES]
            scaled = vectors * correlations
            left, right = (scaled, inner.T @ vectors) if wide else (inner @ vectors, scaled)
            maps = self._image.vectors @ (x[:, None] * left), self._text.vectors @ (y[:, None] * right)
            self._variates[regularisation] = *maps, correlations
        return self._variates[regularisation]

    def ridge(self, regularisation: float, weight: float = 1.0) -> list[Block]:
        """Ridge regression of text codes on image codes, and of image codes on text codes."""
        image_to_text, text_to_image = self.regressions(regularisation)
        half = weight * 0.5**0.5
        return [
            self._block(image_to_text, np.eye(len(text_to_image)), half),
            self._block(np.eye(len(image_to_text)), text_to_image, half),
        ]

    def regressions(self, regularisation: float) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (P, Q) of the text codes on the image codes, and (Q, P) of the image codes on the text codes."""
        x, y = self._image, self._text
        forward = x.vectors @ (x.inverse(regularisation)[:, None] * self._cross) @ y.vectors.T
        back = y.vectors @ (y.inverse(regularisation)[:, None] * self._cross.T) @ x.vectors.T
        return forward, back

    def _block(self, image: np.ndarray, text: np.ndarray, weight: float) -> Block:
        matrices = {"image": image.astype(np.float32), "text": text.astype(np.float32)}
        return Block(self._mean, matrices, weight)


class Side:
    """The eigendecomposition of the covariance (P, P) of one modality, without directions that are rounding errors."""

    def __init__(self, covariance: np.ndarray) -> None:
        values, vectors = eigh(covariance)
        spanned = values > max(values[-1], 0) * len(values) * 10 * np.finfo(np.float64).eps
        spanned[-1] = True  # of equal codes, one direction on which all is zero
        self._values, self.vectors = np.maximum(values[spanned], 0), vectors[:, spanned]
        self._unit = max(float(covariance.trace()), 0) / len(values)  # mean variance of the entries
        self._least = 1e-12 + 1e-9 * self._unit  # for a regularisation of zero, and for equal codes

    def _ridged(self, regularisation: float) -> np.ndarray:
        return self._values + regularisation * self._unit + self._least

    def whitened(self, regularisation: float) -> np.ndarray:
        """The factor of each direction that gives it a variance of one with the ridge."""
        return 1 / np.sqrt(self._ridged(regularisation))

    def inverse(self, regularisation: float) -> np.ndarray:
        return 1 / self._ridged(regularisation)


def fit_map(setting: Setting, images: Rows, texts: Rows) -> Blocks:
    """The blocks of a setting fitted to image codes (N, P) and text codes (N, Q) whose rows are pairs."""
    return Factors(Moments.of(images, texts)).blocks(setting)
