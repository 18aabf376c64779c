"""Code cycle: a code that is mapped to the code of another modality and back should not change.

    loss = mean over ordered pairs (a, b) of 1 / (N C) Σ_n ‖h(f(z_n)) − z_n‖²

over the codes z_n of all N samples of modality a, paired or not. A code has C dimensions, with unit mean variance. The
map f leads from a's code through the shared space to b's code, and h leads back. The target z_n has no gradient;
otherwise the codes would shrink.

Nothing is decoded, so this cycle term is cheap. With frozen encoders of separate autoencoders it is the cycle between
their latent spaces (Zhu et al., CycleGAN, ICCV 2017; for codes: Jha et al., "Disentangling Factors of Variation with
Cycle-Consistent Variational Auto-Encoders", ECCV 2018).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean_errors

NEEDS = ("code_cycle",)
PER_SAMPLE = False


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar mean of outputs["code_cycle"], which holds errors (N,) by (from, to)."""
    return mean_errors(outputs["code_cycle"], outputs)
