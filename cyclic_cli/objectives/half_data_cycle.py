"""Half data cycle: the data cycle whose way back alone learns.

The loss is that of `data_cycle`, but what is drawn on the way counts as given (the "half-cycle" of ITIT, Li et al.,
ICLR 2024, section 3; back-translation, Sennrich et al., ACL 2016).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean_errors

NEEDS = ("half_data_cycle",)
PER_SAMPLE = False


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar mean of outputs["half_data_cycle"], errors (N,) by (from, to)."""
    return mean_errors(outputs["half_data_cycle"], outputs)
