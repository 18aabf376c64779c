"""The copy of an encoder in a run folder, by its fingerprint. With it the run needs the original no more.

encoders/FINGERPRINT.safetensors    the weights of an encoder that torch runs, float32
encoders/FINGERPRINT.onnx           the graph of an ONNX encoder
encoders/FINGERPRINT.json           all that is needed to build it again, with its tokenizer, and a checksum
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cyclic_cli.config import build
from cyclic_cli.errors import CyclicError
from cyclic_cli.pretrained import find
from cyclic_cli.pretrained.encoder import MODALITIES, EncoderFacts, PretrainedEncoder
from cyclic_cli.pretrained.fingerprint import DIGITS, LIBRARY, fingerprint_of
from cyclic_cli.storage.files import checksum, read_tensors, refuse_newer, write_bytes, write_tensors, write_text

FORMAT = 1  # of the JSON file
GRAPH = "onnx"  # the kind of encoders that are stored as a graph
AGAIN = "Copy the whole run folder again."
FINGERPRINT = re.compile(rf"[0-9a-f]{{{DIGITS}}}")  # names files, so it must not hold anything else


def write_encoder(folder: Path, encoder: PretrainedEncoder) -> None:
    """Write an encoder into a folder, unless it is there already. Raises CyclicError when writing fails."""
    facts = encoder.facts
    if _is_intact(folder, facts):
        return
    if facts.kind == GRAPH:
        write_bytes(_weights_path(folder, facts), encoder.graph_bytes())
    else:
        weights = {name: value.detach().cpu().numpy() for name, value in encoder.state_dict().items()}
        write_tensors(_weights_path(folder, facts), weights, {"cyclic": facts.fingerprint})
    described: dict[str, Any] = {"format": FORMAT, "encoder": facts_to_json(facts)}
    content = json.dumps(described | {"checksum": checksum(described)}, ensure_ascii=False, sort_keys=True)
    write_text(_facts_path(folder, facts.fingerprint), content)  # last: with it the encoder is whole


def read_encoder(folder: Path, fingerprint: str) -> PretrainedEncoder:
    """Return the encoder of a fingerprint, with its weights.

    Raises CyclicError when it is not in the folder, is damaged, or needs another version of a library.
    """
    facts = _read_facts(folder, fingerprint)
    path = _weights_path(folder, facts)
    if not path.is_file():
        raise _missing(path)
    if facts.kind == GRAPH:
        return find.rebuild(facts, path)
    weights = {name: torch.from_numpy(value) for name, value in read_tensors(path)[0].items()}
    if fingerprint_of(facts, weights) != fingerprint:
        raise CyclicError(f"{path} is damaged: it does not have its fingerprint.", AGAIN)
    encoder = find.rebuild(facts)
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        library = str(facts.settings.get(LIBRARY, "the version of cyclic that wrote it"))
        line = f"pip install '{library.replace(' ', '==')}'" if LIBRARY in facts.settings else "Update cyclic."
        raise CyclicError(f"{path} was written with {library}, whose networks differ.", line) from error
    return encoder


def facts_to_json(facts: EncoderFacts) -> dict[str, Any]:
    """Return facts as plain values, as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(facts)))
    return plain


def facts_from_json(values: Any) -> EncoderFacts:
    """Return the facts that `facts_to_json` made plain. Raises CyclicError when the values are anything else."""
    damaged = CyclicError("The description of a pretrained encoder is damaged.", AGAIN)
    if not isinstance(values, dict):
        raise damaged
    try:
        facts = build(EncoderFacts, values, "the description of an encoder")
    except CyclicError:
        raise damaged from None
    geometry = facts.geometry
    fits = (
        facts.modality in MODALITIES
        and FINGERPRINT.fullmatch(facts.fingerprint)
        and len({output.name for output in facts.outputs}) == len(facts.outputs) > 0
        and all(output.dims > 0 for output in facts.outputs)
        and (facts.modality == "text" or geometry is not None)
    )
    if geometry is not None:
        channels = geometry.channels
        fits = fits and channels in (1, 3) and len(geometry.mean) == len(geometry.std) == channels
        fits = fits and geometry.size > 0 and geometry.native > 0 and all(value > 0 for value in geometry.std)
    if not fits:
        raise damaged
    return facts


def _read_facts(folder: Path, fingerprint: str) -> EncoderFacts:
    path = _facts_path(folder, fingerprint)
    if not FINGERPRINT.fullmatch(fingerprint) or not path.is_file():
        raise _missing(path)
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        recorded = described.pop("checksum")
        refuse_newer(int(described["format"]), FORMAT, path)
        if recorded != checksum(described):
            raise ValueError("the checksum does not match")
        facts = facts_from_json(described["encoder"])
        if facts.fingerprint != fingerprint:
            raise ValueError("another encoder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CyclicError(f"{path} is damaged.", AGAIN) from error
    return facts


def _is_intact(folder: Path, facts: EncoderFacts) -> bool:
    """Whether an encoder is in a folder already, with its own fingerprint."""
    try:
        if facts_to_json(_read_facts(folder, facts.fingerprint)) != facts_to_json(facts):
            return False
        path = _weights_path(folder, facts)
        if facts.kind == GRAPH:
            return fingerprint_of(facts, path.read_bytes()) == facts.fingerprint
        weights = {name: torch.from_numpy(value) for name, value in read_tensors(path)[0].items()}
        return fingerprint_of(facts, weights) == facts.fingerprint
    except (CyclicError, OSError):
        return False


def _missing(path: Path) -> CyclicError:
    return CyclicError(
        f"The model needs {path.parent.name}/{path.name} beside it, which is missing.", "Copy the whole run folder."
    )


def _facts_path(folder: Path, fingerprint: str) -> Path:
    return folder / f"{fingerprint}.json"


def _weights_path(folder: Path, facts: EncoderFacts) -> Path:
    return folder / f"{facts.fingerprint}.{'onnx' if facts.kind == GRAPH else 'safetensors'}"
