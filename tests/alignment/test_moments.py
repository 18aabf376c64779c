"""Tests of the sums of paired codes: however they are gathered, the covariances are numpy's."""

from typing import Any

import numpy as np
import pytest
from helpers.thread_processes import in_threads

from cyclic_cli.alignment.moments import ROWS, Moments, Pairs


def codes(pairs: int = 300, images: int = 5, texts: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=(pairs, images)).astype(np.float32) + 3,
        generator.normal(size=(pairs, texts)).astype(np.float32) - 1,
    )


def assert_equal(one: Moments, other: Moments, rel: float = 1e-12) -> None:
    assert (one.count, one.images, one.texts) == (other.count, other.images, other.texts)
    assert one.sums == pytest.approx(other.sums, rel=rel)
    assert one.products == pytest.approx(other.products, rel=rel)


def test_covariances_equal_numpy() -> None:
    images, texts = codes(2 * ROWS + 77)
    moments = Moments.of(images, texts)
    wanted = np.cov(images.T.astype(float), texts.T.astype(float), bias=True)
    # Sums of 8,000 products of up to 30 in float64 are known to about 1e-10.
    for ours, part in zip(moments.covariances(), (wanted[:5, :5], wanted[5:, 5:], wanted[:5, 5:]), strict=True):
        assert ours == pytest.approx(part, abs=1e-9)
    assert moments.means()[0] == pytest.approx(images.mean(axis=0, dtype=float))
    assert moments.means()[1] == pytest.approx(texts.mean(axis=0, dtype=float))


def test_processes_add_their_sums() -> None:
    images, texts = codes()
    parts = np.arange(200), np.arange(0), np.arange(200, 300)  # the pairs of three processes
    some = np.array([3, 70, 199, 200, 250])

    def process(ranks: Any) -> tuple[Moments, Moments, tuple[np.ndarray, np.ndarray]]:
        own = parts[ranks.rank]
        pairs = Pairs(images[own], texts[own], own, ranks)
        return pairs.moments(), pairs.moments(some), pairs.codes(some)

    for whole, fold, gathered in in_threads(3, process):
        assert_equal(whole, Moments.of(images, texts))
        assert_equal(fold, Moments.of(images[some], texts[some]))
        assert [one.tobytes() for one in gathered] == [images[some].tobytes(), texts[some].tobytes()]


def test_a_fold_is_taken_away_without_another_pass() -> None:
    images, texts = codes()
    fold = np.arange(300) % 5 == 2
    rest = Moments.of(images, texts) - Moments.of(images, texts, np.flatnonzero(fold))
    assert_equal(rest, Moments.of(images[~fold], texts[~fold]), rel=1e-10)


def test_some_columns_and_some_rows() -> None:
    images, texts = codes()
    columns = np.array([0, 3]), np.array([1])
    assert_equal(Moments.of(images, texts).select(*columns), Moments.of(images[:, columns[0]], texts[:, columns[1]]))
    rows = np.array([3, 70, 71, 250])
    assert_equal(Moments.of(images, texts, rows), Moments.of(images[rows], texts[rows]))
    assert Moments(5, 3).covariances()[0].shape == (5, 5)
