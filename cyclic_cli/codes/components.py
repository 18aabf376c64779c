"""Principal components of features that are read in batches, scaled to a total variance of one.

Up to `EXACT` features, sums of outer products are kept: one pass over the features, and processes add theirs. For more
features a randomised method reads them several times (Halko et al., SIAM Review 2011). Its last step is the
Nyström approximation of the scatter matrix (Tropp et al., NeurIPS 2017), which needs no further pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from cyclic_cli.codes.exchange import ALONE, Exchange
from cyclic_cli.errors import CyclicError
from cyclic_cli.linear_algebra import OVERSAMPLED, eigh, svd

EXACT = 4096  # most features whose scatter matrix is kept: 128 MiB
PASSES = 4  # over the features by the randomised method
ITERATIONS = 12  # of subspace iteration on a scatter matrix that is kept
ROWS = 4096  # rows of a batch that are converted to float64 at the same time
ROUNDING = float(np.finfo(np.float32).eps)  # of features
EQUAL = 10 * ROUNDING  # features whose standard deviation is smaller, relative to their size, are equal


class EqualFeatures(CyclicError):
    """All training samples have the same features, so they say nothing."""


Batches = Callable[[], Iterable[np.ndarray]]  # all features in batches (M, F), the same ones at each call


@dataclass(frozen=True)
class Components:
    """The first principal components of features. Their total variance is one on the features they were fitted on."""

    mean: np.ndarray  # (F,) float32
    directions: np.ndarray  # (K, F) float32, orthonormal rows, in the order of falling variance
    scale: float  # square root of the variance along all directions together
    variances: np.ndarray  # (K,) float64, along each direction; the sum is scale²

    @property
    def matrix(self) -> np.ndarray:
        """(F, K) float32: a code is (features − mean) @ matrix."""
        return np.asarray(self.directions.T / self.scale, np.float32)

    def encode(self, features: np.ndarray) -> np.ndarray:
        """Codes (N, K) float32 of features (N, F)."""
        return np.asarray((features - self.mean) @ self.matrix, np.float32)


class ComponentSums:
    """Number, mean and scatter matrix of features, added batch by batch in float64."""

    def __init__(self, features: int) -> None:
        """`features` is F."""
        self.count = 0
        self.mean = np.zeros(features)
        self.scatter = np.zeros((features, features))  # sum of the outer products of (features − mean)

    def add(self, features: np.ndarray) -> None:
        """Add features (N, F)."""
        for first in range(0, len(features), ROWS):
            rows = features[first : first + ROWS].astype(np.float64)
            mean = rows.mean(axis=0)
            rows -= mean
            self._merge(len(rows), mean, rows.T @ rows)

    def _merge(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        """Add other features by their sums. No digits cancel, however far the mean lies from zero.

        Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances", 1982.
        """
        if not count:
            return
        total = self.count + count
        away = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(away, away) * (self.count * count / total)
        self.mean += away * (count / total)
        self.count = total

    def added(self, ranks: Exchange) -> ComponentSums:
        """The sums of all processes, in all processes.

        Each scatter matrix is moved to the common mean before it is added, so that no digits cancel.
        """
        total = ComponentSums.__new__(ComponentSums)
        sums = ranks.added(np.append(self.count * self.mean, self.count))
        total.count = round(sums[-1])
        total.mean = sums[:-1] / max(1, total.count)
        away = self.mean - total.mean
        moved = np.outer(self.count * away, away)
        moved += self.scatter
        total.scatter = ranks.added(moved)
        return total

    def components(self, dims: int, name: str) -> Components:
        """The first `dims` principal components; fewer where the features have a lower rank.

        Raises:
            CyclicError: All features are equal, or not finite; `name` says in the message which features they are.
        """
        values, directions = _leading(self.scatter, dims, name)
        return _components(self.count, self.mean, values, directions, float(self.scatter.trace()), dims, name)


def fit_components(batches: Batches, features: int, dims: int, name: str, ranks: Exchange = ALONE) -> Components:
    """Principal components of features that are read in batches. The same batches give the same bits.

    Args:
        batches: Gives all features of this process, in batches (M, F); called once, or `PASSES` times for more than
            `EXACT` features. A process may have none.
        features: F.
        dims: The number of components. There are fewer where the features have a lower rank.
        name: Of the features, for messages.
        ranks: The processes. They add their sums, and all get the components that the first one computes from them.

    Raises:
        CyclicError: All features are equal, or not finite; in all processes.
    """
    if features > EXACT:
        return _randomised(batches, features, dims, name, ranks)
    own = ComponentSums(features)
    for batch in batches():
        own.add(batch)
    sums = own.added(ranks) if ranks.world > 1 else own
    return ranks.agreed(lambda: sums.components(dims, name))


def _leading(scatter: np.ndarray, dims: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues in falling order and their eigenvectors, as rows, of a scatter matrix (F, F)."""
    width = dims + OVERSAMPLED
    if len(scatter) < 4 * width:
        values, vectors = _eigh(scatter, name)
        return values[::-1], vectors[:, ::-1].T
    # A complete decomposition takes 40 s for 4,096 features, subspace iteration 3 s.
    basis = _start(len(scatter), width)
    for _ in range(ITERATIONS):
        basis = np.linalg.qr(_finite(scatter @ basis, name))[0]
    values, turn = _eigh(basis.T @ scatter @ basis, name)
    return values[::-1], (basis @ turn[:, ::-1]).T


