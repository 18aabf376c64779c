"""Gradients equal those of the whole batch, however they are computed; and which way of computing is chosen."""

import threading
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cyclic_cli import distributed
from cyclic_cli.config import TrainConfig
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import UsageError
from cyclic_cli.models import conv
from cyclic_cli.models._layers import use_fusion
from cyclic_cli.registry import names
from cyclic_cli.training import gradients as gradients_module
from cyclic_cli.training.gradients import Batch, Gradients, Plan, make_plan, prepare_model

BATCH = 7  # a prime: micro-batches of 2 and 3 leave an uneven last one
SIDE = 64
PLAIN = Plan(
    device="cpu", precision="32", processes=1, sharded=False,
    threads=2, parallel="operations", side_by_side=2, micro_batch=BATCH,
    memory_format="contiguous", fuse=False, keep_memory=False, compile=False,
)  # fmt: skip


def objectives_of(name: str) -> tuple[dict[str, ModuleType], dict[str, float]]:
    """The objectives of an architecture, and two more, with their weights."""
    weights = {**import_module(f"cyclic_cli.models.{name}").OBJECTIVES, "absolute": 0.2, "similarity": 0.1}
    return {objective: import_module(f"cyclic_cli.objectives.{objective}") for objective in weights}, weights


def model_of(name: str, side: int = SIDE) -> nn.Module:
    torch.manual_seed(0)
    architecture = import_module(f"cyclic_cli.models.{name}")
    model: nn.Module = architecture.Model(architecture.Config(), (1, side, side))
    return model


# Fabric would cast the images to float32. Tests further below use the real Fabric.
WITHOUT_FABRIC = Ranks(SimpleNamespace(backward=lambda loss: loss.backward(), autocast=nullcontext), 0, 1)


