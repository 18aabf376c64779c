"""Baselines in closed form: codes of images and texts, and linear maps between the codes.

Codes are fitted on all training samples of their modality, maps on the paired samples. The code of an image joins
principal components of its pixels and of its histograms of gradient orientations, because the components of pixels
alone say little about the content of an image. Both maps give L2-normalised embeddings, whose dot product is the
similarity.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np

from cyclic_cli.errors import CyclicError
from cyclic_cli.linear_algebra import eigh, svd, truncated_svd
from cyclic_cli.metrics.retrieval import first_hits, l2_normalised

CELLS = 8  # per side of an image
ORIENTATIONS = 8  # bins between 0 and 180 degrees
LSA_ITERATIONS = 5  # power iterations for latent semantic analysis
BATCH = 256  # images whose gradients are in memory at the same time
FOLDS = 5
STRENGTHS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # of the regularisation, relative to the mean variance of a code's entries
DIMS = (8, 16, 32, 64, 128)


class ImageCodes:
    """Principal components of pixels and of gradient histograms. Each makes up half of the total variance."""

    def __init__(self, dims: int = 128) -> None:
        """`dims` is the number of components of each half. There are fewer where the data have a lower rank."""
        self.dims = dims

    def fit(self, images: np.ndarray) -> Self:
        """Learn from images (N, H, W) or (N, C, H, W), float in [0, 1], with at least 16 pixels per side."""
        self._parts = [PrincipalComponents(self.dims).fit(values) for values in self._features(images)]
        return self

    def transform(self, images: np.ndarray) -> np.ndarray:
        """Codes (N, at most 2 · dims) float32. Their total variance is 2 on the images of `fit`."""
        parts = zip(self._parts, self._features(images), strict=True)
        return np.concatenate([part.transform(values) for part, values in parts], axis=1)

    @staticmethod
    def _features(images: np.ndarray) -> list[np.ndarray]:
        return [images, gradient_histograms(images)]


class PrincipalComponents:
    """The first principal components, scaled to a total variance of 1 (randomised: Halko et al., SIAM Review 2011)."""

    def __init__(self, dims: int) -> None:
        """`dims` is the number of components. There are fewer where the data have a lower rank."""
        self.dims = dims

    def fit(self, values: np.ndarray) -> Self:
        """Learn from values (N, ...)."""
        flat = values.reshape(len(values), -1)
        self._mean = flat.mean(axis=0)
        spread, self._directions = truncated_svd(flat - self._mean, min(self.dims, *flat.shape))
        self.dims = len(spread)
        variance = float(np.square(spread).sum()) / max(1, len(flat) - 1)
        self._scale = float(np.sqrt(max(variance, 1e-12)))
        return self

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Codes (M, at most dims) float32 of values (M, ...). Their total variance is 1 on the values of `fit`."""
        return np.asarray(self._components(values.reshape(len(values), -1)) / self._scale, dtype=np.float32)

    def mse(self, values: np.ndarray) -> float:
        """Mean squared error of values (M, ...) reconstructed from their components.

        On the values of `fit`, no linear code of this size has a smaller error.
        """
        flat = values.reshape(len(values), -1)
        decoded = self._components(flat) @ self._directions + self._mean
        return float(np.mean(np.square(flat - decoded)))

    def _components(self, flat: np.ndarray) -> np.ndarray:
        """Principal components (M, K) of rows (M, P)."""
        return np.asarray((flat - self._mean) @ self._directions.T)


