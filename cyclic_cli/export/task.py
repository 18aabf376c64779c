"""Exports parts of a model as ONNX files, and checks each file against torch before it gets its name.

The phases, in a module each: `examples` (real inputs), `parts` (what is exported), `tracing`, `quantisation` and
`preprocessing` (the ONNX graph), and `check`. A file that fails its check is kept as `NAME.failed.onnx`. In that case
no existing file is replaced.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch

from cyclic_cli import registry
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import Note, Progress, Report, silent
from cyclic_cli.export.check import LARGEST_RECALL_CHANGE, CheckFailed, check, recall_change
from cyclic_cli.export.examples import EXAMPLES, examples_of
from cyclic_cli.export.parts import IMAGE_PARTS, Part, part_names, part_of
from cyclic_cli.export.preprocessing import with_preprocessing
from cyclic_cli.export.quantisation import Quantiser, to_fp16
from cyclic_cli.export.tracing import OPSET, trace
from cyclic_cli.inference.onnx_model import OnnxModel
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.storage import onnx_file
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.onnx_file import FAILED, Description
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
        summary.parts[name] = _write_part(part_of(name, model, examples, calibration), description, _draft_of(file))
    report(Progress(len(files), len(files), "parts"))
    drafts = [_draft_of(file) for file in files.values()]
    if precision != "float32" and dataset and part == "all" and {"image", "text"} <= set(model.modalities):
        summary.recall_change = _checked_recall_change(model, out, drafts, StoredDataset(dataset), precision)
    for draft, file in zip(drafts, files.values(), strict=True):
        onnx_file.rename(draft, file)
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


def _draft_of(file: Path) -> Path:
    """The name of a file until it has passed its check. A file that fails keeps this name."""
    return file.with_name(file.stem + FAILED)


def _description(name: str, model: TorchModel, preprocessing: bool, precision: str, licence: str) -> Description:
    """The metadata of a part."""
    architecture = dict(model.checkpoint.architecture)
    facts = architecture.pop("facts", {})
    text_facts = facts["text"] if name == "text-encoder" else None
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
    )


def _tokenizer(facts: dict[str, Any]) -> dict[str, Any]:
    """The vocabulary, in the format of this program and in that of the library `tokenizers`, and the known words."""
    vocabulary = facts["tokenizer"]
    return {
        "vocabulary": vocabulary,
        "limit": facts["limit"],
        "library": Vocabulary.from_json(vocabulary).to_library(),
        "words": facts.get("words", []),
    }


def _write_part(part: Part, description: Description, draft: Path) -> dict[str, Any]:
    """Write one part and check it. Returns the figures of the check; raises CyclicError when no candidate passes."""
    failure = None
    for model, facts in _candidates(trace(part), part, description.precision):
        if description.rendered:
            model = with_preprocessing(model, description.preprocessing.size, int(part.examples[0].shape[1]))
        onnx_file.write(draft, model, description)
        try:
            figures = check(draft, part, description)
        except CheckFailed as error:
            failure = error
        else:
            return figures | facts
    raise CyclicError(
        f"The export of {part.name} failed its check: {failure}.",
        f"The file is kept as {draft}; no existing file was replaced.",
    ) from failure


def _candidates(model: onnx.ModelProto, part: Part, precision: str) -> Iterator[tuple[onnx.ModelProto, dict[str, int]]]:
    """Versions of a model in a precision, with facts for the summary. The first one that passes its check is taken.

    There are several in int8: each leaves more operations in float32 than the one before.
    """
    if precision == "float32":
        yield model, {}
    elif precision == "fp16":
        yield to_fp16(model), {}
    else:
        chunks = zip(*(torch.split(one, EXAMPLES) for one in part.calibration), strict=True)
        inputs = [dict(zip(part.inputs, (one.numpy() for one in chunk), strict=True)) for chunk in chunks]
        quantiser = Quantiser(model, inputs)
        count = len(quantiser.operations)
        for in_float in sorted({0, count - 1, *(2**step for step in range(30) if 2**step < count)}):
            yield quantiser.quantised(in_float), {"operations": count, "in_float32": in_float}


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