class Wrapped(nn.Module):
    """A model wrapped in another module, as Fabric does it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, **noise: Any) -> Any:
        return self.module(*inputs, **noise)


@dataclass
class Case:
    """A model in double precision, with its input images and noise."""

    name: str
    model: nn.Module
    images: Tensor
    noise: Tensor

    def load(self, chosen: np.ndarray, epoch: int) -> Batch:
        variational = "log_variance" in import_module(f"cyclic_cli.models.{self.name}").OUTPUTS
        return {"image": self.images[chosen]}, {"noise": self.noise[chosen]} if variational else {}

    def computed(self, plan: Plan, times: int = 1) -> tuple[dict[str, float], list[Tensor]]:
        """Losses and gradients of all images, computed by a plan."""
        gradients = Gradients(
            WITHOUT_FABRIC, Wrapped(prepare_model(self.model, plan)),
            *objectives_of(self.name), plan, self.load,
        )  # fmt: skip
        self.model.zero_grad()
        for _ in range(times):
            losses = gradients(np.arange(BATCH), 0)
        gradients.close()
        return losses, [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]

    def expected(self) -> tuple[dict[str, float], list[Tensor]]:
        """The same by plain torch, without the module under test."""
        use_fusion(self.model, False)
        objectives, weights = objectives_of(self.name)
        batch, noise = self.load(np.arange(BATCH), 0)
        outputs = self.model(batch["image"], **noise)
        losses = {name: objective.loss(outputs, batch) for name, objective in objectives.items()}
        total = sum(weights[name] * loss for name, loss in losses.items())
        gradients = torch.autograd.grad(total, list(self.model.parameters()))
        return {name: float(loss) for name, loss in losses.items()}, list(gradients)


@pytest.fixture(scope="module", params=names("models"))
def case(request: pytest.FixtureRequest) -> Case:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(BATCH, 1, SIDE // 8, SIDE // 8, generator=generator)
    images = nn.functional.interpolate(images, scale_factor=8, mode="bilinear")
    model = model_of(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "ITERATIONS", 10)
        model.initialise(iter([images]))
    noise = torch.randn(BATCH, getattr(model, "latent", 1), generator=generator)
    return Case(request.param, model.double(), images.double(), noise.double())


def assert_equal(found: tuple[dict[str, float], list[Tensor]], expected: tuple[dict[str, float], list[Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-10)
    for gradient, wanted in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("parallel", ["samples", "operations"])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, BATCH])
def test_gradients_are_those_of_the_whole_batch(case: Case, micro_batch: int, parallel: str) -> None:
    expected = case.expected()
    assert all(gradient.any() for gradient in expected[1])
    plan = replace(PLAIN, micro_batch=micro_batch, parallel=parallel)
    assert_equal(case.computed(plan), expected)


@pytest.mark.parametrize("parallel", ["samples", "operations"])
@pytest.mark.parametrize(
    ("fuse", "memory_format"), [(True, "contiguous"), (True, "channels_last"), (False, "channels_last")]
)
def test_fusion_and_memory_format_change_nothing_but_rounding(
    case: Case, fuse: bool, memory_format: str, parallel: str
) -> None:
    plan = replace(PLAIN, micro_batch=3, parallel=parallel, fuse=fuse, memory_format=memory_format)
    assert_equal(case.computed(plan), case.expected())


@pytest.mark.parametrize("parallel", ["samples", "operations"])
def test_gradients_are_added_to_existing_ones(case: Case, parallel: str) -> None:
    losses, gradients = case.expected()
    plan = replace(PLAIN, micro_batch=2, parallel=parallel)
    assert_equal(case.computed(plan, times=2), (losses, [2 * gradient for gradient in gradients]))


def test_the_parameters_stay_the_same_objects(case: Case) -> None:
    before = list(case.model.parameters())
    computed = prepare_model(case.model, replace(PLAIN, memory_format="channels_last", fuse=True))
    assert all(one is other for one, other in zip(before, computed.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_threads_compute_the_bits_of_one_thread(precision: str) -> None:
    ranks = distributed.launch("cpu", precision)
    images = torch.rand(6, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    found = []
    for parallel in ("operations", "samples", "samples"):
        plan = replace(PLAIN, precision=precision, micro_batch=1, parallel=parallel, fuse=True)
        module = model_of("conv")
        model = ranks.fabric.setup_module(prepare_model(module, plan))
        gradients = Gradients(
            ranks, model, *objectives_of("conv"), plan, lambda chosen, epoch: ({"image": images[chosen]}, {})
        )
        losses = gradients(np.arange(6), 0)
        gradients.close()
        found.append((losses, [parameter.grad for parameter in module.parameters()]))
    for losses, values in found[1:]:
        assert losses == found[0][0]
        assert all(torch.equal(value, first) for value, first in zip(values, found[0][1], strict=True))


@pytest.mark.parametrize("parallel", ["samples", "operations"])
def test_parameters_that_a_loss_does_not_reach_get_no_gradient(parallel: str) -> None:
    plan, model = replace(PLAIN, micro_batch=1, parallel=parallel), model_of("vae")
    objectives = {"divergence": import_module("cyclic_cli.objectives.divergence")}
    images = torch.rand(3, 1, SIDE, SIDE)
    gradients = Gradients(
        WITHOUT_FABRIC, Wrapped(model), objectives, {"divergence": 1.0}, plan,
        lambda chosen, epoch: ({"image": images[chosen]}, {}),
    )  # fmt: skip
    gradients(np.arange(3), 0)
    gradients.close()
    assert model.mean_head.weight.grad.any()
    assert model.expansion.weight.grad is None


def test_fusion_can_be_switched_off_in_every_layer() -> None:
    for name in ("conv", "deep"):
        model, images = model_of(name), torch.rand(2, 1, SIDE, SIDE)
        switched = [layer for layer in model.modules() if hasattr(layer, "fuse")]
        assert switched
        with torch.no_grad():
            fused = model(images)["reconstruction"]
            use_fusion(model, False)
            assert not any(layer.fuse for layer in switched)
            torch.testing.assert_close(model(images)["reconstruction"], fused, rtol=1e-4, atol=1e-5)
            use_fusion(model, True)
        assert all(layer.fuse for layer in switched)


# ---------------------------------------------------------------------------------------------------------- plans


def plan_of(
    arch: str, monkeypatch: pytest.MonkeyPatch, threads: int = 2, batch_size: int = 64, **settings: Any
) -> Plan:
    """The plan for an architecture at 224 pixels on a machine with `threads` cores."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    config = TrainConfig(**{"arch": arch, "device": "cpu", "precision": "32", **settings})
    whole = [name for name, one in objectives_of(arch)[0].items() if not one.PER_SAMPLE]
    return make_plan(config, WITHOUT_FABRIC, model_of(arch, 224), whole, batch_size, 224 * 224)


def test_a_light_network_takes_samples_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("conv", monkeypatch)
    assert (plan.parallel, plan.micro_batch, plan.threads) == ("samples", 4, 2)
    assert (plan.memory_format, plan.fuse, plan.keep_memory, plan.compile) == ("channels_last", True, True, False)
    assert plan_of("conv", monkeypatch, batch_size=4).micro_batch == 2  # so that both threads have images
    assert plan_of("conv", monkeypatch, threads=16, batch_size=4).micro_batch == 1
    described = "cpu, 32, 2 threads, 2 micro-batches of 4 side by side, channels last, fused, memory kept"
    assert plan.described() == described