def gradient_histograms(images: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients (Dalal and Triggs, CVPR 2005) of images (N, H, W) or (N, C, H, W).

    Each of 8 × 8 cells has eight orientations. Every block of 2 × 2 cells is L2-normalised.

    Returns:
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
    """Latent semantic analysis: truncated SVD of the TF-IDF of words and word pairs, of total variance 1."""

    def __init__(self, dims: int = 128) -> None:
        self.dims = dims

    def fit(self, texts: Sequence[str]) -> Self:
        """Learn from texts. Raises CyclicError when no word occurs in two texts."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        try:
            counts = self._words.fit_transform(texts)
        except ValueError:
            raise CyclicError("No word occurs in two training reports.", "Evaluate without --baselines.") from None
        _, self._directions = truncated_svd(counts, min(self.dims, *counts.shape), LSA_ITERATIONS)
        variance = (counts @ self._directions.T).var(axis=0).sum()
        self._scale = float(np.sqrt(max(variance, 1e-12)))
        return self

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        """Codes (N, at most dims) float32. Their total variance is 1 on the texts of `fit`."""
        return np.asarray(self._words.transform(texts) @ self._directions.T / self._scale, dtype=np.float32)


class Map(Protocol):
    """Maps image codes and text codes into a common space."""

    def fit(self, images: np.ndarray, texts: np.ndarray) -> Self:
        """Learn from the codes (N, P) of images and (N, Q) of their texts."""

    def images(self, codes: np.ndarray) -> np.ndarray:
        """L2-normalised embeddings (M, D) float32 of image codes (M, P)."""

    def texts(self, codes: np.ndarray) -> np.ndarray:
        """L2-normalised embeddings (M, D) float32 of text codes (M, Q)."""


class RegularisedCCA:
    """Canonical correlation analysis with a ridge on both covariances (Vinod, Journal of Econometrics 1976).

    Each canonical variate is scaled by its correlation, as in Gong et al. (IJCV 2014), who use another power. This
    baseline is stronger than variates of equal scale, because the most correlated variates dominate the similarity.
    """

    def __init__(self, dims: int, regularisation: float) -> None:
        """`regularisation` is relative to the mean variance of the entries of each code."""
        self.dims, self.regularisation = dims, regularisation

    def fit(self, images: np.ndarray, texts: np.ndarray) -> Self:
        """See `Map`. The directions come from the SVD of Cxx^-½ Cxy Cyy^-½, where Cxx and Cyy include the ridge."""
        self._means = images.mean(axis=0), texts.mean(axis=0)
        x, y = (codes.astype(np.float64) - mean for codes, mean in zip((images, texts), self._means, strict=True))
        whiten_x, whiten_y = (_inverse_root(_ridged(codes, self.regularisation)) for codes in (x, y))
        left, self.correlations, right = svd(whiten_x @ (x.T @ y / len(x)) @ whiten_y)
        self.correlations = self.correlations[: self.dims]
        self._maps = (
            whiten_x @ left[:, : self.dims] * self.correlations,
            whiten_y @ right[: self.dims].T * self.correlations,
        )
        return self

    def images(self, codes: np.ndarray) -> np.ndarray:
        return l2_normalised((codes - self._means[0]) @ self._maps[0])

    def texts(self, codes: np.ndarray) -> np.ndarray:
        return l2_normalised((codes - self._means[1]) @ self._maps[1])


class RidgeMaps:
    """Ridge regression of text codes on image codes, and of image codes on text codes.

    The similarity of an image and a text is the mean of the cosines in the two code spaces.
    """

    def __init__(self, regularisation: float) -> None:
        """`regularisation` is relative to the mean variance of the regressors."""
        self.regularisation = regularisation

    def fit(self, images: np.ndarray, texts: np.ndarray) -> Self:
        """See `Map`."""
        self._means = images.mean(axis=0), texts.mean(axis=0)
        x, y = (codes.astype(np.float64) - mean for codes, mean in zip((images, texts), self._means, strict=True))
        self.image_to_text = np.linalg.solve(_ridged(x, self.regularisation), x.T @ y / len(x))
        self.text_to_image = np.linalg.solve(_ridged(y, self.regularisation), y.T @ x / len(x))
        return self

    def images(self, codes: np.ndarray) -> np.ndarray:
        x = codes - self._means[0]
        return l2_normalised(np.concatenate([l2_normalised(x @ self.image_to_text), l2_normalised(x)], axis=1))

    def texts(self, codes: np.ndarray) -> np.ndarray:
        y = codes - self._means[1]
        return l2_normalised(np.concatenate([l2_normalised(y), l2_normalised(y @ self.text_to_image)], axis=1))


def _ridged(codes: np.ndarray, regularisation: float) -> np.ndarray:
    """The covariance (P, P) of centred codes (N, P), plus `regularisation` times its mean diagonal on the diagonal."""
    covariance = codes.T @ codes / len(codes)
    # The constant makes the covariance of constant codes invertible.
    ridge = regularisation * covariance.trace() / len(covariance) + 1e-12
    return np.asarray(covariance + ridge * np.eye(len(covariance)))


def _inverse_root(matrix: np.ndarray) -> np.ndarray:
    """M^-½ of a symmetric positive definite matrix."""
    values, vectors = eigh(matrix)
    return np.asarray(vectors / np.sqrt(np.maximum(values, 1e-15)) @ vectors.T)


def _candidates() -> dict[str, list[Map]]:
    """The settings among which `fit_map` chooses, by name of the map."""
    return {
        "cca": [RegularisedCCA(dims, strength) for strength in STRENGTHS for dims in DIMS],
        "ridge": [RidgeMaps(strength) for strength in STRENGTHS],
    }


MAPS = tuple(_candidates())


def fit_map(name: str, images: np.ndarray, texts: np.ndarray, patients: np.ndarray) -> Map:
    """Fit a map on all pairs, with the settings that retrieve best in cross-validation over patients.

    Args:
        name: A name of `MAPS`: cca or ridge.
        images: (N, P) image codes of paired training samples.
        texts: (N, Q) text codes of the same samples.
        patients: (N,) the patient of each sample. Settings are compared over five folds of patients, by the mean
            reciprocal rank of the own partner in both directions. With a single patient, the first candidate is taken,
            which has the strongest regularisation.
    """
    from sklearn.model_selection import GroupKFold

    candidates = _candidates()[name]
    scores = np.zeros(len(candidates))
    folds = min(FOLDS, len(np.unique(patients)))
    for fitted, held in GroupKFold(folds).split(images, groups=patients) if folds > 1 else ():
        for place, candidate in enumerate(candidates):
            candidate.fit(images[fitted], texts[fitted])
            scores[place] += len(held) * _reciprocal_rank(candidate.images(images[held]), candidate.texts(texts[held]))
    return candidates[int(scores.argmax())].fit(images, texts)


def _reciprocal_rank(images: np.ndarray, texts: np.ndarray) -> float:
    """Mean reciprocal rank of the own partner for paired embeddings (N, D), over both directions."""
    own = np.arange(len(images))
    return float(np.mean([1 / first_hits(*pair, own, own) for pair in ((images, texts), (texts, images))]))


def mean_image_mse(train: np.ndarray, test: np.ndarray) -> float:
    """Mean squared error when the mean training image predicts every test image, both (N, ...) in [0, 1]."""
    return float(np.mean(np.square(test - train.mean(axis=0, dtype=np.float64))))
