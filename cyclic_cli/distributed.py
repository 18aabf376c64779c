"""Device, precision and processes of a training run, through Lightning Fabric and `torch.distributed`.

No other module imports these two. A run is one process or several, started by `--devices`, torchrun or `srun`. Each
process takes its part of every batch (`Ranks.part`). Sums over the parts are all-reduced, so that the result equals
that of one process with the whole batch, except for rounding. There are two strategies:

    ddp     every process holds the whole model (Li et al., "PyTorch Distributed", VLDB 2020)
    fsdp    parameters, gradients and optimizer state are sharded among the processes (Zhao et al., VLDB 2023; FSDP2)
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from cyclic_cli.environment import available_cpus, in_slurm_step, local_processes, threads_each
from cyclic_cli.errors import CyclicError, UsageError

LARGE_LAYER = 1_000_000  # parameters; larger layers are gathered one by one, which bounds the memory in use

Value = TypeVar("Value")


def resolve(device: str, precision: str) -> tuple[str, str]:
    """Replace `auto`: device cpu or cuda, and precision 32 or bf16.

    `auto` chooses bf16 where the hardware multiplies bfloat16 matrices.

    Raises:
        CyclicError: CUDA is requested and not available.
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
    """Whether this processor has instructions for bfloat16 matrices (AMX on x86, BF16 on Arm).

    Vector instructions (`avx512_bf16`) are not enough: with them alone, `conv`, `deep`, `residual` and `vae` train at
    0.6 to 0.8 of the speed of float32.
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
        devices: Processes on this machine, one GPU each; None: as many as the launcher started, else one.
        strategy: ddp, fsdp, or auto, which is ddp for several processes.

    Raises:
        UsageError: a launcher started a number of processes other than `devices`.
        CyclicError: there are fewer GPUs than processes.
    """
    warnings.filterwarnings("ignore", module="lightning")
    # Layers with one input channel trigger this warning; it concerns speed alone.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
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
    if threads is not None:  # after the launch, because Fabric sets the threads too
        torch.set_num_threads(threads)
    return Ranks(fabric, fabric.global_rank, fabric.world_size, sharded=strategy == "fsdp")


def use_available_threads() -> None:
    """Let torch use all cores that this process may use, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cpus())


def use_whole_float32() -> None:
    """Let a GPU compute float32 convolutions in float32.

    By default torch rounds their inputs to TF32 (10 bits of mantissa), which changes embeddings by up to 7e-4.
    """
    torch.backends.cudnn.allow_tf32 = False


def _environment() -> Any:
    """The cluster environment for Fabric.

    Fabric's own detection would mistake the shell of any batch job for a process that `srun` started.
    """
    from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if "TORCHELASTIC_RUN_ID" in os.environ:
        return TorchElasticEnvironment()
    if not in_slurm_step():
        return LightningEnvironment()
    here, nodes = local_processes()  # of the step; the variables of the job may differ
    os.environ |= {"SLURM_NTASKS_PER_NODE": str(here), "SLURM_NNODES": str(nodes), "SLURM_NTASKS": str(here * nodes)}
    job, step = int(os.environ.get("SLURM_JOB_ID", 0)), int(os.environ.get("SLURM_STEP_ID", 0))
    # Concurrent jobs and steps of a job need different ports.
    os.environ.setdefault("MASTER_PORT", str(15000 + (8 * job + step) % 15000))
    return SLURMEnvironment(auto_requeue=False)


def _precision(name: str, device: str) -> Any:
    """Fabric's plugin for float32, or for mixed precision: products in bfloat16, weights in float32."""
    from lightning_fabric.plugins import MixedPrecision, Precision

    class BFloat16(MixedPrecision):  # type: ignore[misc]
        """Does not scale the loss, so that gradients of single objectives may be computed without `Fabric.backward`."""

        backward = Precision.backward

    return Precision() if name == "32" else BFloat16("bf16-mixed", device)


def _strategy(name: str, processes: int) -> Any:
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    if name == "fsdp":
        return ModelParallelStrategy(_sharded, data_parallel_size=processes, tensor_parallel_size=1)
    if name == "ddp" or processes > 1:
        # A loss need not depend on all parameters.
        return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    return "auto"


