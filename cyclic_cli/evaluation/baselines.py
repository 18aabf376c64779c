"""Baselines in closed form: codes that need no pretrained encoder, and linear maps between them.

Codes are fitted on all training samples of their modality, maps on the paired samples. The code of an image joins
principal components of its pixels and of its histograms of gradient orientations, because the components of pixels
alone say little about the content of an image. Codes and maps are those of the rooms `codes` and `alignment`.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Self

import numpy as np
import torch

from cyclic_cli.alignment.choice import ClosedForm, choose
from cyclic_cli.alignment.maps import Setting
from cyclic_cli.codes.components import fit_components
from cyclic_cli.codes.image_features import SOURCES
from cyclic_cli.codes.terms import NONE, Terms
from cyclic_cli.errors import CyclicError
from cyclic_cli.linear_algebra import truncated_svd

BATCH = 32  # images whose features are computed at the same time
STRENGTHS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # of the regularisation, relative to the mean variance of a code's entries
VARIATES = (8, 16, 32, 64, 128)
GRIDS = {
    "cca": tuple(Setting((strength, dims)) for strength in STRENGTHS for dims in VARIATES),
    "ridge": tuple(Setting(ridge=strength) for strength in STRENGTHS),
}
MAPS = tuple(GRIDS)
PARTS = ("pixels", "gradients")  # of the code of an image
PATIENTS = 5  # fewest with pairs for which the maps are measured: one for each fold


class ImageCodes:
    """Principal components of pixels and of gradient histograms. Each makes up half of the total variance."""

    def __init__(self, dims: int = 128) -> None:
        """`dims` is the number of components of each half. There are fewer where the data have a lower rank."""
        self.dims = dims

    def fit(self, images: np.ndarray) -> Self:
        """Learn from images (N, C, H, W), float in [0, 1], with at least 16 pixels per side.

        Raises:
            CyclicError: All images are equal.
        """
        self._parts = []
        for name in PARTS:
            batches = partial(_features, name, images)
            self._parts.append(fit_components(batches, next(batches()).shape[1], self.dims, name))
        return self

    def transform(self, images: np.ndarray) -> np.ndarray:
        """Codes (N, at most 2 · dims) float32. Their total variance is 2 on the images of `fit`."""
        parts = zip(PARTS, self._parts, strict=True)
        return np.concatenate(
            [np.concatenate([part.encode(batch) for batch in _features(name, images)]) for name, part in parts], axis=1
        )


def _features(name: str, images: np.ndarray) -> Iterator[np.ndarray]:
    """Cheap features (M, F) of images, in batches."""
    for first in range(0, len(images), BATCH):
        batch = torch.from_numpy(images[first : first + BATCH])
        yield SOURCES[name](batch)[name].numpy()


class TextCodes:
    """Latent semantic analysis of the words and word pairs of at least ten patients, of total variance 1."""

    def __init__(self, dims: int = 128) -> None:
        """`dims` is the number of dimensions. There are fewer where the texts have a lower rank."""
        self.dims = dims

    def fit(self, texts: Sequence[str], patients: Sequence[str]) -> Self:
        """Learn from texts and the keys of their patients. Raises CyclicError when ten patients share no word."""
        terms = Terms.fit(texts, patients)
        if terms is None:
            raise CyclicError(NONE, "Evaluate without --baselines.")
        self._terms, self._components = terms, terms.components(texts, self.dims)
        return self

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        """Codes (N, at most dims) float32. Their total variance is 1 on the texts of `fit`."""
        return np.asarray(self._terms.matrix(texts) @ self._components.matrix, np.float32)


def fit_map(
    name: str, images: np.ndarray, texts: np.ndarray, patients: np.ndarray, groups: np.ndarray | None = None
) -> ClosedForm:
    """Fit a map of `MAPS` on all pairs, with the settings that retrieve best in folds over patients, see `choose`.

    Args:
        name: cca or ridge.
        images: (N, P) image codes of paired training samples.
        texts: (N, Q) text codes of the same samples.
        patients: (N,) the patient of each sample.
        groups: (N,) ints, equal for equal texts. None: all texts differ.
    """
    return choose(images, texts, patients, groups, grids={name: GRIDS[name]})


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


def mean_image_mse(train: np.ndarray, test: np.ndarray) -> float:
    """Mean squared error when the mean training image predicts every test image, both (N, ...) in [0, 1]."""
    return float(np.mean(np.square(test - train.mean(axis=0, dtype=np.float64))))
