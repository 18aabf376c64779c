"""Configurations of foreign models, without the values by which a library would load other code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FOREIGN = ("implementation", "quantization", "use_kernels", "auto_map")  # parts of names of values that load other code


def without_foreign_code(values: Any) -> Any:
    """The values of a configuration without those by which the library would look for kernels or other code."""
    if not isinstance(values, Mapping):
        return values
    return {
        name: without_foreign_code(value)
        for name, value in values.items()
        if not (isinstance(name, str) and any(part in name for part in FOREIGN))
    }
