"""Exports parts of a model as ONNX files, and checks each file against torch before it gets its name.

The phases, in a module each: `examples` (real inputs), `parts` (what is exported), `tracing`, `stand_ins` and `merging`
(pretrained encoders), `quantisation`, `versions` and `preprocessing` (the ONNX graph), and `check`. A file that fails
its check is kept as `NAME.failed.onnx`. In that case no existing file is replaced.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from cyclic_cli import registry
from cyclic_cli.codes.text_codes import reader_sources
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import Note, Progress, Report, silent
from cyclic_cli.export.check import LARGEST_RECALL_CHANGE, CheckFailed, check, recall_change
from cyclic_cli.export.examples import examples_of
from cyclic_cli.export.parts import IMAGE_PARTS, Part, part_names, part_of
from cyclic_cli.export.preprocessing import with_preprocessing
from cyclic_cli.export.stand_ins import Pieces
from cyclic_cli.export.tracing import OPSET
from cyclic_cli.export.versions import versions
from cyclic_cli.inference.onnx_model import OnnxModel
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.storage import onnx_file
from cyclic_cli.storage.checkpoint import pretrained_encoders
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.onnx_file import FAILED, Description, draft_of
from cyclic_cli.text_encoders._vocabulary import Vocabulary

PRECISIONS = ("float32", "fp16", "int8")


@dataclass
class ExportSummary:
    """The result of `cyclic export`."""

    output: str  # the file, or the folder of all parts
    model: str  # fingerprint
    opset: int = OPSET
    checked: bool = True
    precision: str = "float32"
    recall_change: float | None = None  # a share, see `check.recall_change`; None where it was not measured
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)  # the figures of `check.check`, by part


def export(
    model: TorchModel,
    out: Path,
    part: str = "autoencoder",
    dataset: Path | None = None,
    preprocessing: bool = False,
    precision: str = "float32",
    licence: str = "",
    overwrite: bool = False,
    report: Report = silent,
) -> ExportSummary:
    """Write one part of a model, or all parts, as ONNX files, and check each file against torch.

    Args:
        model: A model on the CPU.
        out: The file. For all parts: the folder, whose files are named `PART.onnx`.
        part: A name of `part_names`, or all.
        dataset: A dataset for the check and for the calibration of int8, see `examples_of`. None: synthetic radiographs
            are drawn.
        preprocessing: Whether parts that take images get the preprocessing in front, and so take images of any size.
        precision: float32, fp16 or int8.
        licence: The licence of the weights, for the metadata.
        overwrite: Whether existing files may be replaced.
        report: Gets Note and Progress events.

    Raises:
        UsageError: The model has no such part, or the precision is unknown.
        CyclicError: A file exists or cannot be written, or a check failed.
    """
    files = _files(model, out, part, preprocessing, precision)
    existing = [file for file in files.values() if file.exists()]
    if existing and not overwrite:
        raise CyclicError(f"{existing[0]} exists.", "Add --overwrite, or name another --out.")
    examples, calibration = examples_of(model, dataset, report)
    summary = ExportSummary(output=str(out), model=model.fingerprint, precision=precision)
    for done, (name, file) in enumerate(files.items()):
        report(Progress(done, len(files), "parts"))
        report(Note(f"exporting {name}"))
        description = _description(name, model, preprocessing, precision, licence)
        one = part_of(name, model, examples, calibration)
        summary.parts[name] = _write_part(one, description, file, report)
    report(Progress(len(files), len(files), "parts"))
    drafts = [draft_of(file) for file in files.values()]
    if precision != "float32" and dataset and part == "all" and {"image", "text"} <= set(model.modalities):
        summary.recall_change = _checked_recall_change(model, out, drafts, StoredDataset(dataset), precision)
    for file in files.values():
        for name in onnx_file.read(draft_of(file))[1].piece_files:
            if draft_of(file.with_name(name)).exists():  # another part may have had the same encoder
                onnx_file.rename(draft_of(file.with_name(name)), file.with_name(name))
        onnx_file.rename(draft_of(file), file)
    return summary


def _files(model: TorchModel, out: Path, part: str, preprocessing: bool, precision: str) -> dict[str, Path]:
    """The files to write, by name of their part. Raises UsageError for arguments that do not fit the model."""
    names = part_names(model)
    registry.check(part, [*names, "all"], f"part of {model.path}")
    registry.check(precision, PRECISIONS, "precision")
    chosen = names if part == "all" else [part]
    if preprocessing and (model.preprocessing.bits != 8 or not set(chosen) & set(IMAGE_PARTS)):
        raise UsageError(
            "Preprocessing can only be put in front of parts that take 8-bit images.", "Leave --with-preprocessing out."
        )
    if part == "all":
        return {name: out / f"{name}.onnx" for name in chosen}
    if out.suffix != ".onnx":
        raise UsageError(f"{out} is not the name of an ONNX file.", "Let it end in .onnx.")
    return {part: out}


def _description(name: str, model: TorchModel, preprocessing: bool, precision: str, licence: str) -> Description:
    """The metadata of a part."""
    architecture = dict(model.checkpoint.architecture)
    facts = architecture.pop("facts", {})
    modality = name.removesuffix("-encoder") if name.endswith("-encoder") else "image"
    text_facts = facts["text"] if name == "text-encoder" else None
    encoders = [] if name == "decoder" else pretrained_encoders(model.checkpoint.architecture, modality)
    return Description(
        part=name,
        architecture=architecture,
        preprocessing=model.preprocessing,
        rendered=preprocessing and name in IMAGE_PARTS,
        tokenizer=_tokenizer(text_facts) if text_facts else {},
        precision=precision,
        fingerprint=model.fingerprint,
        licence=licence,
        provenance=model.checkpoint.provenance,
        encoders=encoders,
    )


def _tokenizer(facts: dict[str, Any]) -> dict[str, Any]:
    """What turns texts into tokens, and the known words.

    Of fixed codes that is what `TextReader` takes; of others the vocabulary, in the format of this program and in that
    of the library `tokenizers`.
    """
    if "parts" in facts:
        return {"sources": reader_sources(facts), "words": facts.get("words", [])}
    vocabulary = facts["tokenizer"]
    return {
        "vocabulary": vocabulary,
        "limit": facts["limit"],
        "library": Vocabulary.from_json(vocabulary).to_library(),
        "words": facts.get("words", []),
    }


def _write_part(part: Part, description: Description, file: Path, report: Report) -> dict[str, Any]:
    """Write one part and check it. Returns the figures of the check; raises CyclicError when no version passes."""
    failure, draft = None, draft_of(file)
    for version in versions(part, description.precision, description.rendered):
        described = replace(description, precision=version.precision)
        if version.pieces:
            described = replace(described, pieces=_write_pieces(version.pieces, part, described, file))
        model = version.graph
        if description.rendered:
            model = with_preprocessing(model, description.preprocessing.size, int(part.examples[0].shape[1]))
        onnx_file.write(draft, model, described)
        try:
            figures = check(draft, part, described)
        except CheckFailed as error:
            failure = error
            continue
        if version.reason:
            what = "is several files" if version.pieces else "stays in float32"
            report(Note(f"{part.name} {what}: {version.reason}"))
        return figures | version.facts
    raise CyclicError(
        f"The export of {part.name} failed its check: {failure}.",
        f"The file is kept as {draft}; no existing file was replaced.",
    ) from failure


def _write_pieces(pieces: Pieces, part: Part, description: Description, file: Path) -> list[dict[str, Any]]:
    """Write what runs before a part in files of their own. Returns `Description.pieces`."""
    written: list[dict[str, Any]] = []
    if pieces.front:
        name = f"{file.stem}.front.onnx"
        _write_piece(file.with_name(name), pieces.front, f"{part.name}.front", description)
        outputs = {value.name: value.name for value in pieces.front.graph.output}
        written.append({"file": name, "inputs": {one: one for one in part.inputs}, "outputs": outputs})
    for number, (one, stand_in) in enumerate(zip(pieces.encoders, part.stand_ins, strict=True)):
        name = f"encoder-{stand_in.facts.fingerprint}.onnx"
        _write_piece(file.with_name(name), one.model, name.removesuffix(".onnx"), description)
        outputs = {output: f"encoder{number}_{output}" for output in stand_in.outputs}
        written.append({"file": name, "inputs": one.inputs, "outputs": outputs, "one_by_one": one.one_by_one})
    return written


def _write_piece(file: Path, model: onnx.ModelProto, name: str, description: Description) -> None:
    onnx_file.write(draft_of(file), model, replace(description, part=name, tokenizer={}, pieces=[]))


def _checked_recall_change(
    model: TorchModel, out: Path, drafts: list[Path], dataset: StoredDataset, precision: str
) -> float | None:
    """The change of recall by both encoders, see `recall_change`. Raises CyclicError when it is too large in fp16."""
    change, one_query = recall_change(model, OnnxModel(out, "cpu", drafts), dataset)
    if precision == "fp16" and abs(change or 0.0) > max(LARGEST_RECALL_CHANGE, one_query):
        raise CyclicError(
            f"The export of both encoders failed its check: recall changes by {100 * (change or 0.0):.1f} points.",
            f"The files are kept as {out}/*{FAILED}; no existing file was replaced.",
        )
    return change
