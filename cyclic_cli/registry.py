"""What the user names, found as files: `--arch conv` loads `models/conv.py`, and so on for each folder of names.

A listing reads the folder alone, so that help and completion load no model.
"""

import ast
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


def check(name: str, choices: Iterable[str], what: str, meanings: dict[str, str] | None = None) -> None:
    """Raise a UsageError with the nearest name when `name` is not among `choices`.

    Args:
        name: What was asked for.
        choices: What there is.
        what: What a name is, for the error.
        meanings: Other words for a choice, such as variational for vae.
    """
    known = list(choices)
    if name in known:
        return
    words = {choice: choice for choice in known} | (meanings or {})
    close = difflib.get_close_matches(name, words, n=1, cutoff=0.5)
    listed = f"Known: {', '.join(known)}." if known else "None is known here."
    hint = f"Did you mean {words[close[0]]!r}? {listed}" if close else listed
    raise UsageError(f"{name!r} is no {what}.", hint)


def check_file(folder: str, name: str, what: str) -> None:
    """Raise a UsageError when no file stands behind a name; the first word of a file's docstring names it too."""
    meanings = {_first_word(HERE / folder / f"{known}.py"): known for known in names(folder)}
    check(name, names(folder), what, meanings)


def load(folder: str, name: str, what: str) -> ModuleType:
    """Import the module behind a name. Raises UsageError, with the nearest name, when there is none."""
    check_file(folder, name, what)
    return importlib.import_module(f"cyclic_cli.{folder}.{name}")


def _first_word(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split(maxsplit=1)[0].strip(":,.").lower() if docstring else ""