def test_more_cores_than_samples_split_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("conv", monkeypatch, threads=16, batch_size=4)
    assert (plan.micro_batch, plan.side_by_side, plan.threads) == (1, 4, 16)
    assert "16 threads, 4 micro-batches of 1 side by side" in plan.described()
    monkeypatch.undo()
    seen: set[tuple[int, int]] = set()
    together = threading.Barrier(4)

    def load(chosen: np.ndarray, epoch: int) -> Batch:
        together.wait(30)  # passes only if four threads are here at once
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return {"image": torch.rand(1, 1, SIDE, SIDE)}, {}

    gradients = Gradients(WITHOUT_FABRIC, Wrapped(model_of("conv")), *objectives_of("conv"), plan, load)
    gradients(np.arange(4), 0)
    gradients.close()
    assert len({thread for thread, _ in seen}) == 4
    assert {cores for _, cores in seen} == {4}


def test_the_network_sees_images_in_its_memory_format() -> None:
    seen = []
    model = Wrapped(model_of("deep"))
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].stride()))
    plan = replace(PLAIN, memory_format="channels_last")
    images = torch.rand(2, 3, SIDE, SIDE)
    gradients = Gradients(
        WITHOUT_FABRIC, model, *objectives_of("deep"), plan, lambda chosen, epoch: ({"image": images[chosen]}, {})
    )
    with pytest.raises(RuntimeError, match="channels"):  # the network has one
        gradients(np.arange(2), 0)
    assert seen == [images.contiguous(memory_format=torch.channels_last).stride()]


@pytest.mark.parametrize("keep", [True, False])
def test_the_allocator_keeps_memory_if_the_plan_asks_for_it(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(gradients_module, "keep_freed_memory", lambda: called.append(1))
    prepare_model(model_of("conv"), replace(PLAIN, keep_memory=keep))
    assert bool(called) == keep


def test_a_heavy_network_takes_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("linear", monkeypatch)
    assert (plan.parallel, plan.micro_batch, plan.memory_format) == ("operations", 64, "contiguous")
    assert plan_of("linear", monkeypatch, micro_batch=8).micro_batch == 8
    assert plan_of("linear", monkeypatch, parallel="samples").parallel == "samples"


def test_one_thread_takes_micro_batches_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("conv", monkeypatch, threads=1)
    assert (plan.parallel, plan.micro_batch, plan.threads) == ("operations", 4, 1)
    assert "one thread" in plan.described()


def test_a_gpu_takes_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("conv", monkeypatch, device="cuda", precision="bf16")
    assert (plan.device, plan.precision, plan.parallel, plan.micro_batch) == ("cuda", "bf16", "operations", 64)
    assert (plan.threads, plan.memory_format, plan.keep_memory) == (1, "channels_last", False)
    assert plan_of("conv", monkeypatch, device="cuda", micro_batch=16).micro_batch == 16


def test_networks_are_compiled_on_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("conv", monkeypatch, device="cuda", compile=True)
    assert (plan.parallel, plan.compile) == ("operations", True)
    with pytest.raises(UsageError, match="--compile works on GPUs only"):
        plan_of("conv", monkeypatch, device="cpu", compile=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("micro_batch", 3), ("parallel", "operations"), ("memory_format", "contiguous"),
        ("memory_format", "channels_last"), ("fuse", False), ("keep_memory", False),
    ],
)  # fmt: skip
def test_every_choice_can_be_overruled(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for arch in ("conv", "linear"):
        assert getattr(plan_of(arch, monkeypatch, **{name: value}), name) == value


@pytest.mark.parametrize("settings", [{"micro_batch": 2}, {"parallel": "samples"}], ids=str)
def test_a_batch_is_not_divided_for_an_objective_of_whole_batches(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("cyclic_cli.objectives.similarity"), "PER_SAMPLE", False)
    with pytest.raises(UsageError, match="'similarity' compares all samples of a batch"):
        plan_of("conv", monkeypatch, **settings)
    plan = plan_of("conv", monkeypatch)
    assert (plan.parallel, plan.micro_batch) == ("operations", 64)
    assert plan_of("conv", monkeypatch, micro_batch=64).micro_batch == 64


def test_samples_side_by_side_are_for_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="parallel: samples"):
        plan_of("conv", monkeypatch, parallel="samples", device="cuda")
