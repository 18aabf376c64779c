"""Devices, precision and processes through Lightning Fabric. The only module that knows it and `torch.distributed`.

A run is one process or several, started by `--devices`, by torchrun or by `srun`. Each takes its part of every batch
(`Ranks.part`); what the parts come to is added up, so that the mathematics is that of one process with the whole batch:

    ddp     every process holds the whole model (Li et al., "PyTorch Distributed", VLDB 2020)
    fsdp    parameters, gradients and optimizer are divided among the processes (Zhao et al., VLDB 2023; FSDP2 of torch)
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cyclic_cli.config import available_cpus, in_slurm_step, local_processes, threads_each
from cyclic_cli.errors import CyclicError, UsageError

UNIT = 1_000_000  # parameters from which a layer is gathered by itself, so that few are whole at a time

Value = TypeVar("Value")


def resolve(device: str, precision: str) -> tuple[str, str]:
    """What `auto` means here: cpu or cuda, and 32 or bf16 (bf16 where the hardware multiplies matrices of it).

    Raises:
        CyclicError: CUDA is asked for and not there.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise CyclicError("No CUDA device can be used here.", "Take --device cpu or auto.")
    if device == "auto":
        device = "cuda" if cuda else "cpu"
    if precision == "auto":
        supported = torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else _cpu_has_bf16()
        precision = "bf16" if supported else "32"
    return device, precision


def _cpu_has_bf16() -> bool:
    """Whether this processor multiplies matrices of bfloat16 (AMX; Arm's). Vectors of it (AVX-512) are no gain.

    With `avx512_bf16` alone, `conv`, `deep`, `residual` and `vae` train at 0.6 to 0.8 of the rate of float32.
    """
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return False
    return not {"amx_bf16", "bf16"}.isdisjoint(words)


def launch(device: str, precision: str, devices: int | None = None, strategy: str = "auto") -> "Ranks":
    """Start the processes of a run, or join those that torchrun or `srun` started.

    Args:
        device, precision: As `resolve` gives them.
        devices: Processes on this machine, a GPU each; None: as many as the launcher started, else one.
        strategy: ddp, fsdp, or auto, which is ddp for several processes.

    Raises:
        UsageError: a launcher started another number than `devices`.
        CyclicError: there are fewer GPUs than processes.
    """
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")  # of one input channel
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)

    started, nodes = local_processes()
    if started and devices not in (None, started):
        raise UsageError(
            f"--devices {devices}, but the launcher started {started} processes here.", "Leave --devices out."
        )
    processes = started or devices or 1
    if device == "cuda" and processes > torch.cuda.device_count():
        raise CyclicError(
            f"{processes} processes, but {torch.cuda.device_count()} GPUs here.", "Start a process for each GPU."
        )
    use_whole_float32()
    threads = None if "OMP_NUM_THREADS" in os.environ else threads_each(processes)
    fabric = Fabric(
        accelerator=device, devices=processes, num_nodes=nodes, strategy=_strategy(strategy, processes * nodes),
        plugins=[_environment(), _precision(precision, device)],
    )  # fmt: skip
    fabric.launch()
    if threads is not None:  # after Fabric, which sets them too
        torch.set_num_threads(threads)
    return Ranks(fabric, fabric.global_rank, fabric.world_size, sharded=strategy == "fsdp")


