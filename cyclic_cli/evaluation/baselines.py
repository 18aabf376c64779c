"""Baselines in closed form, which a trained model has to beat: codes of images and texts, and maps between the codes.

Codes are fitted on all training samples of their modality, maps on the paired ones. Images are taken apart twice, as
pixels and as histograms of gradient orientations, because principal components of pixels alone say little about what
an image shows. Both maps end in unit-norm embeddings whose dot product is the similarity.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np

from cyclic_cli.errors import CyclicError
from cyclic_cli.metrics.retrieval import first_hits, unit

CELLS = 8  # of a side
ORIENTATIONS = 8  # of half a turn
BATCH = 256  # images whose gradients are held at once
FOLDS = 5
STRENGTHS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # of the regularisation, in mean variances of a code
DIMS = (8, 16, 32, 64, 128)


class ImageCodes:
    """Principal components of pixels beside those of gradient histograms, each half of the total variance."""

    def __init__(self, dims: int = 128) -> None:
        """`dims` is how many components each of the two gives, where there are as many."""
        self.dims = dims

    def fit(self, images: np.ndarray) -> Self:
        """Learn from images (N, H, W) or (N, C, H, W), float 0–1, at least 16 pixels a side."""
        self._parts = [PrincipalComponents(self.dims).fit(part) for part in self._seen(images)]
        return self

    def transform(self, images: np.ndarray) -> np.ndarray:
        """Codes (N, at most 2 · dims) float32; their total variance is two on the images of `fit`."""
        parts = zip(self._parts, self._seen(images), strict=True)
        return np.concatenate([part.transform(values) for part, values in parts], axis=1)

    @staticmethod
    def _seen(images: np.ndarray) -> list[np.ndarray]:
        return [images, gradient_histograms(images)]


class PrincipalComponents:
    """The first principal components (randomised: Halko et al., SIAM Review 2011), of total variance one."""

    def __init__(self, dims: int) -> None:
        """`dims` is how many, where there are as many."""
        self.dims = dims

    def fit(self, values: np.ndarray) -> Self:
        """Learn from values (N, ...)."""
        from sklearn.decomposition import PCA

        flat = values.reshape(len(values), -1)
        self._pca = PCA(min(self.dims, *flat.shape), svd_solver="randomized", random_state=0).fit(flat)
        self._scale = float(np.sqrt(max(self._pca.explained_variance_.sum(), 1e-12)))
        return self

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Codes (M, at most dims) float32 of values (M, ...); their total variance is one on those of `fit`."""
        return np.asarray(self._pca.transform(values.reshape(len(values), -1)) / self._scale, dtype=np.float32)

    def mse(self, values: np.ndarray) -> float:
        """Mean squared error of values (M, ...) made from their components: the best of a linear code on `fit`'s."""
        flat = values.reshape(len(values), -1)
        return float(np.mean(np.square(flat - self._pca.inverse_transform(self._pca.transform(flat)))))


