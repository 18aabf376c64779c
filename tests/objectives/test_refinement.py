"""The objectives that hold residual heads to the closed form, compared with plain numpy and finite differences."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cyclic_cli.data.mixture import UNPAIRED
from cyclic_cli.objectives import anchor, structure, transport

Rows = dict[str, Tensor]
SIZES = {"a": 7, "b": 9}  # unpaired samples by modality
PAIRED = 3


def random_batch() -> tuple[dict[str, Any], dict[str, Any]]:
    """Float64 outputs of two modalities, with `PAIRED` pairs and then `SIZES` unpaired samples, and their batch."""
    generator = torch.Generator().manual_seed(1)

    def normalised() -> Rows:
        drawn = {name: torch.randn(PAIRED + size, 5, generator=generator).double() for name, size in SIZES.items()}
        return {name: functional.normalize(rows, dim=1) for name, rows in drawn.items()}

    outputs = {"embedding": normalised(), "closed_form": normalised(), "code": normalised()}
    outputs["code"] = {name: 3 * rows[:, :4] + 1 for name, rows in outputs["code"].items()}
    pairs = torch.arange(PAIRED)
    return outputs, {
        "sample": {name: torch.cat([pairs, torch.full((size,), UNPAIRED)]) for name, size in SIZES.items()}
    }


def plan_of(similarity: np.ndarray, epsilon: float) -> np.ndarray:
    """The entropic transport plan with uniform marginals, by scaling rows and columns in turn."""
    plan = np.exp(similarity / epsilon)
    for _ in range(5000):
        plan /= len(plan) * plan.sum(1, keepdims=True)
        plan /= plan.shape[1] * plan.sum(0)
    return plan


def divergence_of(similarity: np.ndarray, target: np.ndarray, epsilon: float) -> float:
    return float((target * np.log(target / plan_of(similarity, epsilon))).sum())


def unpaired_similarity(rows: Rows) -> np.ndarray:
    return (rows["a"][PAIRED:] @ rows["b"][PAIRED:].T).numpy()


@pytest.fixture
def _in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """The objectives compute in float32, unless `float` does nothing."""
    monkeypatch.setattr(Tensor, "float", lambda value: value)


@pytest.mark.usefixtures("_in_double")
def test_transport_is_the_divergence_of_the_plans_and_its_gradient_equals_finite_differences() -> None:
    outputs, batch = random_batch()
    leaf = outputs["embedding"]["a"].clone().requires_grad_()
    changed = {**outputs, "embedding": {**outputs["embedding"], "a": leaf}}
    loss = transport.loss(changed, batch, epsilon=0.4, closed_form_epsilon=0.2, steps=5000)
    loss.backward()
    target = plan_of(unpaired_similarity(outputs["closed_form"]), 0.2)
    similarity = unpaired_similarity(outputs["embedding"])
    assert loss.item() == pytest.approx(divergence_of(similarity, target, 0.4), rel=1e-8)
    by_similarity = np.zeros_like(similarity)
    for place in np.ndindex(*similarity.shape):
        step = np.zeros_like(similarity)
        step[place] = 1e-5
        above, below = (divergence_of(similarity + sign * step, target, 0.4) for sign in (1, -1))
        by_similarity[place] = (above - below) / 2e-5
    expected = by_similarity @ outputs["embedding"]["b"][PAIRED:].numpy()
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad[PAIRED:].numpy(), expected, atol=1e-8)
    assert not leaf.grad[:PAIRED].any()  # those of pairs


@pytest.mark.usefixtures("_in_double")
def test_a_sharp_plan_has_uniform_marginals_and_finite_logarithms() -> None:
    similarity = torch.from_numpy(unpaired_similarity(random_batch()[0]["embedding"]))
    plan = transport.log_plan(similarity / 0.005, 100_000)
    assert plan.isfinite().all()
    np.testing.assert_allclose(plan.exp().sum(0).numpy(), 1 / SIZES["b"], rtol=1e-12)
    np.testing.assert_allclose(plan.exp().sum(1).numpy(), 1 / SIZES["a"], rtol=1e-6)
    assert transport.log_plan(similarity.float() / 0.005, 100).isfinite().all()


def test_transport_is_zero_where_both_plans_are_equal() -> None:
    outputs, batch = random_batch()
    outputs["embedding"] = {name: rows.clone().requires_grad_() for name, rows in outputs["closed_form"].items()}
    loss = transport.loss(outputs, batch, epsilon=0.1, closed_form_epsilon=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert max(float(rows.grad.abs().max()) for rows in outputs["embedding"].values()) < 1e-5


def test_without_unpaired_samples_transport_is_a_zero_with_a_gradient() -> None:
    outputs, _ = random_batch()
    paired = {name: {key: rows[:PAIRED] for key, rows in one.items()} for name, one in outputs.items()}
    paired["embedding"] = {name: rows.requires_grad_() for name, rows in paired["embedding"].items()}
    loss = transport.loss(paired, {"sample": dict.fromkeys(SIZES, torch.arange(PAIRED))})
    assert loss.item() == 0
    loss.backward()
    assert all(rows.grad is not None for rows in paired["embedding"].values())


@pytest.mark.usefixtures("_in_double")
@pytest.mark.parametrize("levels", [1, 3])
def test_structure_equals_its_formula_in_numpy(levels: int) -> None:
    outputs, batch = random_batch()

    def transitions(vectors: np.ndarray) -> np.ndarray:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        powers = np.exp((unit - unit.mean(0)) @ (unit - unit.mean(0)).T / 0.2)
        return powers / powers.sum(1, keepdims=True)

    losses = []
    for name in SIZES:
        one, other = (transitions(outputs[key][name].numpy()) for key in ("code", "embedding"))
        for level in range(1, levels + 1):
            p, q = (np.linalg.matrix_power(each, level) for each in (one, other))
            middle = (p + q) / 2
            divergence = ((p * np.log(p / middle)).sum(1) + (q * np.log(q / middle)).sum(1)) / 2
            losses.append(divergence.mean() / level / levels / len(SIZES))
    found = structure.loss(outputs, batch, levels=levels, temperature=0.2)
    assert found.item() == pytest.approx(sum(losses), rel=1e-8)


def test_structure_is_zero_where_embeddings_are_the_directions_of_the_codes() -> None:
    outputs, batch = random_batch()
    outputs["embedding"] = {name: functional.normalize(code, dim=1) for name, code in outputs["code"].items()}
    assert structure.loss(outputs, batch).item() == pytest.approx(0, abs=1e-6)


def test_the_distance_to_the_closed_form_is_that_of_cosines() -> None:
    outputs, batch = random_batch()
    cosines = [(outputs["embedding"][name] * outputs["closed_form"][name]).sum(1).mean().item() for name in SIZES]
    assert anchor.loss(outputs, batch).item() == pytest.approx(2 - 2 * np.mean(cosines), rel=1e-5)
