"""Tests of the principal components: they equal scikit-learn's, however the features are read."""

from typing import Any

import numpy as np
import pytest
from helpers.thread_processes import in_threads
from sklearn.decomposition import PCA

from cyclic_cli.codes import components
from cyclic_cli.codes.components import ComponentSums, fit_components
from cyclic_cli.errors import CyclicError


def features(samples: int = 400, width: int = 30, seed: int = 0) -> np.ndarray:
    """Features (N, F) float32 whose mean is far larger than their variance, which falls by 0.8 per direction."""
    generator = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(99).normal(size=(width, width)))[0]
    return np.float32(generator.normal(size=(samples, width)) * 0.8 ** np.arange(width) @ turn + 50)


def batches(values: np.ndarray, size: int = 64):
    return lambda: (values[first : first + size] for first in range(0, len(values), size))


@pytest.fixture(params=["exact", "subspace", "streaming"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The three ways in which components are computed, forced upon few features."""
    monkeypatch.setattr(components, "EXACT", 10 if request.param == "streaming" else 4096)
    monkeypatch.setattr(components, "OVERSAMPLED", 3 if request.param == "subspace" else 10)
    return request.param


def test_components_equal_scikit_learn(method: str) -> None:
    values = features()
    ours = fit_components(batches(values), 30, 4, "pixels")
    wanted = PCA(4, svd_solver="full").fit(values.astype(float))
    assert ours.variances == pytest.approx(wanted.explained_variance_, rel=1e-3)
    assert np.abs(ours.directions @ wanted.components_.T) == pytest.approx(np.eye(4), abs=2e-2)
    assert ours.mean == pytest.approx(values.mean(axis=0, dtype=float), rel=1e-6)
    codes = ours.encode(values)
    assert (codes.dtype, codes.shape) == (np.float32, (400, 4))
    assert codes.var(axis=0, ddof=1, dtype=float).sum() == pytest.approx(1, abs=1e-3)
    assert codes.mean(axis=0, dtype=float) == pytest.approx(np.zeros(4), abs=1e-4)


def test_the_same_batches_give_the_same_bits(method: str) -> None:
    one, two = (fit_components(batches(features()), 30, 4, "pixels") for _ in range(2))
    assert one.matrix.tobytes() == two.matrix.tobytes()
    assert one.mean.tobytes() == two.mean.tobytes()


def test_there_are_no_more_components_than_the_rank(method: str) -> None:
    values = features(width=12)[:, np.arange(30) % 12]  # of rank 12
    assert len(fit_components(batches(values), 30, 20, "pixels").variances) == 12
    assert len(fit_components(batches(features(5)), 30, 20, "pixels").variances) == 4


def test_equal_features_are_refused_by_name(method: str) -> None:
    values = np.full((40, 30), 0.3, np.float32) * np.arange(1, 31, dtype=np.float32)
    rounded = values * (1 + np.float32(1e-7) * (np.arange(40) % 3)[:, None])  # equal up to rounding
    for some in (values, rounded, features(1)):
        with pytest.raises(CyclicError, match="The stage 3 of all training samples are equal"):
            fit_components(batches(some), 30, 4, "stage 3")
    broken = features()
    broken[7, 3] = np.nan
    with pytest.raises(CyclicError, match="The stage 3 are not all finite"):
        fit_components(batches(broken), 30, 4, "stage 3")


def shares(values: np.ndarray) -> list[np.ndarray]:
    """The features of three processes: many, none and few."""
    return [values[:300], values[:0], values[300:]]


def test_processes_add_their_sums() -> None:
    values = features() + np.float32(1000)  # digits would cancel in sums of squares
    whole = ComponentSums(30)
    whole.add(values)
    parts = [ComponentSums(30) for _ in range(3)]
    for part, some in zip(parts, shares(values), strict=True):
        part.add(some)
    for sums in in_threads(3, lambda ranks: parts[ranks.rank].added(ranks)):
        assert sums.count == 400
        # Sums of 400 numbers in float64 in another order.
        assert sums.mean == pytest.approx(whole.mean, rel=1e-12)
        assert sums.scatter == pytest.approx(whole.scatter, abs=1e-10 * whole.scatter.trace())


def test_processes_find_the_same_components(method: str) -> None:
    values = features()
    found = in_threads(3, lambda ranks: fit_components(batches(shares(values)[ranks.rank]), 30, 4, "pixels", ranks))
    assert len({one.matrix.tobytes() for one in found}) == 1
    alone = fit_components(batches(values), 30, 4, "pixels")
    # The randomised method centres and multiplies batches in float32.
    rounding = 1e-4 if method == "streaming" else 1e-6
    assert found[0].matrix == pytest.approx(alone.matrix, abs=rounding)
    assert found[0].variances == pytest.approx(alone.variances, rel=rounding)


def test_all_processes_refuse_what_one_cannot_use(method: str) -> None:
    broken = features()
    broken[350, 3] = np.nan  # in the share of the last process
    for values, message in ((broken, "not all finite"), (np.ones((400, 30), np.float32), "equal")):

        def refused(ranks: Any, values: np.ndarray = values, message: str = message) -> bool:
            with pytest.raises(CyclicError, match=message):
                fit_components(batches(shares(values)[ranks.rank]), 30, 4, "pixels", ranks)
            return True

        assert in_threads(3, refused) == [True] * 3


def test_no_digits_cancel_where_the_mean_is_large() -> None:
    values = features().astype(np.float64) + 1e6
    sums = ComponentSums(30)
    for batch in batches(values)():
        sums.add(batch)
    wanted = np.cov((values - 1e6).T)
    assert sums.scatter / 399 == pytest.approx(wanted, abs=1e-8)