def use_available_threads() -> None:
    """Let torch use the cores this process may use, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cpus())


def use_whole_float32() -> None:
    """Let a GPU convolve float32 as float32. Left alone, torch rounds to the 10 bits of TF32 (in embeddings 7e-4)."""
    torch.backends.cudnn.allow_tf32 = False


def _environment() -> Any:
    """Who started the processes, as Fabric sees it: asked by itself it would take any shell of a job for `srun`."""
    from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if "TORCHELASTIC_RUN_ID" in os.environ:
        return TorchElasticEnvironment()
    if not in_slurm_step():
        return LightningEnvironment()
    here, nodes = local_processes()  # of the step, which the job's variables need not tell
    os.environ |= {"SLURM_NTASKS_PER_NODE": str(here), "SLURM_NNODES": str(nodes), "SLURM_NTASKS": str(here * nodes)}
    job, step = int(os.environ.get("SLURM_JOB_ID", 0)), int(os.environ.get("SLURM_STEP_ID", 0))
    os.environ.setdefault("MASTER_PORT", str(15000 + (8 * job + step) % 15000))  # steps side by side, jobs too
    return SLURMEnvironment(auto_requeue=False)


def _precision(name: str, device: str) -> Any:
    """float32, or products in bfloat16 beside weights in float32."""
    from lightning_fabric.plugins import MixedPrecision, Precision

    class BFloat16(MixedPrecision):  # type: ignore[misc]
        """Scales no loss, so a gradient may also be had without `Fabric.backward`: those of single objectives are."""

        backward = Precision.backward

    return Precision() if name == "32" else BFloat16("bf16-mixed", device)


def _strategy(name: str, processes: int) -> Any:
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    if name == "fsdp":
        return ModelParallelStrategy(_sharded, data_parallel_size=processes, tensor_parallel_size=1)
    if name == "ddp" or processes > 1:
        return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)  # a loss may not reach all
    return "auto"


def _sharded(module: nn.Module, mesh: Any) -> nn.Module:
    """Divide a model's parameters among the processes: large layers by themselves, the rest together."""
    from torch.distributed.fsdp import fully_shard

    group = mesh["data_parallel"]
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.weight.numel() >= UNIT:
            fully_shard(layer, mesh=group)
    fully_shard(module, mesh=group)
    return module


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as one of them sees them; alone, every sum is its own."""

    fabric: Any
    rank: int
    world: int
    sharded: bool = False  # by FSDP

    @property
    def is_main(self) -> bool:
        """Whether this is the process that talks and writes."""
        return self.rank == 0

    def part(self, chosen: np.ndarray) -> np.ndarray:
        """This process's part of a batch's samples (N,): neighbours, as many as the others' or one more or less."""
        return np.array_split(chosen, self.world)[self.rank]

    def largest_part(self, samples: int) -> int:
        return -(-samples // self.world)

    def share_weights(self, module: nn.Module) -> None:
        """Give the model of the first process to all of them, before any of them is set up."""
        if self.world > 1:
            module.load_state_dict(self.fabric.broadcast(module.state_dict()))

    def agreed(self, decide: Callable[[], Value]) -> Value:
        """What the first process decides, in all of them; its CyclicError is raised in all of them."""
        if self.world == 1:
            return decide()
        outcome: Value | CyclicError | None = None
        if self.is_main:
            try:
                outcome = decide()
            except CyclicError as error:
                outcome = error
        outcome = self.fabric.broadcast(outcome)
        if isinstance(outcome, CyclicError):
            outcome.everywhere = True
            raise outcome
        return outcome  # type: ignore[return-value]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Turn the way in which an exchange fails when another process has ended into a CyclicError."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not any(word in str(error).lower() for word in ("peer", "gloo", "nccl")):
                raise
            raise CyclicError(
                "Another process of the run has ended.", "It says why. The same command with --resume auto continues."
            ) from error

    def summed(self, values: Tensor) -> Tensor:
        """The sum of tensors of one shape over the processes."""
        if self.world == 1:
            return values
        total: Tensor = self.fabric.all_reduce(values, reduce_op="sum")
        return total

    def gathered(self, rows: Tensor, samples: int) -> Tensor:
        """The rows (N, ...) of a whole batch of N samples from those of each process's part, with their gradient."""
        if self.world == 1:
            return rows
        return self._gathered(rows, [len(part) for part in np.array_split(np.arange(samples), self.world)])

    def gathered_tree(self, tree: dict[Any, Any]) -> dict[Any, Any]:
        """The rows of all processes, with their gradient, of every tensor of a nested table that has rows.

        Processes may have other numbers of rows, but the same tables. A tensor without a dimension stays as it is.
        """
        if self.world == 1:
            return tree
        rows = [leaf for leaf in _leaves(tree) if leaf.dim()]
        counts = self.fabric.all_gather(torch.tensor([len(leaf) for leaf in rows], device=self.fabric.device))
        whole = iter([self._gathered(leaf, count) for leaf, count in zip(rows, counts.T.tolist(), strict=True)])
        return _replaced(tree, lambda leaf: next(whole) if leaf.dim() else leaf)

    def untouched(self, tree: dict[Any, Any]) -> Tensor | float:
        """A zero that a gradient reaches all tensors of a nested table through: processes wait for all of them."""
        return 0.0 if self.world == 1 else 0 * torch.stack([leaf.sum().float() for leaf in _leaves(tree)]).sum()

    def _gathered(self, rows: Tensor, counts: list[int]) -> Tensor:
        padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])
        together: Tensor = self.fabric.all_gather(padded, sync_grads=rows.requires_grad)
        return torch.cat([together[rank, :count] for rank, count in enumerate(counts)])

    # ---------------------------------------------------------------------------------------------- state

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        """All weights of a model by name, copied to the first process; divided ones are collected by all together."""
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import get_model_state_dict

            return get_model_state_dict(module, options=_whole())  # type: ignore[return-value]
        return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}

    def load_weights(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Take over weights by name, in every process."""
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import set_model_state_dict

            set_model_state_dict(module, dict(weights), options=_whole())
        else:
            module.load_state_dict(weights)

    def moments(self, module: nn.Module, optimizer: Any) -> dict[int, dict[str, Tensor]]:
        """An optimizer's state by the number of the parameter in its groups, copied as `weights` are."""
        if not self.sharded:
            state = optimizer.state_dict()["state"]
            return {number: {name: value.detach().to("cpu", copy=True) for name, value in values.items()}
                    for number, values in state.items()}  # fmt: skip
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        whole: Any = get_optimizer_state_dict(module, _bare(optimizer), options=_whole())
        if not whole:  # not the first process
            return {}
        names = _names(module, optimizer)
        return {number: dict(whole["state"][name]) for number, name in enumerate(names) if name in whole["state"]}

    def load_moments(self, module: nn.Module, optimizer: Any, state: dict[int, dict[str, Tensor]]) -> None:
        """Take over an optimizer's state by the number of the parameter, in every process."""
        empty = optimizer.state_dict()
        if not self.sharded:
            optimizer.load_state_dict({**empty, "state": state})
            return
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        names = _names(module, optimizer)
        groups = [{**group, "params": [names[number] for number in group["params"]]} for group in empty["param_groups"]]
        whole: Any = {"state": {names[number]: values for number, values in state.items()}, "param_groups": groups}
        set_optimizer_state_dict(module, _bare(optimizer), whole, options=_whole())


def _leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors of a nested table, in order."""
    if isinstance(tree, dict):
        for inner in tree.values():
            yield from _leaves(inner)
    else:
        yield tree


def _replaced(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nested table with every tensor changed, in order."""
    if isinstance(tree, dict):
        return {name: _replaced(inner, change) for name, inner in tree.items()}
    return change(tree)


def _whole() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def _bare(optimizer: Any) -> Any:
    """The optimizer inside Fabric's."""
    return getattr(optimizer, "optimizer", optimizer)


def _names(module: nn.Module, optimizer: Any) -> list[str]:
    """The names of the parameters in the order of an optimizer's groups."""
    by_identity = {id(parameter): name for name, parameter in module.named_parameters()}
    return [by_identity[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
