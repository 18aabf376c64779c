"""Computes the losses and gradients of a batch, as fast as the hardware allows.

Each of these measures can be switched off:

    micro-batches    a few images at once pass through the network, so that feature maps stay in the processor's caches
    parallel samples several micro-batches at once, each in a thread; a thread may use several cores
    fusion           convolution and pooling as one convolution (see `models/_layers.py`)
    channels last    the memory format that convolutions of processors and tensor cores prefer
    precision        bfloat16 where the hardware multiplies it
    kept memory      the C library's allocator keeps the pages of the feature maps after each step

The gradient is that of the whole batch: the gradients of micro-batches are summed, weighted by their share of it. Only
objectives that are a mean over samples (`PER_SAMPLE`) let a batch be divided into micro-batches. Processes also divide
the batch. Objectives that need whole batches then see the outputs of all processes. The plan depends on settings,
architecture and hardware, never on a measured time. The same command on the same machine therefore gives the same bits.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import repeat
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cyclic_cli.config import TrainConfig
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import UsageError
from cyclic_cli.models._layers import use_fusion
from cyclic_cli.workers import keep_freed_memory

MICRO_BATCH_PIXELS = 4 * 224 * 224  # at most, in all images and channels of a micro-batch
LIGHT = 5_000_000  # parameters; smaller models may have a gradient buffer for each micro-batch (20 MB)

Batch = tuple[dict[str, Tensor], dict[str, Tensor]]  # the inputs of objectives, and noise for the model


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the steps of a run are computed."""

    device: str
    precision: str
    processes: int
    sharded: bool  # whether each process holds a part of the model
    threads: int  # cores that work on a step, in each process
    parallel: str  # samples or operations
    side_by_side: int  # micro-batches at once, of `threads` / `side_by_side` cores each
    micro_batch: int  # images
    memory_format: str  # channels_last or contiguous
    fuse: bool
    keep_memory: bool
    compile: bool

    def described(self) -> str:
        """The plan in one line."""
        measures = {"fused": self.fuse, "memory kept": self.keep_memory, "compiled": self.compile}
        shared = f"{self.threads} threads" if self.threads > 1 else "one thread"
        parts = f"micro-batches of {self.micro_batch}"
        if self.side_by_side > 1:
            parts = f"{self.side_by_side} {parts} side by side"
        processes = f"{self.processes} processes of " if self.processes > 1 else ""
        return ", ".join([
            f"{self.device}, {self.precision}",
            *([processes + shared] if self.device == "cpu" or self.processes > 1 else []),
            parts,
            self.memory_format.replace("_", " "), *(name for name, taken in measures.items() if taken),
        ])  # fmt: skip


