"""Tests of transport plans: their marginals, an independent iteration in float64, and their limits."""

import numpy as np
import pytest
from scipy.special import logsumexp

from cyclic_cli.alignment import transport
from cyclic_cli.alignment.transport import MARGINAL_ERROR, transport_plan

ROUNDING = 1e-5  # sums of a hundred float32 products, relative


def noise(images: int = 60, texts: int = 45, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(images, texts)).astype(np.float32)


def sinkhorn(similarity: np.ndarray, entropy: float) -> np.ndarray:
    """The plan (N, M) by Sinkhorn's iteration of log potentials in float64, until nothing changes."""
    images, texts = similarity.shape
    exponents = similarity.astype(np.float64) / (entropy * similarity.std(dtype=np.float64))
    columns = np.zeros(texts)
    for _ in range(20_000):
        rows = -np.log(images) - logsumexp(exponents + columns, axis=1)
        before, columns = columns, -np.log(texts) - logsumexp(exponents + rows[:, None], axis=0)
        if np.abs(columns - before).max() < 1e-13:
            break
    plan: np.ndarray = np.exp(exponents + rows[:, None] + columns)
    return plan


def implied_error(similarity: np.ndarray, entropy: float) -> float:
    """The largest error of log P that the stopping rule allows.

    The kernel contracts distances in Hilbert's metric by λ = tanh(Δ / 4). So the log potentials are known to
    the error of the log marginals over 1 − λ² (Peyré and Cuturi, "Computational Optimal Transport", theorem 4.2).
    """
    exponents = similarity.astype(np.float64) / (entropy * similarity.std(dtype=np.float64))
    between = exponents[:, None] - exponents[None]  # (N, N, M) of two rows
    diameter = float((between.max(axis=2) - between.min(axis=2)).max())
    contraction = np.tanh(diameter / 4)
    of_columns = np.log((1 + MARGINAL_ERROR) / (1 - MARGINAL_ERROR))
    return float((1 + contraction) * of_columns / (1 - contraction**2))


@pytest.mark.parametrize(("images", "texts"), [(60, 45), (45, 60), (50, 50), (1, 7), (7, 1), (1, 1)])
@pytest.mark.parametrize("entropy", [0.3, 1.0, 10.0])
def test_rows_and_columns_have_their_sums(images: int, texts: int, entropy: float) -> None:
    plan = transport_plan(noise(images, texts), entropy)
    assert (plan.shape, plan.dtype) == ((images, texts), np.float32)
    assert plan.min() >= 0
    assert plan.sum(dtype=np.float64) == pytest.approx(1, rel=ROUNDING)
    assert images * plan.sum(axis=1, dtype=np.float64) == pytest.approx(np.ones(images), rel=MARGINAL_ERROR)
    # The iteration stops at this error of the columns, before the plan is scaled to sum to one.
    assert texts * plan.sum(axis=0, dtype=np.float64) == pytest.approx(np.ones(texts), rel=1.01 * MARGINAL_ERROR)


@pytest.mark.parametrize("entropy", [2.0, 5.0, 20.0])
def test_the_plan_is_as_exact_as_its_stopping_rule_promises(entropy: float) -> None:
    similarity = noise()
    away = np.abs(np.log(transport_plan(similarity, entropy)) - np.log(sinkhorn(similarity, entropy))).max()
    assert away < implied_error(similarity, entropy) + ROUNDING
    assert implied_error(similarity, entropy) < 0.3  # the bound says something


@pytest.mark.parametrize("entropy", [0.3, 1.0, 5.0])
def test_the_plan_converges_to_that_of_an_independent_iteration(
    entropy: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "STEPS", 5000)
    monkeypatch.setattr(transport, "MARGINAL_ERROR", 1e-6)
    similarity = noise()
    wanted = sinkhorn(similarity, entropy)
    assert np.abs(transport_plan(similarity, entropy) - wanted).sum() < 1e-4  # of 1
    turned = transport_plan(similarity.T.copy(), entropy).T  # images and texts play the same part
    assert np.abs(turned - wanted).sum() < 1e-4


def test_with_much_entropy_all_partners_are_alike() -> None:
    plan = transport_plan(noise(), 1e5)
    # Exponents are below 1e-4.
    assert plan * plan.size == pytest.approx(np.ones(plan.shape), rel=2e-4)


def test_with_little_entropy_a_planted_permutation_is_found() -> None:
    order = np.random.default_rng(1).permutation(50)
    planted = np.eye(50, dtype=np.float32)[order]
    plan = transport_plan(planted + 0.1 * noise(50, 50), 0.05)
    assert plan == pytest.approx(planted / 50, abs=1e-6)


def test_every_text_is_reached_though_all_images_prefer_one() -> None:
    similarity = noise()
    similarity[:, 3] += 3
    assert (similarity.argmax(axis=1) == 3).mean() > 0.4
    assert transport_plan(similarity, 1.0).sum(axis=0) * 45 == pytest.approx(np.ones(45), rel=1.01 * MARGINAL_ERROR)


@pytest.mark.parametrize(("factor", "constant"), [(1, 4), (0.25, 0), (1024, -8)])
def test_only_differences_of_similarities_count(
    factor: float, constant: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MARGINAL_ERROR", 0)  # all steps, so that rounding cannot decide when to stop
    similarity = np.round(noise() * 1024) / 1024  # sums with these constants are exact
    plan = transport_plan(similarity, 0.5)
    # Exponents of up to 20 are multiples of a standard deviation, which is known to about 1e-6.
    assert transport_plan(factor * (similarity + np.float32(constant)), 0.5) == pytest.approx(plan, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("entropy", [0.01, 0.15, 10])
@pytest.mark.parametrize("value", [0.0, 0.1, -3e4, 1e15])
def test_equal_similarities_say_nothing(value: float, entropy: float) -> None:
    plan = transport_plan(np.full((30, 20), value, np.float32), entropy)
    assert plan == pytest.approx(np.full((30, 20), 1 / 600), rel=ROUNDING)


@pytest.mark.parametrize("entropy", [0.001, 0.15, 10])
def test_extreme_similarities_give_numbers(entropy: float) -> None:
    constant, outlier, copies = noise(), noise(), noise()
    constant[:5] = 0.5  # images to which all texts are alike
    outlier[7] -= 1e6
    outlier[:, 9] = -1e6  # a text that is far from all images
    copies[10:30] = copies[10]
    for similarity in (constant, outlier, copies, noise() * np.float32(1e15), noise() * np.float32(1e-15)):
        plan = transport_plan(similarity, entropy)
        assert np.isfinite(plan).all()
        assert plan.min() >= 0
        assert plan.sum(dtype=np.float64) == pytest.approx(1, rel=ROUNDING)
    plan = transport_plan(copies, 1.0)
    assert plan[10:30] == pytest.approx(np.tile(plan[10], (20, 1)), rel=ROUNDING)
