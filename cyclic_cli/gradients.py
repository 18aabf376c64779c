"""Losses and gradients of a batch, as fast as the hardware gives them; every measure can be switched off.

    micro-batches    a few images at once pass through the network, so that their maps stay in the processor's caches
    samples          micro-batches side by side, one a core, each by a thread of its own that torch does not split up
    fusion           convolution and pooling as one convolution (see `models/_layers.py`)
    channels last    the memory format that convolutions of processors and tensor cores prefer
    precision        bfloat16 where the hardware multiplies it
    kept memory      the C library's allocator does not give the pages of the maps back after each step

The mathematics is that of the whole batch: gradients of micro-batches add up, weighted by their share of it. So only
objectives of each sample alone (`PER_SAMPLE`) let a batch be divided. What is chosen depends on settings, architecture
and hardware, never on a measured time: the same command on the same machine gives the same bits.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cyclic_cli.config import TrainConfig
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.models._layers import use_fusion
from cyclic_cli.workers import keep_freed_memory

MICRO_BATCH_PIXELS = 4 * 224 * 224  # of the images of a micro-batch
LIGHT = 5_000_000  # parameters up to which it pays that each micro-batch has gradients of its own

Batch = tuple[dict[str, Tensor], dict[str, Tensor]]  # what the objectives see, and the noise a model is given


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the steps of a run are computed."""

    device: str
    precision: str
    threads: int  # cores that work on a step
    parallel: str  # samples or operations
    micro_batch: int  # images
    memory_format: str  # channels_last or contiguous
    fuse: bool
    keep_memory: bool
    compile: bool

    def described(self) -> str:
        """The plan in one line."""
        measures = {"fused": self.fuse, "memory kept": self.keep_memory, "compiled": self.compile}
        share = "samples side by side" if self.parallel == "samples" else "operations split up"
        shared = f"{self.threads} threads, {share}" if self.threads > 1 else "one thread"
        return ", ".join([
            f"{self.device}, {self.precision}", shared, f"micro-batches of {self.micro_batch}",
            self.memory_format.replace("_", " "), *(name for name, taken in measures.items() if taken),
        ])  # fmt: skip


