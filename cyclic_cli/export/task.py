"""`cyclic export`: parts of a model as ONNX, each checked against torch before it gets its name.

A part is traced (`torch.onnx.export`, the exporter of torch.export), then perhaps gets the preprocessing in front of it
or fewer bits by ONNX Runtime's own tools, and is run beside the checkpoint on random and real inputs. One that fails is
kept beside the name it was to have, as `NAME.failed.onnx`, and nothing else is touched.
"""

import contextlib
import csv
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from cyclic_cli import registry
from cyclic_cli.data.mixture import modalities_of, present_samples, read_index
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import Note, Progress, Report, silent
from cyclic_cli.export.quantisation import Quantiser, halved
from cyclic_cli.imaging import readers
from cyclic_cli.inference.onnx_model import OnnxModel, session
from cyclic_cli.inference.torch_model import TorchModel, embedding_of
from cyclic_cli.metrics import reconstruction as metrics
from cyclic_cli.metrics import retrieval
from cyclic_cli.storage import onnx_file
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.onnx_file import FAILED, Description
from cyclic_cli.text_encoders._vocabulary import Vocabulary

OPSET = 20
BATCHES = (1, 2, 7, 32)  # sizes of the batches of a check
EXAMPLES = max(BATCHES)
LARGEST_ERROR = 1e-4  # of float32, absolute
LOST = {"fp16": 0.1, "int8": 0.5}  # dB of PSNR, at most
RECALL_LOST = 0.005  # of R@1, R@5 and R@10, at most, of fp16
KEPT = 0.99  # share of the ten nearest neighbours that stay, at least, of fp16
POOL = 1000  # samples of a dataset, at most, that fewer bits are measured on
SEED = 0
PRECISIONS = ("float32", "fp16", "int8")
OF_IMAGES = ("autoencoder", "encoder", "image-encoder")  # parts that take images


Values = dict[str, Tensor]  # of each modality, as its `Values` load them


