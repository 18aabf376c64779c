"""Devices and precision through Lightning Fabric. The only module that knows Fabric and `torch.distributed`."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from cyclic_cli.config import available_cpus
from cyclic_cli.errors import CyclicError

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def resolve(device: str, precision: str) -> tuple[str, str]:
    """What `auto` means here: cpu or cuda, and 32, bf16 or 16 (bf16 where the hardware multiplies it).

    Raises:
        CyclicError: CUDA is asked for and not there, or 16 without CUDA.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise CyclicError("No CUDA device can be used here.", "Take --device cpu or auto.")
    if device == "auto":
        device = "cuda" if cuda else "cpu"
    if precision == "16" and device == "cpu":
        raise CyclicError("--precision 16 needs CUDA.", "Take 32, or bf16 where the processor has it.")
    if precision == "auto":
        supported = torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else _cpu_has_bf16()
        precision = "bf16" if supported else "32"
    return device, precision


def _cpu_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself; elsewhere it is slower than float32."""
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)


def launch(device: str, precision: str) -> Any:
    """A launched Fabric on one device; both words as `resolve` gives them."""
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    from lightning_fabric import Fabric

    use_available_threads()
    fabric = Fabric(accelerator=device, devices=1, precision=PRECISIONS[precision])
    fabric.launch()
    return fabric


def use_available_threads() -> None:
    """Let torch use the cores this process may use, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cpus())
