"""Data cycle: content that is translated to another modality and back should not change.

    loss = mean over ordered pairs (a, b) of 1 / N Σ_n error_a(decode_a(encode_b(decode_b(e_n)), private_n), x_n)

over the content x_n of all N samples of modality a, paired or not, with embedding e_n (cycle consistency: Zhu et al.,
CycleGAN, ICCV 2017). The private part of a bypasses b. Otherwise the model would have to hide details of a in b that b
cannot express (Almahairi et al., "Augmented CycleGAN", ICML 2018). Errors are relative to the mean predictor, whose
error is 1. Text is decoded to a form that gradients pass through (`soft_decode` of the text encoders).

This objective is kept as the reference form of cycle consistency between images and reports. No benefit was measured.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean_errors

NEEDS = ("data_cycle",)
PER_SAMPLE = False


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar mean of outputs["data_cycle"], which holds errors (N,) by (from, to)."""
    return mean_errors(outputs["data_cycle"], outputs)
