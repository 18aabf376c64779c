"""Names that the user may choose from, found as files: `--arch conv` loads `models/conv.py`.

The folders `models`, `objectives`, `modalities` and `text_encoders` work like this: each file is a name. Listing the
names reads the folder without importing the files, so that help texts and shell completion stay fast.
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
    """The files by name, from the folder of this package and from folders that a program added to its `__path__`."""
    folders = importlib.import_module(f"cyclic_cli.{folder}").__path__
    found = [path for place in folders for path in Path(place).glob("*.py") if not path.name.startswith("_")]
    return {path.stem: path for path in found}


def check(name: str, choices: Iterable[str], what: str, synonyms: dict[str, str] | None = None) -> None:
    """Raise a UsageError that suggests the nearest name when `name` is not among `choices`.

    Args:
        name: The name that the user gave.
        choices: The names that exist.
        what: What the name stands for, such as "architecture", for the error message.
        synonyms: Other words for a choice, such as variational for vae; used for suggestions only.
    """
    known = list(choices)
    if name in known:
        return
    words = {choice: choice for choice in known} | (synonyms or {})
    close = difflib.get_close_matches(name, words, n=1, cutoff=0.5)
    listed = f"Known: {', '.join(known)}." if known else "None is known here."
    hint = f"Did you mean {words[close[0]]!r}? {listed}" if close else listed
    raise UsageError(f"Unknown {what}: {name!r}.", hint)


def check_file(folder: str, name: str, what: str) -> None:
    """Raise a UsageError when a folder has no file of that name.

    The first word of each file's docstring serves as a synonym of its name in suggestions.
    """
    files = _files(folder)
    check(name, sorted(files), what, {_first_word(path): known for known, path in files.items()})


def load(folder: str, name: str, what: str) -> ModuleType:
    """Import the file with a name. Raises UsageError, which suggests the nearest name, when there is none."""
    check_file(folder, name, what)
    return importlib.import_module(f"cyclic_cli.{folder}.{name}")


def _first_word(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split(maxsplit=1)[0].strip(":,.").lower() if docstring else ""
