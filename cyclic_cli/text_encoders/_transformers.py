"""The transformers library, offline and silent, and configurations of foreign models for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from cyclic_cli.errors import CyclicError

FOREIGN = ("implementation", "quantization", "use_kernels", "auto_map")  # parts of names of values that load other code


def library() -> Any:
    """Return the transformers library, set to stay offline and silent. Raises CyclicError when it is not installed."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # the library reads this when it is first imported
    try:
        import transformers
    except ImportError:
        raise CyclicError(
            "Pretrained encoders of this kind need the transformers library.",
            "Install it: pip install 'cyclic-cli[hub]'",
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def without_foreign_code(values: Any) -> Any:
    """Return the values of a configuration without those by which the library would load kernels or other code."""
    if not isinstance(values, Mapping):
        return values
    return {
        name: without_foreign_code(value)
        for name, value in values.items()
        if not (isinstance(name, str) and any(part in name for part in FOREIGN))
    }
