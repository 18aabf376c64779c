"""A name is a file: `--arch conv` is `models/conv.py`, the objective `divergence` is `objectives/divergence.py`.

Names are found by listing the folder, so listing them loads nothing.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from cyclic_cli.errors import UsageError

HERE = Path(__file__).parent


def names(folder: str) -> list[str]:
    """Every name that `load(folder, ...)` accepts, sorted."""
    found = pkgutil.iter_modules([str(HERE / folder)])
    return sorted(module.name for module in found if not module.name.startswith("_"))


def check(name: str, choices: Iterable[str], what: str) -> None:
    """Raise a UsageError with a did-you-mean when `name` is not among `choices`; `what` says what a name is."""
    known = list(choices)
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = f"Known: {', '.join(known)}." if known else "None is known here."
    hint = f"Did you mean {close[0]!r}? {listed}" if close else listed
    raise UsageError(f"There is no {what} {name!r}.", hint)


def load(folder: str, name: str, what: str) -> ModuleType:
    """Import the module behind a name. Raises UsageError, with the nearest name, when there is none."""
    check(name, names(folder), what)
    return importlib.import_module(f"cyclic_cli.{folder}.{name}")
