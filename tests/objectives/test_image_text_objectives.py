"""The objectives of image–text models, compared with plain loops, other libraries and finite differences."""

import math
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cyclic_cli.data.mixture import UNPAIRED
from cyclic_cli.models._aligned import REFINED
from cyclic_cli.models._joint import OUTPUTS
from cyclic_cli.registry import names

JOINT = [name for name in names("objectives") if name not in ("absolute", "divergence", "similarity", "simclr")]
OF_EMBEDDINGS = [name for name in JOINT if import_module(f"cyclic_cli.objectives.{name}").NEEDS[0] == "embedding"]
CONVERGED = {"transport": {"epsilon": 0.5, "closed_form_epsilon": 0.5, "steps": 1000}}  # its gradient is then exact


def loss_of(name: str, outputs: dict[str, Any], batch: dict[str, Any], **settings: float) -> Tensor:
    return import_module(f"cyclic_cli.objectives.{name}").loss(outputs, batch, **settings)


def random_batch(modalities: str = "ab", paired: int = 4, unpaired: int = 5, seed: int = 0) -> tuple[dict, dict]:
    """Random L2-normalised embeddings of some modalities, float64, and which samples are paired."""
    generator = torch.Generator().manual_seed(seed)
    outputs: dict[str, Any] = {
        "embedding": {}, "scale": torch.tensor(8.0, dtype=torch.float64),
        "bias": torch.tensor(-3.0, dtype=torch.float64), "closed_form": {}, "code": {},
    }  # fmt: skip
    batch: dict[str, Any] = {"sample": {}, "content": {}}
    for number, name in enumerate(modalities):
        count = paired + unpaired + number  # each modality has one more unpaired sample than the one before
        rows = torch.randn(count, 6, generator=generator, dtype=torch.float64)
        outputs["embedding"][name] = functional.normalize(rows, dim=1)
        own = torch.full((count - paired,), UNPAIRED)
        order = torch.randperm(paired, generator=generator)
        batch["sample"][name] = torch.cat([own[:2], 10 + order, own[2:]])  # pairs are not at the beginning
        batch["content"][name] = torch.arange(count) + 100 * number
        outputs["code"][name] = torch.randn(count, 8 + number, generator=generator, dtype=torch.float64)
        fixed = rows + 0.5 * torch.randn(rows.shape, generator=generator, dtype=torch.float64)
        outputs["closed_form"][name] = functional.normalize(fixed, dim=1)
    return outputs, batch


def paired_rows(outputs: dict, batch: dict, a: str, b: str) -> list[tuple[Tensor, Tensor, int, int]]:
    """The pairs of two modalities, found by a loop: both embeddings and both content numbers."""
    found = []
    for i, sample in enumerate(batch["sample"][a].tolist()):
        for j, other in enumerate(batch["sample"][b].tolist()):
            if sample == other != UNPAIRED:
                contents = batch["content"][a][i].item(), batch["content"][b][j].item()
                found.append((outputs["embedding"][a][i], outputs["embedding"][b][j], *contents))
    return found


def unpaired_rows(outputs: dict, batch: dict, name: str) -> list[Tensor]:
    rows = zip(outputs["embedding"][name], batch["sample"][name].tolist(), strict=True)
    return [row for row, sample in rows if sample == UNPAIRED]


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def dot(one: Tensor, other: Tensor) -> float:
    return float(one @ other)


@pytest.mark.parametrize("repeated", [False, True])
def test_contrastive_loss_by_hand(repeated: bool) -> None:
    outputs, batch = random_batch()
    if repeated:  # two pairs have the same report
        places = (batch["sample"]["b"] != UNPAIRED).nonzero()[:2, 0]
        batch["content"]["b"][places] = 7
    rows = paired_rows(outputs, batch, "a", "b")
    total = 0.0
    for a, b, content_a, content_b in rows:
        forth, back = softmax([8 * dot(a, row[1]) for row in rows]), softmax([8 * dot(row[0], b) for row in rows])
        hits_b = [p for p, row in zip(forth, rows, strict=True) if row[3] == content_b]
        hits_a = [p for p, row in zip(back, rows, strict=True) if row[2] == content_a]
        total -= sum(math.log(p) for p in hits_b) / len(hits_b) + sum(math.log(p) for p in hits_a) / len(hits_a)
    assert loss_of("contrastive", outputs, batch).item() == pytest.approx(total / (2 * len(rows)), rel=1e-5)


