"""Code cycle: maps between the codes of two encoders undo one another.

    loss = mean over ordered pairs (a, b) of 1 / (N C) Σ_n ‖h(f(z_n)) − z_n‖²

over all N values of a, paired or not, of codes z_n (C numbers, of unit mean variance), where f leads from a's code
through the shared space to b's and h back. What it is to return to counts as given, or codes would shrink. Nothing is
decoded, so it costs little; with encoders that were trained as autoencoders and are kept, it is the cycle between the
latent spaces of separate models (Zhu et al., CycleGAN, ICCV 2017; in codes: Jha et al., "Disentangling Factors of
Variation with Cycle-Consistent Variational Auto-Encoders", ECCV 2018).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean_errors

NEEDS = ("code_cycle",)
PER_SAMPLE = False


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar mean of outputs["code_cycle"], errors (N,) by (from, to)."""
    return mean_errors(outputs["code_cycle"], outputs)
