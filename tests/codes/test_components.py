"""Tests of the principal components: they equal scikit-learn's, however the features are read."""

import numpy as np
import pytest
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


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_add_their_sums(processes: int) -> None:
    values = features()
    whole = ComponentSums(30)
    whole.add(values)
    parts = [ComponentSums(30) for _ in range(processes)]
    for first, part in enumerate(parts):
        part.add(values[first::processes])
    merged = sum(parts[1:], parts[0])
    arrays = [part.arrays() for part in parts]
    reduced = ComponentSums.from_arrays({name: sum(one[name] for one in arrays) for name in arrays[0]})
    for sums in (merged, reduced):
        assert sums.count == 400
        assert sums.mean == pytest.approx(whole.mean, rel=1e-9)
        assert sums.scatter == pytest.approx(whole.scatter, abs=1e-6 * whole.scatter.trace())
        assert sums.components(4, "pixels").matrix == pytest.approx(whole.components(4, "pixels").matrix, abs=1e-5)


def test_processes_find_the_same_components_of_many_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads stand for two processes: each reads its half, and the sums meet in `reduce`."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    monkeypatch.setattr(components, "EXACT", 10)
    values, meeting, given = features(), Barrier(2), {}

    def process(rank: int) -> components.Components:
        def reduce(array: np.ndarray) -> np.ndarray:
            given[rank] = array
            meeting.wait()
            total = given[0] + given[1]
            meeting.wait()
            return total

        return fit_components(batches(values[rank::2]), 30, 4, "pixels", reduce)

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(process, range(2))
    alone = fit_components(batches(values), 30, 4, "pixels")
    assert one.matrix.tobytes() == two.matrix.tobytes()
    assert one.matrix == pytest.approx(alone.matrix, abs=1e-4)  # batches are centred and multiplied in float32


def test_no_digits_cancel_where_the_mean_is_large() -> None:
    values = features().astype(np.float64) + 1e6
    sums = ComponentSums(30)
    for batch in batches(values)():
        sums.add(batch)
    wanted = np.cov((values - 1e6).T)
    assert sums.scatter / 399 == pytest.approx(wanted, abs=1e-8)