def test_contrastive_loss_without_repeated_content_is_that_of_clip() -> None:
    outputs, batch = random_batch()
    rows = paired_rows(outputs, batch, "a", "b")
    logits = 8 * torch.stack([row[0] for row in rows]) @ torch.stack([row[1] for row in rows]).T
    own = torch.arange(len(rows))
    expected = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
    assert loss_of("contrastive", outputs, batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("repeated", [False, True])
def test_sigmoid_loss_by_hand(repeated: bool) -> None:
    outputs, batch = random_batch()
    if repeated:  # two pairs have the same report, so both combinations match
        places = (batch["sample"]["b"] != UNPAIRED).nonzero()[:2, 0]
        batch["content"]["b"][places] = 7
    rows = paired_rows(outputs, batch, "a", "b")
    total = sum(
        math.log(1 + math.exp(-(1 if one[3] == other[3] else -1) * (8 * dot(one[0], other[1]) - 3)))
        for one in rows
        for other in rows
    )
    assert loss_of("sigmoid", outputs, batch).item() == pytest.approx(total / len(rows), rel=1e-5)


def test_geometry_by_hand() -> None:
    outputs, batch = random_batch()
    rows = paired_rows(outputs, batch, "a", "b")
    total = sum(
        (dot(one[0], other[0]) - dot(one[1], other[1])) ** 2 + (dot(one[0], other[1]) - dot(other[0], one[1])) ** 2
        for one in rows
        for other in rows
    )
    assert loss_of("geometry", outputs, batch).item() == pytest.approx(total / len(rows), rel=1e-5)


def walk_steps(outputs: dict, batch: dict, sharpness: float) -> Iterator[tuple[list[Tensor], list[Tensor], list, list]]:
    """Both directions between the unpaired samples of a and b.

    Yields the embeddings of the first and the second modality, and the transition probabilities there and back.
    """
    for a, b in (("a", "b"), ("b", "a")):
        start, stop = unpaired_rows(outputs, batch, a), unpaired_rows(outputs, batch, b)
        there = [softmax([sharpness * dot(one, other) for other in stop]) for one in start]
        back = [softmax([sharpness * dot(other, one) for one in start]) for other in stop]
        yield start, stop, there, back


def test_walker_loss_by_hand() -> None:
    outputs, batch = random_batch()
    losses = []
    for start, _, there, back in walk_steps(outputs, batch, 10):
        for number, steps in enumerate(there):
            ends = np.array(steps) @ np.array(back)
            goal = np.array(softmax([20 * dot(start[number], one) for one in start]))
            losses.append(float((goal * np.log(goal / ends)).sum()) / len(start) / 2)
    assert loss_of("walk", outputs, batch).item() == pytest.approx(sum(losses), rel=1e-4)


def test_visit_loss_by_hand_and_zero_for_uniform_visits() -> None:
    outputs, batch = random_batch()
    losses = []
    for _, stop, there, _ in walk_steps(outputs, batch, 10):
        visited = np.array(there).mean(0) * len(stop)
        losses.append(-np.log(visited).mean() / 2)
    assert loss_of("visit", outputs, batch).item() == pytest.approx(sum(losses), rel=1e-5)
    same = functional.normalize(torch.ones(9, 6, dtype=torch.float64), dim=1)
    outputs["embedding"] = {"a": same, "b": torch.cat([same, same[:1]])}
    assert loss_of("visit", outputs, batch).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["translation", "data_cycle", "reconstruction"])
def test_errors_are_averaged_over_samples_then_over_directions(name: str) -> None:
    outputs, batch = random_batch()
    outputs[name] = {("a", "b"): torch.tensor([1.0, 3.0]), ("b", "a"): torch.tensor([5.0]), ("a", "c"): torch.empty(0)}
    assert loss_of(name, outputs, batch).item() == pytest.approx(3.5)


@pytest.mark.parametrize("name", OF_EMBEDDINGS)
def test_gradients_equal_finite_differences(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, batch = random_batch()
    monkeypatch.setattr(Tensor, "float", lambda value: value)  # the objectives compute in float32
    leaf = outputs["embedding"]["a"].clone().requires_grad_()
    given: list[Tensor] = []  # detached tensors, such as walk targets, keep their first value

    def of(value: Tensor) -> Tensor:
        left = iter(list(given))

        def detach(taken: Tensor) -> Tensor:
            given.extend([taken.data.clone()] if not known else [])
            return next(left) if known else given[-1]

        known = bool(given)
        with monkeypatch.context() as patched:
            patched.setattr(Tensor, "detach", detach)
            changed = {**outputs, "embedding": {**outputs["embedding"], "a": value}}
            return loss_of(name, changed, batch, **CONVERGED.get(name, {}))

    assert torch.autograd.gradcheck(of, leaf, atol=1e-5, rtol=1e-3, eps=1e-6)
    assert bool(given) == (name == "walk")


@pytest.mark.parametrize("name", OF_EMBEDDINGS)
def test_the_loss_of_three_modalities_is_the_mean_over_their_pairs(name: str) -> None:
    """The loss of three modalities is the mean of the losses of batches with two of them."""
    outputs, batch = random_batch("abc")
    parts = []
    for two in ("ab", "ac", "bc"):
        some = {key: value for key, value in outputs.items() if key in ("scale", "bias")}
        for key in ("embedding", *REFINED):
            some[key] = {name: outputs[key][name] for name in two}
        own = {key: {name: batch[key][name] for name in two} for key in ("sample", "content")}
        parts.append(loss_of(name, some, own).item())
    assert loss_of(name, outputs, batch).item() == pytest.approx(np.mean(parts), rel=1e-5)


@pytest.mark.parametrize("name", JOINT)
def test_with_nothing_to_compare_the_loss_is_a_zero_with_a_gradient(name: str) -> None:
    outputs, batch = random_batch(paired=0, unpaired=1)
    outputs["embedding"] = {name: value.requires_grad_() for name, value in outputs["embedding"].items()}
    batch["sample"] = {"a": torch.tensor([UNPAIRED]), "b": torch.tensor([UNPAIRED, UNPAIRED])}
    for need in import_module(f"cyclic_cli.objectives.{name}").NEEDS:
        assert need in (*OUTPUTS, *REFINED)
        if need not in ("embedding", "scale", "bias"):
            outputs[need] = {}
    loss = loss_of(name, outputs, batch)
    assert loss.item() == 0
    loss.backward()