def make_plan(
    config: TrainConfig, ranks: Ranks, model: nn.Module, whole: Sequence[str], batch_size: int, pixels: int
) -> Plan:
    """Choose every value that the settings leave at auto or None.

    Args:
        config: The settings.
        ranks: The processes.
        model: Before Fabric wraps it.
        whole: The names of objectives that need whole batches.
        batch_size: Of all processes together.
        pixels: Of one image, in all channels.

    Raises:
        UsageError: a setting does not fit the objectives, the device or FSDP.
    """
    batch_size = ranks.largest_part(batch_size)
    on_cpu, threads = config.device == "cpu", torch.get_num_threads()
    if whole and (config.parallel == "samples" or (config.micro_batch or batch_size) < batch_size):
        raise UsageError(
            f"The objective {whole[0]!r} compares all samples of a batch, so the batch cannot be divided.",
            "Leave out micro_batch and parallel.",
        )
    if config.parallel == "samples" and not on_cpu:
        raise UsageError("parallel: samples works on CPUs only.", "Use --set parallel=operations.")
    if config.compile and on_cpu:  # torch 2.13: linear takes 2 times as long, residual 10, conv crashes
        raise UsageError("--compile works on GPUs only.", "Leave --compile out.")
    if config.parallel == "samples" and ranks.sharded:
        raise UsageError(
            "parallel: samples cannot be combined with FSDP.", "Use --set parallel=operations, or another strategy."
        )
    if config.memory_format == "channels_last" and ranks.sharded:
        raise UsageError("FSDP divides contiguous parameters only.", "Leave --set memory_format out.")
    light = sum(parameter.numel() for parameter in model.parameters()) <= LIGHT
    parallel = config.parallel
    if parallel == "auto":
        divisible = on_cpu and light and not whole and not ranks.sharded and batch_size > 1 and threads > 1
        parallel = "samples" if divisible else "operations"
    micro_batch = config.micro_batch or batch_size
    if config.micro_batch is None and on_cpu and light and not whole:
        shared = -(-batch_size // threads) if parallel == "samples" else batch_size
        micro_batch = max(1, min(shared, MICRO_BATCH_PIXELS // pixels))
    memory_format = config.memory_format
    if memory_format == "auto":
        convolutional = any(isinstance(layer, nn.Conv2d) for layer in model.modules())
        memory_format = "channels_last" if convolutional and not ranks.sharded else "contiguous"
    micro_batch = min(micro_batch, batch_size)
    side_by_side = min(threads, -(-batch_size // micro_batch)) if parallel == "samples" else 1
    fusable = any(hasattr(layer, "fuse") for layer in model.modules())
    return Plan(
        device=config.device, precision=config.precision, processes=ranks.world, sharded=ranks.sharded,
        threads=threads if on_cpu else 1, parallel=parallel, side_by_side=side_by_side,
        micro_batch=micro_batch, memory_format=memory_format, fuse=config.fuse and fusable,
        keep_memory=config.keep_memory and on_cpu, compile=config.compile,
    )  # fmt: skip


def prepare_model(model: nn.Module, plan: Plan) -> nn.Module:
    """The model with the fusion, memory format and compilation of the plan. Its parameters stay the same objects."""
    if plan.keep_memory:
        keep_freed_memory()
    use_fusion(model, plan.fuse)
    model.to(memory_format=layout(plan))  # type: ignore[call-overload]
    return torch.compile(model) if plan.compile else model  # type: ignore[return-value]


def layout(plan: Plan) -> torch.memory_format:
    return torch.channels_last if plan.memory_format == "channels_last" else torch.contiguous_format


class Gradients:
    """Computes the losses of a batch, and adds their gradient to that of the model's parameters."""

    def __init__(
        self,
        ranks: Ranks,
        model: Any,
        objectives: dict[str, ModuleType],
        weights: dict[str, float],
        plan: Plan,
        load: Callable[[np.ndarray, int], Batch],
    ) -> None:
        """
        Args:
            ranks: The processes.
            model: As Fabric wrapped it.
            objectives: Their files by name.
            weights: Of the objectives.
            plan: How steps are computed.
            load: Gives the batch of some samples, from their numbers and the epoch.
        """
        self.ranks, self.model, self.objectives, self.weights = ranks, model, objectives, weights
        self.plan, self.load = plan, load
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.threads = None
        if plan.parallel == "samples":
            cores = (plan.threads // plan.side_by_side,)
            self.threads = ThreadPoolExecutor(plan.side_by_side, initializer=torch.set_num_threads, initargs=cores)

    def __call__(self, chosen: np.ndarray, epoch: int) -> dict[str, float]:
        """This process's contribution to each loss of the batch. The gradients are those of the whole batch.

        `chosen` (N,) are the numbers of the samples of all processes.
        """
        size, part = self.plan.micro_batch, self.ranks.part(chosen)
        steps = range(
            0, self.ranks.largest_part(len(chosen)), size
        )  # equally many in every process, as they communicate
        parts = [part[first : first + size] for first in steps]
        if self.threads is None:
            losses = [self._accumulate(some, chosen, epoch, last=some is parts[-1]) for some in parts]
        else:
            losses = self._side_by_side([some for some in parts if len(some)], chosen, epoch)
        return {name: sum(values[name] for values in losses) for name in self.objectives}

    def close(self) -> None:
        if self.threads is not None:
            self.threads.shutdown()

    def _accumulate(self, part: np.ndarray, chosen: np.ndarray, epoch: int, last: bool) -> dict[str, float]:
        fabric, world = self.ranks.fabric, self.ranks.world
        context = fabric.no_backward_sync(self.model, enabled=not last) if world > 1 else nullcontext()
        with context:
            total, values = self._losses(part, chosen, epoch)
            fabric.backward(total * world)  # processes average their gradients
        return {name: float(value) for name, value in values.items()}

    def _side_by_side(self, parts: list[np.ndarray], chosen: np.ndarray, epoch: int) -> list[dict[str, float]]:
        assert self.threads is not None
        losses: list[dict[str, float]] = []
        results = self.threads.map(self._gradients, parts, repeat(chosen), repeat(epoch))  # in the order of the parts
        sums: list[Tensor | None] = [None] * len(self.parameters)
        for values, gradients in results:
            losses.append({name: float(value) for name, value in values.items()})
            for number, gradient in enumerate(gradients):
                if gradient is not None:
                    total = sums[number]
                    sums[number] = gradient if total is None else total.add_(gradient)
        for parameter, gradient in zip(self.parameters, self._of_all_processes(sums), strict=True):
            if gradient is not None:
                # A fused optimizer reads parameter and gradient in memory order, so both need the same memory format.
                # `autograd.grad` does not guarantee that.
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter).copy_(gradient)
                else:
                    parameter.grad.add_(gradient)
        return losses or [dict.fromkeys(self.objectives, 0.0)]

    def _of_all_processes(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """The sums of gradients over the processes, in one exchange. None stands for a parameter without a gradient."""
        if self.ranks.world == 1:
            return gradients
        exists = torch.tensor([float(gradient is not None) for gradient in gradients])
        filled = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self.parameters, gradients, strict=True)
        ]
        flat = self.ranks.summed(torch.cat([*(gradient.flatten() for gradient in filled), exists]))
        *sums, counts = torch.split(flat, [*(gradient.numel() for gradient in filled), len(exists)])
        return [
            gradient.copy_(total.view_as(gradient)) if count else None
            for gradient, total, count in zip(filled, sums, counts.tolist(), strict=True)
        ]

    def _gradients(
        self, part: np.ndarray, chosen: np.ndarray, epoch: int
    ) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:
        """Losses, and gradients or None by parameter. They are returned, because threads share the parameters."""
        total, values = self._losses(part, chosen, epoch)
        return values, torch.autograd.grad(total, self.parameters, allow_unused=True)

    def _forward(self, image: Tensor, **noise: Tensor) -> dict[str, Tensor]:
        if self.threads is None:
            return self.model(image, **noise)  # type: ignore[no-any-return]
        # Fabric's wrapper requires its own backward pass, which threads cannot share.
        with self.ranks.fabric.autocast():
            outputs = self.model.module(image, **noise)
        return {name: output.to(torch.promote_types(output.dtype, torch.float32)) for name, output in outputs.items()}

    def _losses(self, part: np.ndarray, chosen: np.ndarray, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The contribution of the samples `part` to the total loss of a batch, and, detached, to each single loss.

        A process without samples computes one sample with the weight 0, because all processes communicate.
        """
        share = len(part) / len(chosen)
        batch, noise = self.load(part if len(part) else chosen[:1], epoch)
        batch["image"] = batch["image"].contiguous(memory_format=layout(self.plan))
        outputs = self._forward(batch["image"], **noise)
        added = {
            name: self._added(objective, outputs, batch, share, chosen) for name, objective in self.objectives.items()
        }
        total = torch.stack([self.weights[name] * loss for name, loss in added.items()]).sum()
        if not len(part):
            total = total + 0 * sum(output.sum() for output in outputs.values())
        return total, {name: loss.detach() for name, loss in added.items()}

    def _added(
        self,
        objective: ModuleType,
        outputs: dict[str, Tensor],
        batch: dict[str, Tensor],
        share: float,
        chosen: np.ndarray,
    ) -> Tensor:
        if objective.PER_SAMPLE:
            loss: Tensor = objective.loss(outputs, batch) * share
            return loss
        count = round(share * len(chosen))
        together = [
            {name: self.ranks.gathered(rows[:count], len(chosen)) for name, rows in values.items()}
            for values in (outputs, batch)
        ]
        # Every process computes the loss of the whole batch, so each counts a share of it. The backward pass collects
        # the gradient from all of them.
        return objective.loss(*together) / self.ranks.world  # type: ignore[no-any-return]