def _start(features: int, width: int) -> np.ndarray:
    """A random orthonormal basis (F, width), always the same."""
    return np.asarray(np.linalg.qr(np.random.default_rng(0).standard_normal((features, width)))[0])


def _randomised(batches: Batches, features: int, dims: int, name: str, ranks: Exchange) -> Components:
    count, mean, total = _first_sums(batches, features, name, ranks)
    width = min(dims + OVERSAMPLED, max(1, count), features)
    basis = _start(features, width)
    for place in range(PASSES - 1):
        image = np.zeros((features, width))  # scatter matrix times basis
        for batch in batches():
            centred = np.asarray(batch - mean, np.float32)
            image += centred.T @ (centred @ basis.astype(np.float32))
        image = _finite(ranks.added(image), name)
        if place < PASSES - 2:
            basis = np.linalg.qr(image)[0]
    return ranks.agreed(lambda: _nystroem(image, basis, count, mean, total, dims, name))


def _nystroem(
    image: np.ndarray, basis: np.ndarray, count: int, mean: np.ndarray, total: float, dims: int, name: str
) -> Components:
    """Components from the scatter matrix times a basis (F, width): scatter ≈ image (basisᵀ image)⁻¹ imageᵀ.

    A small shift keeps the inverse stable, and is taken off again.
    """
    shift = ROUNDING * float(np.linalg.norm(image)) + np.finfo(np.float64).tiny
    image = image + shift * basis
    middle, turn = _eigh(basis.T @ image, name)
    half = (image @ turn) / np.sqrt(np.maximum(middle, shift))
    left, roots, _ = svd(half)
    return _components(count, mean, np.maximum(roots**2 - shift, 0), left.T, total, dims, name)


def _first_sums(batches: Batches, features: int, name: str, ranks: Exchange) -> tuple[int, np.ndarray, float]:
    """Number, mean (F,) and sum of squared distances from the mean of the features of all processes."""
    count, mean, total = 0, np.zeros(features), 0.0
    for batch in batches():
        for first in range(0, len(batch), ROWS // 16):
            rows = batch[first : first + ROWS // 16].astype(np.float64)
            middle = rows.mean(axis=0)
            away = middle - mean
            share = len(rows) / (count + len(rows))
            total += float(np.square(rows - middle).sum() + count * share * (away @ away))
            mean += away * share
            count += len(rows)
    if ranks.world > 1:
        sums = ranks.added(np.append(count * mean, count))
        common = sums[:-1] / max(1.0, sums[-1])
        away = mean - common
        total = float(ranks.added(np.array([total + count * (away @ away)]))[0])
        count, mean = round(sums[-1]), common
    _finite(np.array(total), name)
    return count, mean, total


def _components(
    count: int, mean: np.ndarray, values: np.ndarray, directions: np.ndarray, total: float, dims: int, name: str
) -> Components:
    """Components from eigenvalues in falling order and eigenvectors (rows) of the scatter matrix, whose trace is total.

    Directions that the features do not span are left out: their values are rounding errors of the features, which
    differ between machines.
    """
    size = max(1, count) * float(mean @ mean) + total
    if count < 2 or total <= EQUAL**2 * size:
        raise EqualFeatures(
            f"The {name} of all training samples are equal.", f"Leave the {name} out, or train on more samples."
        )
    most = float(values[0])
    rounding = most * (10 * ROUNDING) ** 2 * max(count, len(mean))
    kept = np.flatnonzero(values[:dims] > min(rounding, most / 2))
    variances = values[kept] / (count - 1)
    directions = _signed(directions[kept])
    scale = float(np.sqrt(variances.sum()))
    return Components(mean.astype(np.float32), directions.astype(np.float32), scale, variances)


def _signed(directions: np.ndarray) -> np.ndarray:
    """Directions (K, F) whose largest entry is positive: their signs are arbitrary and differ between BLAS builds."""
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], 1)
    return directions * np.where(largest < 0, -1.0, 1.0)


def _eigh(matrix: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    return eigh(_finite(matrix, name))


def _finite(array: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise CyclicError(f"The {name} are not all finite numbers.", f"Leave the {name} out, or check their encoder.")
    return array