@dataclass(frozen=True)
class Part:
    """What one ONNX file computes: a module of named tensors."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    examples: tuple[Tensor, ...]  # real inputs, EXAMPLES of each or more
    calibration: tuple[Tensor, ...]  # others, that int8 takes the ranges of activations from
    dynamic: dict[str, dict[int, str]]  # by input: sides that may have any length, by name
    random: Callable[[int], tuple[Tensor, ...]]  # that many random inputs


@dataclass
class ExportSummary:
    """What `cyclic export` wrote."""

    output: str
    model: str  # fingerprint
    opset: int = OPSET
    checked: bool = True
    precision: str = "float32"
    recall_change: float | None = None  # a share: of fewer bits, where images and texts are embedded
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------- modules


class ImageEncoder(nn.Module):
    """Images (N, C, S, S) to their code, of a joint model the shared and the private part, and their embedding."""

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.model, self.is_joint = model.module, model.is_joint

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_joint:
            shared, private = self.model.parts("image", image)
            return torch.cat([shared, private], 1), shared
        code = self.model.encode(image)
        return code, embedding_of(code)


class Decoder(nn.Module):
    """Codes, as `ImageEncoder` gives them, to images (N, C, S, S) in [0, 1]."""

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.model, self.is_joint = model.module, model.is_joint

    def forward(self, code: Tensor) -> Tensor:
        if self.is_joint:
            shared, private = torch.split(code, [self.model.embedding, self.model.private], 1)
            image = self.model.encoders["image"].decode(self.model.code("image", shared, private))
        else:
            image = self.model.decode(code)
        return image.clamp(0, 1)


class Autoencoder(nn.Module):
    """Images (N, C, S, S) to their reconstruction in [0, 1], and their embedding."""

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.encoder, self.decoder = ImageEncoder(model), Decoder(model)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        code, embedding = self.encoder(image)
        return self.decoder(code), embedding


class ModalityEncoder(nn.Module):
    """Values of a modality, as its file's INPUTS, to their embedding."""

    def __init__(self, model: TorchModel, name: str, value: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.is_joint, self.name, self.value = model.module, model.is_joint, name, value

    def forward(self, *inputs: Tensor) -> Tensor:
        value = self.value(*inputs)
        return self.model.embed(self.name, value) if self.is_joint else embedding_of(self.model.encode(value))


# --------------------------------------------------------------------------------------------------------- parts


def part_names(model: TorchModel) -> list[str]:
    """The parts that a model can be exported as."""
    image = ["autoencoder", "encoder", "decoder"] if model.has_decoders else ["encoder"]
    return [*(image if "image" in model.modalities else []), *(f"{name}-encoder" for name in model.modalities)]


def part_of(name: str, model: TorchModel, examples: Values, calibration: Values) -> Part:
    """A part by its name. Raises CyclicError when there is no example of what it takes."""
    modality = name.removesuffix("-encoder") if name.endswith("-encoder") else "image"
    if modality not in examples or modality not in calibration:
        raise CyclicError(f"There is no {modality} to check the export with.", "Name a dataset that has some.")
    batch = {0: "batch"}
    both = examples[modality], calibration[modality]
    if name == "decoder":
        with torch.no_grad():
            codes, others = ((ImageEncoder(model)(images)[0],) for images in both)
        return Part(name, Decoder(model), ("code",), ("reconstruction",), codes, others, {"code": batch}, _like(*codes))
    if name in ("autoencoder", "encoder"):
        module = Autoencoder(model) if name == "autoencoder" else ImageEncoder(model)
        outputs = ("reconstruction" if name == "autoencoder" else "code", "embedding")
        shown, others = ((images,) for images in both)
        return Part(name, module, ("image",), outputs, shown, others, {"image": batch}, _like(*shown))
    file = registry.load("modalities", modality, "modality")
    inputs = getattr(file, "INPUTS", {modality: batch})
    values, others = map(getattr(file, "inputs_of", lambda value: (value,)), both)
    encoder = ModalityEncoder(model, modality, getattr(file, "value_of", lambda value: value))
    return Part(name, encoder, tuple(inputs), ("embedding",), values, others, dict(inputs), _like(*values))


def _like(*examples: Tensor) -> Callable[[int], tuple[Tensor, ...]]:
    """Random inputs of the kinds of some examples: numbers of their range, or other tokens where they have tokens."""

    def random(count: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(SEED + count)
        first, *others = examples
        if first.is_floating_point():
            noise = torch.rand(count, *first.shape[1:], generator=generator)
            return (first.min() + (first.max() - first.min()) * noise,)
        rows = torch.randint(len(first), (count,), generator=generator)
        tokens = torch.randint(1, int(first.max()) + 1, (count, first.shape[1]), generator=generator)
        return (tokens * (first[rows] != 0), *(other[rows] for other in others))

    return random


# ------------------------------------------------------------------------------------------------------- examples


def examples_of(model: TorchModel, dataset: Path | None, report: Report) -> tuple[Values, Values]:
    """Real values that parts are checked with, and others that int8 is calibrated on.

    Of a dataset those of its validation part, and of its training part; where one is missing the other serves for
    both. Without one phantoms, for both.
    """
    if dataset is None:
        drawn = _drawn_examples(model, report)
        return drawn, drawn
    stored = StoredDataset(dataset)
    val, train = (_stored_examples(model, stored, split) for split in ("val", "train"))
    return _filled(train | val), _filled(val | train)


def _filled(examples: Values) -> Values:
    """EXAMPLES of each at least: few are taken again and again."""
    return {
        name: values.repeat(-(-EXAMPLES // len(values)), *[1] * (values.dim() - 1)) for name, values in examples.items()
    }


def _drawn_examples(model: TorchModel, report: Report) -> Values:
    """Images and reports of phantoms, drawn for the purpose: EXAMPLES of each, some mirrored or turned."""
    from cyclic_cli.phantom import dataset as phantom

    with tempfile.TemporaryDirectory() as folder:
        demo = Path(folder) / "demo"
        phantom.write_demo(demo, EXAMPLES // 4, report=lambda done, count: report(Progress(done, count, "phantoms")))
        files = sorted(demo.rglob("*.dcm"))
        fitted = [
            readers.fit(readers.read(file.read_bytes(), model.preprocessing), model.preprocessing) for file in files
        ]
        rows = csv.DictReader(io.StringIO((demo / "reports.csv").read_text(encoding="utf-8")))
        texts = [row["text"] for row in rows]
    turned = [
        np.stack(fitted),
        *(np.stack(fitted)[..., ::down, ::right] for down, right in ((1, -1), (-1, 1), (-1, -1))),
    ]
    examples = {"image": model.images(np.ascontiguousarray(np.concatenate(turned)))}
    if "text" in model.modalities:
        examples["text"] = model.texts((texts * 4)[:EXAMPLES])
    return examples


def _stored_examples(model: TorchModel, dataset: StoredDataset, split: str) -> Values:
    """The first values of a split of a dataset, by modality; nothing of those that none has."""
    modalities, facts = modalities_of(model.checkpoint.architecture)
    index = read_index(dataset, modalities, split)
    found = {}
    for one in modalities:
        values, _ = present_samples(dataset, one, index, facts[one.name])
        if len(values):
            found[one.name] = model.placed(values.load(np.arange(min(len(values), POOL))))
    return found


# -------------------------------------------------------------------------------------------------------- making


def trace(part: Part) -> onnx.ModelProto:
    """A part as ONNX, with a batch of any size."""
    quiet = contextlib.redirect_stdout(io.StringIO())
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # that torchvision, which nothing here uses, is not installed
    try:
        with warnings.catch_warnings(), quiet, torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                part.module, tuple(one[:2] for one in part.examples), dynamo=True, opset_version=OPSET,
                input_names=list(part.inputs), output_names=list(part.outputs),
                dynamic_shapes=_dynamic(part), verbose=False,
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    assert program is not None
    _make_names_unique(program.model.graph)
    return program.model_proto


def _make_names_unique(graph: Any) -> None:
    """Rename values within a graph that the exporter called like an output: it names them after what computes them."""
    outputs = {value.name: value for value in graph.outputs}
    for node in graph:
        for value in node.outputs:
            if value.name in outputs and value is not outputs[value.name]:
                value.name = f"inner_{value.name}"


def _dynamic(part: Part) -> Any:
    shapes = tuple(part.dynamic[name] for name in part.inputs)
    return {"inputs": shapes} if isinstance(part.module, ModalityEncoder) else shapes


def with_preprocessing(model: onnx.ModelProto, size: int, channels: int) -> onnx.ModelProto:
    """The model of images with letterbox, antialiased reduction and scaling in front: it takes (N, 1, H, W) uint8.

    The same as `images.fit` of a picture that is read whole, up to rounding.
    """
    helper, kind = onnx.helper, onnx.TensorProto

    def constant(name: str, values: Any, of: type) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(np.array(values, of), name)

    nodes = [
        helper.make_node("Cast", ["image"], ["grey"], to=kind.FLOAT),
        helper.make_node("Shape", ["image"], ["sides"], start=2, end=4),  # height, width
        helper.make_node("ReduceMax", ["sides"], ["side"], keepdims=1),
        helper.make_node("Sub", ["side", "sides"], ["missing"]),
        helper.make_node("Div", ["missing", "two"], ["before"]),
        helper.make_node("Sub", ["missing", "before"], ["behind"]),
        helper.make_node("Concat", ["before", "behind"], ["margins"], axis=0),
        helper.make_node("Pad", ["grey", "margins", "black", "axes"], ["square"]),
        helper.make_node(
            "Resize", ["square", "", "", "size"], ["resized"], axes=[2, 3], mode="linear", antialias=1,
            coordinate_transformation_mode="half_pixel", exclude_outside=1,
        ),
        helper.make_node("Round", ["resized"], ["levels"]),
        helper.make_node("Clip", ["levels", "black", "white"], ["fitted"]),
        helper.make_node("Div", ["fitted", "white"], ["shades"]),
    ]  # fmt: skip
    initial = [
        constant("two", [2], np.int64), constant("axes", [2, 3], np.int64), constant("size", [size, size], np.int64),
        constant("black", 0, np.float32), constant("white", 255, np.float32),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "preprocessing",
        [helper.make_tensor_value_info("image", kind.UINT8, ["batch", channels, "height", "width"])],
        [helper.make_tensor_value_info("shades", kind.FLOAT, ["batch", channels, size, size])], initial,
    )  # fmt: skip
    first = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    first = onnx.compose.add_prefix(first, "preprocessing_", rename_inputs=False, rename_outputs=True)
    return onnx.compose.merge_models(first, _renamed(model), [("preprocessing_shades", "fitted_image")])


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its input `image` called `fitted_image`."""
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    for node in renamed.graph.node:
        node.input[:] = ["fitted_image" if name == "image" else name for name in node.input]
    for value in renamed.graph.input:
        value.name = "fitted_image" if value.name == "image" else value.name
    return renamed


# ------------------------------------------------------------------------------------------------------- checking


class CheckFailed(Exception):
    """An exported part does not do what the checkpoint does; the message says in what."""


def check(path: Path, part: Part, description: Description) -> dict[str, Any]:
    """Compare an exported part with its module.

    Returns:
        max_abs_error, over random and real inputs in batches of `BATCHES`; of fewer bits also psnr_change in dB, where
        it reconstructs, and top10_overlap, the share of the ten nearest neighbours that stay, where it embeds.

    Raises:
        CheckFailed: one of them is not what it must be, or the file is no valid ONNX.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailed("it is not valid ONNX") from error
    found = _Runner(path, part, description)
    figures: dict[str, Any] = {"max_abs_error": found.largest_error(), "bytes": onnx_file.size_of(path)}
    if description.precision == "float32":
        if not figures["max_abs_error"] <= LARGEST_ERROR:  # not a number is no success either
            raise CheckFailed(f"its outputs differ by up to {figures['max_abs_error']:.2g}")
        return figures
    if "embedding" in part.outputs:
        figures["top10_overlap"] = found.overlap()
        if description.precision == "fp16" and figures["top10_overlap"] < KEPT:
            raise CheckFailed(f"of the ten nearest neighbours only {figures['top10_overlap']:.1%} stay")
    if "reconstruction" in part.outputs and "image" in part.inputs:
        figures["psnr_change"] = found.psnr_change()
        if not figures["psnr_change"] >= -LOST[description.precision]:
            raise CheckFailed(f"it reconstructs worse by {-figures['psnr_change']:.2f} dB")
    return figures


class _Runner:
    """A part by ONNX Runtime and by torch."""

    def __init__(self, path: Path, part: Part, description: Description) -> None:
        self.part, self.rendered = part, description.rendered
        self._session = session(path)
        self._real: list[tuple[list[np.ndarray], list[np.ndarray]]] = []

    def largest_error(self) -> float:
        largest = 0.0
        for count in BATCHES:
            for values in (self.part.random(count), tuple(one[:count] for one in self.part.examples)):
                for known, found in zip(*self.both(values), strict=True):
                    largest = max(largest, float(np.abs(known - found).max()))
        return largest

    def both(self, values: tuple[Tensor, ...]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The outputs by torch, and by ONNX Runtime, of inputs; tokens are cut behind the longest text."""
        if not values[0].is_floating_point():
            values = tuple(one[:, : int((values[0] != 0).sum(1).max())] for one in values)
        elif self.rendered:
            values = (torch.round(values[0] * 255) / 255,)
        with torch.inference_mode():
            outputs = self.part.module(*values)
        known = [one.float().cpu().numpy() for one in (outputs if isinstance(outputs, tuple) else (outputs,))]
        given = [one.cpu().numpy() for one in values]
        if self.rendered:
            given = [np.rint(given[0] * 255).astype(np.uint8)]
        return known, self._session.run(list(self.part.outputs), dict(zip(self.part.inputs, given, strict=True)))

    def outputs(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """One output of all examples, by torch and by ONNX Runtime."""
        if not self._real:
            chunks = zip(*(torch.split(one, EXAMPLES) for one in self.part.examples), strict=True)
            self._real = [self.both(chunk) for chunk in chunks]
        place = self.part.outputs.index(name)
        known, found = ([chunk[side][place] for chunk in self._real] for side in (0, 1))
        return np.concatenate(known), np.concatenate(found)

    def overlap(self) -> float:
        """The share of each example's ten nearest among the others that stay the nearest."""
        known, found = (_nearest(embeddings) for embeddings in self.outputs("embedding"))
        return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(known, found, strict=True)]))

    def psnr_change(self) -> float:
        """dB of PSNR that reconstructions gain (above 0) or lose, on average over the examples."""
        originals = self.part.examples[0].cpu().numpy()
        known, found = self.outputs("reconstruction")
        return float(np.mean([
            metrics.psnr(original, ours) - metrics.psnr(original, theirs)
            for original, ours, theirs in zip(originals, found, known, strict=True)
        ]))  # fmt: skip


def _nearest(embeddings: np.ndarray) -> np.ndarray:
    """The numbers (N, K) of the nearest others of embeddings (N, D), K at most ten."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, : min(10, len(embeddings) - 1)]


# ----------------------------------------------------------------------------------------------------------- task


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
    """Write a part of a model, or all, as ONNX, and check each against torch.

    Args:
        model: On the CPU.
        out: The file; of all parts the folder, of files called `PART.onnx`.
        part: One of `part_names`, or all.
        dataset: Whose validation samples (or else training samples) it is checked with, and whose training samples say
            what ranges int8 needs; None: phantoms are drawn.
        preprocessing: Whether parts that take images take them as they are shown, of any size.
        precision: float32, fp16 or int8.
        licence: Of the weights, for the metadata.
        overwrite: Whether files of that name may be replaced.
        report: Gets Note and Progress events.

    Raises:
        UsageError: the model has no such part; there is no such precision.
        CyclicError: a file exists, or cannot be written; a check failed.
    """
    names = part_names(model)
    registry.check(part, [*names, "all"], f"part of {model.path}")
    registry.check(precision, PRECISIONS, "precision")
    chosen = names if part == "all" else [part]
    if preprocessing and (model.preprocessing.bits != 8 or not set(chosen) & set(OF_IMAGES)):
        raise UsageError(
            "Only parts that take images of 8 bits take them as they are shown.", "Leave --with-preprocessing out."
        )
    files = {name: out / f"{name}.onnx" if part == "all" else out for name in chosen}
    if part != "all" and out.suffix != ".onnx":
        raise UsageError(f"{out} is no name of an ONNX file.", "Let it end in .onnx.")
    taken = [file for file in files.values() if file.exists()]
    if taken and not overwrite:
        raise CyclicError(f"{taken[0]} exists.", "Add --overwrite, or name another --out.")
    examples, calibration = examples_of(model, dataset, report)
    summary = ExportSummary(output=str(out), model=model.fingerprint, precision=precision)
    for done, (name, file) in enumerate(files.items()):
        report(Progress(done, len(files), "parts"))
        report(Note(f"exporting {name}"))
        made = part_of(name, model, examples, calibration)
        description = _description(name, model, preprocessing, precision, licence)
        summary.parts[name] = _make_part(made, description, _draft_of(file))
    report(Progress(len(files), len(files), "parts"))
    drafts = [_draft_of(file) for file in files.values()]
    if precision != "float32" and dataset and part == "all" and {"image", "text"} <= set(model.modalities):
        exported = OnnxModel(out, "cpu", drafts)
        summary.recall_change, least = _recall_change(model, exported, StoredDataset(dataset))
        change = summary.recall_change or 0.0
        if precision == "fp16" and abs(change) > max(RECALL_LOST, least):
            raise CyclicError(
                f"The export of both encoders failed its check: recall changes by {100 * change:.1f} "
                "points.", f"Its parts are kept as {out}/*{FAILED}; nothing was replaced."
            )  # fmt: skip
    for draft, file in zip(drafts, files.values(), strict=True):
        onnx_file.rename(draft, file)
    return summary


def _draft_of(file: Path) -> Path:
    """What a part is called until it has passed its check, and after that if it does not."""
    return file.with_name(file.stem + FAILED)


def _recall_change(model: TorchModel, exported: OnnxModel, stored: StoredDataset) -> tuple[float | None, float]:
    """The change of R@1, R@5 and R@10 of own partners, both ways, that is largest; None without pairs.

    Of the validation part, else of training; and the share that a single query is, which is the least a change can be.
    """
    for split in ("val", "train"):
        rows = stored.rows(["has_image", "has_text", "shard", "row", "text", "patient"], split)
        both = np.flatnonzero(rows["has_image"].astype(bool) & rows["has_text"].astype(bool))[:POOL]
        if len(both):
            break
    else:
        return None, 0.0
    fitted = stored.images(rows["shard"][both], rows["row"][both])
    texts, patients, own = rows["text"][both].tolist(), rows["patient"][both], np.arange(len(both))
    recalls = []
    one: TorchModel | OnnxModel
    for one in (model, exported):
        chunks = [slice(first, first + EXAMPLES) for first in range(0, len(both), EXAMPLES)]
        seen = np.concatenate([one.embed_images(fitted[chunk]) for chunk in chunks])
        said = np.concatenate([one.embed_texts(texts[chunk]) for chunk in chunks])
        found = [retrieval.recall(a, b, own, own, patients) for a, b in ((seen, said), (said, seen))]
        recalls.append(np.array([(recall.r1, recall.r5, recall.r10) for recall in found if recall]))
    changes = (recalls[1] - recalls[0]).ravel()
    return float(changes[np.abs(changes).argmax()]) if len(changes) else None, 1 / len(both)


def _description(name: str, model: TorchModel, preprocessing: bool, precision: str, licence: str) -> Description:
    architecture = dict(model.checkpoint.architecture)
    facts = architecture.pop("facts", {})
    of_text = facts["text"] if name == "text-encoder" else None
    return Description(
        part=name,
        architecture=architecture,
        preprocessing=model.preprocessing,
        rendered=preprocessing and name in OF_IMAGES,
        tokenizer=_tokenizer(of_text["tokenizer"], of_text["limit"]) if of_text else {},
        precision=precision,
        fingerprint=model.fingerprint,
        licence=licence,
        provenance=model.checkpoint.provenance,
    )


def _tokenizer(vocabulary: str, limit: int) -> dict[str, Any]:
    """A vocabulary as this program reads it, and as `tokenizers` does."""
    return {"vocabulary": vocabulary, "limit": limit, "library": Vocabulary.from_json(vocabulary).to_library()}


def _make_part(part: Part, description: Description, draft: Path) -> dict[str, Any]:
    """Write one part and check it. Raises CyclicError when it fails."""
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
        f"The export of {part.name} failed its check: {failure}.", f"It is kept as {draft}; nothing was replaced."
    ) from failure


def _candidates(model: onnx.ModelProto, part: Part, precision: str) -> Iterator[tuple[onnx.ModelProto, dict[str, int]]]:
    """The model in a precision; in int8, should it fail its check, with more and more operations left in float32."""
    if precision == "float32":
        yield model, {}
    elif precision == "fp16":
        yield halved(model), {}
    else:
        chunks = zip(*(torch.split(one, EXAMPLES) for one in part.calibration), strict=True)
        inputs = [dict(zip(part.inputs, (one.numpy() for one in chunk), strict=True)) for chunk in chunks]
        quantiser = Quantiser(model, inputs)
        count = len(quantiser.operations)
        for in_float in sorted({0, count - 1, *(2**step for step in range(30) if 2**step < count)}):
            yield quantiser.quantised(in_float), {"operations": count, "in_float32": in_float}
