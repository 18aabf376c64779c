"""Half data cycle: content should be recovered from its translation, where only the recovery is trained.

The loss is that of `data_cycle`, but no gradient passes through the decoded content of the other modality. This is the
"half-cycle" of ITIT (Li et al., ICLR 2024, section 3). In machine translation it is called back-translation (Sennrich
et al., ACL 2016).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean_errors

NEEDS = ("half_data_cycle",)
PER_SAMPLE = False


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar mean of outputs["half_data_cycle"], which holds errors (N,) by (from, to)."""
    return mean_errors(outputs["half_data_cycle"], outputs)
