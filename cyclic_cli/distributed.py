"""Devices and precision through Lightning Fabric. The only module that knows Fabric and `torch.distributed`."""

import logging
import os
import warnings
from typing import Any

import torch

from cyclic_cli.config import available_cpus
from cyclic_cli.errors import CyclicError

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def launch(device: str, precision: str) -> Any:
    """A launched Fabric on one device.

    Args:
        device: auto, cpu or cuda; `auto` without CUDA is the CPU.
        precision: auto, 32, bf16 or 16; `auto` is bf16 where CUDA has it, else 32.

    Raises:
        CyclicError: CUDA is asked for and not there.
    """
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    from lightning_fabric import Fabric

    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise CyclicError("No CUDA device can be used here.", "Take --device cpu or auto.")
    on_cuda = cuda if device == "auto" else device == "cuda"
    if precision == "auto":
        precision = "bf16" if on_cuda and torch.cuda.is_bf16_supported() else "32"
    use_available_threads()
    fabric = Fabric(accelerator="cuda" if on_cuda else "cpu", devices=1, precision=PRECISIONS[precision])
    fabric.launch()
    return fabric


def use_available_threads() -> None:
    """Let torch use the cores this process may use, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cpus())