def _sharded(module: nn.Module, mesh: Any) -> nn.Module:
    """Shard the parameters of a model: each large linear layer by itself, and all others together."""
    from torch.distributed.fsdp import fully_shard

    group = mesh["data_parallel"]
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.weight.numel() >= LARGE_LAYER:
            fully_shard(layer, mesh=group)
    fully_shard(module, mesh=group)
    return module


@dataclass(frozen=True)
class Ranks:
    """This process and its rank among the processes of the run. With one process, all exchanges return their input."""

    fabric: Any
    rank: int
    world: int
    sharded: bool = False  # whether FSDP shards the model
    _raised: WeakSet[CyclicError] = field(default_factory=WeakSet, compare=False, repr=False)  # in all processes

    @property
    def is_main(self) -> bool:
        """Whether this process logs and writes files."""
        return self.rank == 0

    def part(self, chosen: np.ndarray) -> np.ndarray:
        """The consecutive samples of a batch (N,) that this process takes. Sizes of parts differ by one at most."""
        return np.array_split(chosen, self.world)[self.rank]

    def largest_part(self, samples: int) -> int:
        """The size of the largest part of a batch."""
        return -(-samples // self.world)

    def share_weights(self, module: nn.Module) -> None:
        """Copy the weights of the first process to all processes, before Fabric sets the model up."""
        if self.world > 1:
            module.load_state_dict(self.fabric.broadcast(module.state_dict()))

    def agreed(self, decide: Callable[[], Value]) -> Value:
        """The result of `decide` in the first process, in all processes. Its CyclicError is raised in all of them."""
        if self.world == 1:
            return decide()
        outcome: Value | None = None
        failure: CyclicError | None = None
        if self.is_main:
            try:
                outcome = decide()
            except CyclicError as error:
                failure = error
        self._fail_together(failure)
        return self.fabric.broadcast(outcome)  # type: ignore[no-any-return]

    def together(self, work: Callable[[], Value]) -> Value:
        """The result of `work`, in which all processes exchange numbers. A CyclicError of one is raised in all of them.

        `work` exchanges by `added` and `agreed` alone: these ask first whether another process has failed. So no
        process waits for one that has ended.
        """
        if self.world == 1:
            return work()
        failure: CyclicError | None = None
        try:
            result = work()
        except CyclicError as error:
            if error in self._raised:
                raise
            failure = error
        self._fail_together(failure)
        return result

    def _fail_together(self, failure: CyclicError | None) -> None:
        """Raise in all processes the `failure` that one of them brings; of several, that of the first process."""
        failed = torch.zeros(self.world, device=self.fabric.device)
        failed[self.rank] = failure is not None
        ranks = self.summed(failed).nonzero().flatten().tolist()
        if ranks:
            error: CyclicError = self.fabric.broadcast(failure, src=ranks[0])
            error.everywhere = True
            self._raised.add(error)
            raise error

    @contextmanager
    def report_lost_peer(self) -> Iterator[None]:
        """Raise a CyclicError when an exchange in the block fails because another process has ended."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not any(word in str(error).lower() for word in ("peer", "gloo", "nccl")):
                raise
            raise CyclicError(
                "Another process of the run has ended.", "See its error message. Continue with --resume auto."
            ) from error

    def summed(self, values: Tensor) -> Tensor:
        """The sum over the processes of tensors of equal shape."""
        if self.world == 1:
            return values
        total: Tensor = self.fabric.all_reduce(values, reduce_op="sum")
        return total

    def added(self, array: np.ndarray) -> np.ndarray:
        """The sum of an array over all processes, added in float64; it has the dtype of the array."""
        if self.world == 1:
            return array
        self._fail_together(None)
        # A copy, because the sum replaces it; on the device of the process, because NCCL adds nothing elsewhere.
        values = torch.tensor(array, dtype=torch.float64, device=self.fabric.device)
        return self.summed(values).cpu().numpy().astype(array.dtype, copy=False)

    def gathered(self, rows: Tensor, samples: int) -> Tensor:
        """The rows (N, ...) of a whole batch of N samples, gathered from the parts of all processes, with gradient."""
        if self.world == 1:
            return rows
        return self._gathered(rows, [len(part) for part in np.array_split(np.arange(samples), self.world)])

    def gathered_tree(self, tree: dict[Any, Any]) -> dict[Any, Any]:
        """A nested dictionary of tensors, each with the rows of all processes, with gradient.

        The processes may have different numbers of rows, but must have the same keys. Scalars stay as they are.
        """
        if self.world == 1:
            return tree
        rows = [leaf for leaf in _leaves(tree) if leaf.dim()]
        counts = self.fabric.all_gather(torch.tensor([len(leaf) for leaf in rows], device=self.fabric.device))
        whole = iter([self._gathered(leaf, count) for leaf, count in zip(rows, counts.T.tolist(), strict=True)])
        return _map_leaves(tree, lambda leaf: next(whole) if leaf.dim() else leaf)

    def zero_with_gradient(self, tree: dict[Any, Any]) -> Tensor | float:
        """A zero that depends on every tensor of a nested dictionary; 0.0 with one process.

        Added to the loss it makes each tensor part of the backward pass, in which all processes have to take part.
        """
        return 0.0 if self.world == 1 else 0 * torch.stack([leaf.sum().float() for leaf in _leaves(tree)]).sum()

    def _gathered(self, rows: Tensor, counts: list[int]) -> Tensor:
        padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])
        stacked: Tensor = self.fabric.all_gather(padded, sync_grads=rows.requires_grad)
        return torch.cat([stacked[rank, :count] for rank, count in enumerate(counts)])

    # ---------------------------------------------------------------------------------------------- state

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        """Copies of all weights by name, on the CPU. With FSDP all processes must call it, and the first gets them."""
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import get_model_state_dict

            return get_model_state_dict(module, options=_full_state())  # type: ignore[return-value]
        return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}

    def load_weights(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Load weights by name, in every process."""
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import set_model_state_dict

            set_model_state_dict(module, dict(weights), options=_full_state())
        else:
            module.load_state_dict(weights)

    def moments(self, module: nn.Module, optimizer: Any) -> dict[int, dict[str, Tensor]]:
        """Copies of the optimizer state by the index of the parameter in its groups; with FSDP as in `weights`."""
        if not self.sharded:
            state = optimizer.state_dict()["state"]
            return {number: {name: value.detach().to("cpu", copy=True) for name, value in values.items()}
                    for number, values in state.items()}  # fmt: skip
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        full: Any = get_optimizer_state_dict(module, _unwrapped(optimizer), options=_full_state())
        if not full:  # not the first process
            return {}
        names = _parameter_names(module, optimizer)
        return {number: dict(full["state"][name]) for number, name in enumerate(names) if name in full["state"]}

    def load_moments(self, module: nn.Module, optimizer: Any, state: dict[int, dict[str, Tensor]]) -> None:
        """Load an optimizer state by the index of the parameter, in every process."""
        empty = optimizer.state_dict()
        if not self.sharded:
            optimizer.load_state_dict({**empty, "state": state})
            return
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        names = _parameter_names(module, optimizer)
        groups = [{**group, "params": [names[number] for number in group["params"]]} for group in empty["param_groups"]]
        full: Any = {"state": {names[number]: values for number, values in state.items()}, "param_groups": groups}
        set_optimizer_state_dict(module, _unwrapped(optimizer), full, options=_full_state())


def _leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors of a nested dictionary, in order."""
    if isinstance(tree, dict):
        for inner in tree.values():
            yield from _leaves(inner)
    else:
        yield tree


def _map_leaves(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nested dictionary with `change` applied to every tensor, in order."""
    if isinstance(tree, dict):
        return {name: _map_leaves(inner, change) for name, inner in tree.items()}
    return change(tree)


def _full_state() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def _unwrapped(optimizer: Any) -> Any:
    """The optimizer that Fabric wraps."""
    return getattr(optimizer, "optimizer", optimizer)


def _parameter_names(module: nn.Module, optimizer: Any) -> list[str]:
    """The names of the parameters in the order of an optimizer's groups."""
    by_identity = {id(parameter): name for name, parameter in module.named_parameters()}
    return [by_identity[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
