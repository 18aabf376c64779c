"""Data cycle: what goes to another modality and comes back is the picture, or the words, it was.

    loss = mean over ordered pairs (a, b) of 1 / N Σ_n error_a(decode_a(encode_b(draw_b(e_n)), private_n), x_n)

over all N values x_n of a, paired or not, with embedding e_n; the private part is carried around the loop, so that
the embedding need not hide in b what b cannot say (Zhu et al., CycleGAN, ICCV 2017; Almahairi et al., "Augmented
CycleGAN", ICML 2018, for what is carried). An error of 1 is that of the best constant. Text passes as numbers with a
gradient.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean_errors

NEEDS = ("data_cycle",)
PER_SAMPLE = False


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar mean of outputs["data_cycle"], errors (N,) by (from, to)."""
    return mean_errors(outputs["data_cycle"], outputs)
