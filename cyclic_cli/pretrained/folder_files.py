"""The files of a folder with a pretrained encoder: settings, names of tensors, licence. Nothing in them is run."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from cyclic_cli.errors import CyclicError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
LONGEST = 100  # characters of a licence


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file; an empty one where there is no file. Raises CyclicError when it is damaged."""
    return _read(path, dict) if path.is_file() else {}


def read_list(path: Path) -> list[Any]:
    """Return the JSON list of a file. Raises CyclicError when it is missing or damaged."""
    return _read(path, list)


def tensor_names(folder: Path) -> set[str]:
    """Return the names of the tensors in the safetensors files of a folder, which may be shards with an index.

    Raises CyclicError when there are none, or a file or a tensor that the index names is missing or cut short.
    """
    if (folder / WEIGHTS).is_file():
        return _names_in(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        raise _without_weights(folder)
    places = read_object(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CyclicError(f"{folder / INDEX} is damaged.", "Copy it from its source again.")
    found: set[str] = set()
    for file in sorted(set(places.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise CyclicError(f"{folder} lacks {file}, which its index names.", "Copy the whole folder again.")
        found |= _names_in(folder / file)
    if not places.keys() <= found:
        raise CyclicError(f"{folder} lacks weights that its index names.", "Copy the whole folder again.")
    return found


def licence_of(folder: Path) -> str:
    """Return the licence as a folder states it: in the head of its README.md, or the first line of its LICENSE."""
    stated = _front_matter(folder / "README.md")
    named = stated.get("license_name") if stated.get("license") == "other" else None
    licence = named or stated.get("license")
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    if isinstance(licence, str) and licence.strip():
        return _one_line(licence)
    for name in LICENCE_FILES:
        lines = [line.strip(" #\t") for line in _text(folder / name).splitlines()]
        if first := next(filter(None, lines), ""):
            return _one_line(first)
    return ""


def _read(path: Path, kind: type) -> Any:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, kind):
        raise CyclicError(f"{path} is damaged.", "Copy it from its source again.")
    return values


def _names_in(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise CyclicError(f"{path} is not a complete safetensors file.", "Copy it again.") from error


def _without_weights(folder: Path) -> CyclicError:
    for pattern in PICKLES:
        if file := min(folder.glob(pattern), default=None):
            return CyclicError(
                f"{file} is a pickle, which can run code and is not read.",
                f'If you trust its source, run: python -c "{_conversion(folder, file)}"',
            )
    return CyclicError(f"{folder} holds no weights.", f"Copy its {WEIGHTS}, or all its shards with {INDEX}.")


def _conversion(folder: Path, file: Path) -> str:
    """A line of Python that writes pickled weights as safetensors."""
    if file.name.startswith("pytorch_model") and "model_type" in read_object(folder / "config.json"):
        return f"import transformers; transformers.AutoModel.from_pretrained('{folder}').save_pretrained('{folder}')"
    return (
        "import torch; from safetensors.torch import save_file; "
        f"w = torch.load('{file}', map_location='cpu', weights_only=True); "
        f"save_file({{n: t.contiguous() for n, t in w.get('state_dict', w).items()}}, '{folder / WEIGHTS}')"
    )


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML at the head of a model card; empty where there is none."""
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---\s", _text(path), re.DOTALL)
    try:
        values = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):
        values = None
    return values if isinstance(values, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _one_line(text: str) -> str:
    return " ".join("".join(sign for sign in text if sign.isprintable() or sign.isspace()).split())[:LONGEST]