def make_plan(
    config: TrainConfig, model: nn.Module, objectives: dict[str, ModuleType], batch_size: int, pixels: int
) -> Plan:
    """Choose what the settings leave open. `pixels` are those of one image, of all channels.

    Raises:
        UsageError: a setting divides the batch, and an objective needs it whole; or threads on a GPU are asked for.
    """
    whole = [name for name, objective in objectives.items() if not objective.PER_SAMPLE]
    on_cpu, threads = config.device == "cpu", torch.get_num_threads()
    if whole and (config.parallel == "samples" or (config.micro_batch or batch_size) < batch_size):
        raise UsageError(f"The objective {whole[0]!r} needs whole batches.", "Leave --set micro_batch, parallel out.")
    if config.parallel == "samples" and (not on_cpu or config.compile):
        raise UsageError("parallel: samples is for processors, without --compile.", "Take --set parallel=operations.")
    light = sum(parameter.numel() for parameter in model.parameters()) <= LIGHT
    parallel = config.parallel
    if parallel == "auto":
        divisible = on_cpu and light and not whole and not config.compile and batch_size > 1 and threads > 1
        parallel = "samples" if divisible else "operations"
    micro_batch = config.micro_batch or batch_size
    if config.micro_batch is None and on_cpu and light and not whole:
        shared = -(-batch_size // threads) if parallel == "samples" else batch_size
        micro_batch = max(1, min(shared, MICRO_BATCH_PIXELS // pixels))
    memory_format = config.memory_format
    if memory_format == "auto":
        convolutional = any(isinstance(layer, nn.Conv2d) for layer in model.modules())
        memory_format = "channels_last" if convolutional else "contiguous"
    return Plan(
        device=config.device, precision=config.precision, threads=threads if on_cpu else 1, parallel=parallel,
        micro_batch=min(micro_batch, batch_size), memory_format=memory_format, fuse=config.fuse,
        keep_memory=config.keep_memory and on_cpu, compile=config.compile,
    )  # fmt: skip


def prepare_model(model: nn.Module, plan: Plan) -> nn.Module:
    """The model in the form in which the plan computes it; its parameters stay the same objects.

    Raises:
        CyclicError: it shall be compiled for the processor, and there is no compiler.
    """
    if plan.keep_memory:
        keep_freed_memory()
    use_fusion(model, plan.fuse)
    model.to(memory_format=layout(plan))  # type: ignore[call-overload]
    if not plan.compile:
        return model
    if plan.device == "cpu" and not any(map(shutil.which, filter(None, [os.environ.get("CXX"), "g++", "clang++"]))):
        raise CyclicError("--compile needs a C++ compiler here.", "Install g++, or leave --compile out.")
    return torch.compile(model)  # type: ignore[return-value]


def layout(plan: Plan) -> torch.memory_format:
    return torch.channels_last if plan.memory_format == "channels_last" else torch.contiguous_format


class Gradients:
    """Computes the losses of a batch and adds their gradient to that of the model's parameters."""

    def __init__(
        self,
        fabric: Any,
        model: Any,
        objectives: dict[str, ModuleType],
        weights: dict[str, float],
        plan: Plan,
        load: Callable[[np.ndarray, int], Batch],
    ) -> None:
        """The model is as Fabric set it up; `load` makes the batch of some samples, by numbers and epoch."""
        self.fabric, self.model, self.objectives, self.weights = fabric, model, objectives, weights
        self.plan, self.load = plan, load
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.threads = None
        if plan.parallel == "samples":
            self.threads = ThreadPoolExecutor(plan.threads, initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self, chosen: np.ndarray, epoch: int) -> dict[str, float]:
        """The losses of the samples numbered by `chosen` (N,): every objective by its name, and their sum `total`."""
        size = self.plan.micro_batch
        parts = [chosen[first : first + size] for first in range(0, len(chosen), size)]
        shares = [len(part) / len(chosen) for part in parts]
        if self.threads is None:
            losses = [self._accumulate(part, share, epoch) for part, share in zip(parts, shares, strict=True)]
        else:
            losses = []
            for values, gradients in self.threads.map(self._gradients, parts, shares, repeat(epoch)):
                losses.append(values)
                for parameter, gradient in zip(self.parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        names = losses[0]
        return {
            name: sum(share * float(part[name]) for share, part in zip(shares, losses, strict=True)) for name in names
        }

    def close(self) -> None:
        if self.threads is not None:
            self.threads.shutdown()

    def _accumulate(self, part: np.ndarray, share: float, epoch: int) -> dict[str, Tensor]:
        losses = self._losses(part, epoch)
        self.fabric.backward(losses["total"] * share)
        return {name: loss.detach() for name, loss in losses.items()}

    def _gradients(
        self, part: np.ndarray, share: float, epoch: int
    ) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:
        """Losses and gradients (None for a parameter without) as values: other threads read the parameters."""
        losses = self._losses(part, epoch)
        gradients = torch.autograd.grad(losses["total"] * share, self.parameters, allow_unused=True)
        return {name: loss.detach() for name, loss in losses.items()}, gradients

    def _forward(self, image: Tensor, **noise: Tensor) -> dict[str, Tensor]:
        if self.threads is None:
            return self.model(image, **noise)  # type: ignore[no-any-return]
        with self.fabric.autocast():  # Fabric's own module wants its own backward pass, which threads cannot share
            outputs = self.model.module(image, **noise)
        return {name: output.to(torch.promote_types(output.dtype, torch.float32)) for name, output in outputs.items()}

    def _losses(self, part: np.ndarray, epoch: int) -> dict[str, Tensor]:
        batch, noise = self.load(part, epoch)
        batch["image"] = batch["image"].contiguous(memory_format=layout(self.plan))
        outputs = self._forward(batch["image"], **noise)
        losses = {name: objective.loss(outputs, batch) for name, objective in self.objectives.items()}
        losses["total"] = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        return losses
