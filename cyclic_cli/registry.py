"""What the user names, found as files: `--arch conv` loads `models/conv.py`, and so on for each folder of names.

A listing reads the folder alone, so that help and completion load no model.
"""

import ast
import difflib
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from cyclic_cli.errors import UsageError


def names(folder: str) -> list[str]:
    """Every name that `load(folder, ...)` accepts, sorted."""
    return sorted(_files(folder))


def _files(folder: str) -> dict[str, Path]:
    """The files behind the names; the folder is the package's, and what a program added to its `__path__`."""
    places = importlib.import_module(f"cyclic_cli.{folder}").__path__
    found = [path for place in places for path in Path(place).glob("*.py") if not path.name.startswith("_")]
    return {path.stem: path for path in found}


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
    files = _files(folder)
    check(name, sorted(files), what, {_first_word(path): known for known, path in files.items()})


def load(folder: str, name: str, what: str) -> ModuleType:
    """Import the module behind a name. Raises UsageError, with the nearest name, when there is none."""
    check_file(folder, name, what)
    return importlib.import_module(f"cyclic_cli.{folder}.{name}")


def _first_word(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split(maxsplit=1)[0].strip(":,.").lower() if docstring else ""