def gradient_histograms(images: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients (Dalal and Triggs, CVPR 2005) of images (N, H, W) or (N, C, H, W).

    Eight orientations in a grid of 8 × 8 cells, normalised to length one over every block of 2 × 2 cells:
    (N, 7 · 7 · 2 · 2 · 8) float32.
    """
    flat = images.reshape(len(images), -1, *images.shape[-2:])
    batches = [flat[first : first + BATCH].mean(axis=1, dtype=np.float32) for first in range(0, len(flat), BATCH)]
    return np.concatenate([_histograms(batch) for batch in batches])


def _histograms(images: np.ndarray) -> np.ndarray:
    down, across = np.zeros_like(images), np.zeros_like(images)
    down[:, 1:-1] = images[:, 2:] - images[:, :-2]
    across[:, :, 1:-1] = images[:, :, 2:] - images[:, :, :-2]
    length = np.hypot(down, across)
    turn = np.minimum((np.arctan2(down, across) % np.pi) * (ORIENTATIONS / np.pi), ORIENTATIONS - 1).astype(np.int8)
    rows, columns = (np.arange(CELLS) * side // CELLS for side in images.shape[1:])
    cells = np.stack(
        [
            np.add.reduceat(np.add.reduceat(length * (turn == bin_), rows, axis=1), columns, axis=2)
            for bin_ in range(ORIENTATIONS)
        ],
        axis=-1,
    )  # (N, 8, 8, orientations)
    cells /= np.diff(rows, append=images.shape[1])[:, None, None] * np.diff(columns, append=images.shape[2])[:, None]
    blocks = np.stack([cells[:, y : CELLS - 1 + y, x : CELLS - 1 + x] for y in (0, 1) for x in (0, 1)], axis=3)
    size = np.sqrt(np.square(blocks).sum(axis=(3, 4), keepdims=True) + 1e-10)
    return (blocks / size).reshape(len(images), -1)


class TextCodes:
    """Latent semantic analysis: truncated SVD of the TF-IDF of words and pairs of words, to total variance one."""

    def __init__(self, dims: int = 128) -> None:
        self.dims = dims

    def fit(self, texts: Sequence[str]) -> Self:
        """Learn from texts. Raises CyclicError when no two of them share a word."""
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        try:
            counts = self._words.fit_transform(texts)
        except ValueError:
            raise CyclicError("The training reports share no word.", "Evaluate without --baselines.") from None
        self._svd = TruncatedSVD(min(self.dims, *counts.shape), random_state=0).fit(counts)
        self._scale = float(np.sqrt(max(self._svd.explained_variance_.sum(), 1e-12)))
        return self

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        """Codes (N, at most dims) float32; their total variance is one on the texts of `fit`."""
        return np.asarray(self._svd.transform(self._words.transform(texts)) / self._scale, dtype=np.float32)


class Map(Protocol):
    """A map of image codes and text codes into one space."""

    def fit(self, images: np.ndarray, texts: np.ndarray) -> Self:
        """Learn from the codes (N, P) and (N, Q) of pairs."""

    def images(self, codes: np.ndarray) -> np.ndarray:
        """Embeddings (M, D) float32 of unit norm of image codes (M, P)."""

    def texts(self, codes: np.ndarray) -> np.ndarray:
        """Embeddings (M, D) float32 of unit norm of text codes (M, Q)."""


class RegularisedCCA:
    """Canonical correlation analysis with a ridge on both covariances (Vinod, Journal of Econometrics 1976).

    Each canonical variate is scaled by its correlation (as in Gong et al., IJCV 2014, with another power), which makes
    it a stronger baseline than variates of equal scale: similarity hangs on what the modalities share most surely.
    """

    def __init__(self, dims: int, regularisation: float) -> None:
        """`regularisation` is in mean variances of each code's numbers."""
        self.dims, self.regularisation = dims, regularisation

    def fit(self, images: np.ndarray, texts: np.ndarray) -> Self:
        """See `Map`. Directions of both sides: the SVD of Cxx^-½ Cxy Cyy^-½, C with its ridge."""
        self._means = images.mean(axis=0), texts.mean(axis=0)
        x, y = (codes.astype(np.float64) - mean for codes, mean in zip((images, texts), self._means, strict=True))
        whiten_x, whiten_y = (_inverse_root(_ridged(codes, self.regularisation)) for codes in (x, y))
        left, self.correlations, right = np.linalg.svd(whiten_x @ (x.T @ y / len(x)) @ whiten_y, full_matrices=False)
        self.correlations = self.correlations[: self.dims]
        self._maps = (
            whiten_x @ left[:, : self.dims] * self.correlations,
            whiten_y @ right[: self.dims].T * self.correlations,
        )
        return self

    def images(self, codes: np.ndarray) -> np.ndarray:
        return unit((codes - self._means[0]) @ self._maps[0])

    def texts(self, codes: np.ndarray) -> np.ndarray:
        return unit((codes - self._means[1]) @ self._maps[1])


class RidgeMaps:
    """Ridge regression of text codes on image codes and back; the similarity is the mean cosine in both spaces."""

    def __init__(self, regularisation: float) -> None:
        """`regularisation` is in mean variances of the regressors."""
        self.regularisation = regularisation

    def fit(self, images: np.ndarray, texts: np.ndarray) -> Self:
        """See `Map`."""
        self._means = images.mean(axis=0), texts.mean(axis=0)
        x, y = (codes.astype(np.float64) - mean for codes, mean in zip((images, texts), self._means, strict=True))
        self.there = np.linalg.solve(_ridged(x, self.regularisation), x.T @ y / len(x))  # image code → text code
        self.back = np.linalg.solve(_ridged(y, self.regularisation), y.T @ x / len(x))
        return self

    def images(self, codes: np.ndarray) -> np.ndarray:
        x = codes - self._means[0]
        return unit(np.concatenate([unit(x @ self.there), unit(x)], axis=1))

    def texts(self, codes: np.ndarray) -> np.ndarray:
        y = codes - self._means[1]
        return unit(np.concatenate([unit(y), unit(y @ self.back)], axis=1))


def _ridged(codes: np.ndarray, regularisation: float) -> np.ndarray:
    """The covariance (P, P) of centred codes (N, P), plus `regularisation` times its mean diagonal on the diagonal."""
    covariance = codes.T @ codes / len(codes)
    ridge = regularisation * covariance.trace() / len(covariance) + 1e-12  # so that constant codes can be inverted
    return np.asarray(covariance + ridge * np.eye(len(covariance)))


def _inverse_root(matrix: np.ndarray) -> np.ndarray:
    """M^-½ of a symmetric positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors / np.sqrt(np.maximum(values, 1e-15)) @ vectors.T)


def _candidates() -> dict[str, list[Map]]:
    """What `fit_map` chooses among."""
    return {
        "cca": [RegularisedCCA(dims, strength) for strength in STRENGTHS for dims in DIMS],
        "ridge": [RidgeMaps(strength) for strength in STRENGTHS],
    }


MAPS = tuple(_candidates())


def fit_map(name: str, images: np.ndarray, texts: np.ndarray, patients: np.ndarray) -> Map:
    """The map of a name of `MAPS` with the settings that find the partners of other patients best, fitted on all pairs.

    Args:
        name: cca or ridge.
        images: (N, P) image codes of paired training samples.
        texts: (N, Q) their text codes.
        patients: (N,) whom they are of. Settings are compared over five folds of patients, by the mean reciprocal
            rank of the own partner in both directions; for a single patient the strongest regularisation is taken.
    """
    from sklearn.model_selection import GroupKFold

    candidates = _candidates()[name]
    scores = np.zeros(len(candidates))
    folds = min(FOLDS, len(np.unique(patients)))
    for inner, held in GroupKFold(folds).split(images, groups=patients) if folds > 1 else ():
        for place, candidate in enumerate(candidates):
            candidate.fit(images[inner], texts[inner])
            scores[place] += len(held) * _reciprocal_rank(candidate.images(images[held]), candidate.texts(texts[held]))
    return candidates[int(scores.argmax())].fit(images, texts)


def _reciprocal_rank(images: np.ndarray, texts: np.ndarray) -> float:
    """Mean reciprocal rank of the own partner among paired embeddings (N, D), over both directions."""
    own = np.arange(len(images))
    return float(np.mean([1 / first_hits(*pair, own, own) for pair in ((images, texts), (texts, images))]))


def mean_image_mse(train: np.ndarray, test: np.ndarray) -> float:
    """Mean squared error of the mean training image as the answer to every test image, both (N, ...) in [0, 1]."""
    return float(np.mean(np.square(test - train.mean(axis=0, dtype=np.float64))))
