"""ONNX files of any framework as encoders, run by ONNX Runtime.

An image encoder has one input (N, C, S, S) of float32 or float16, with one or three channels. A text encoder has
`input_ids` and `attention_mask` (N, L) of integers, also `token_type_ids` and `position_ids` if need be, and a
`tokenizer.json` beside the file. The metadata of the file may state `mean` and `std` of the pixels, `license`, and the
`max_length` of texts.

    output of the graph                gives features
    (N, F)                             as they are
    (N, D, h, w) of images             (N, 4D): the map pooled to 2×2
    (N, T, D) of images, as of a ViT   (N, 4D): the map of its patches pooled to 2×2; where tokens stand before the
                                       patches, also `NAME first` (N, D), the first of them; no square map: the mean
    (N, L, D) of texts                 (N, D): the mean over the tokens
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from cyclic_cli import registry
from cyclic_cli.environment import available_cpus
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.pretrained.encoder import EncoderFacts, Geometry, Output, PretrainedEncoder
from cyclic_cli.pretrained.fingerprint import fingerprint_of
from cyclic_cli.pretrained.geometry import NORMALISATION, fitted, normalisation
from cyclic_cli.pretrained.onnx_inputs import (
    AGAIN,
    FLOATS,
    INTEGERS,
    image_input,
    own_file,
    read_tokenizer,
    stated_licence,
    stated_normalisation,
    stated_window,
    text_inputs,
)
from cyclic_cli.pretrained.pooling import mean_of_tokens, pooled_map, pooled_patches
from cyclic_cli.pretrained.tokens import Tokens
from cyclic_cli.pretrained.windows import over_windows
from cyclic_cli.storage import onnx_file

CPU = ["CPUExecutionProvider"]
BEFORE_PATCHES = (0, 1, 5, 2)  # tokens before the patches of a ViT: none, class, class and four registers, two classes
USUAL_SIZE = 224  # pixels per side, where neither the graph nor a dataset tells it
WINDOWS = (512, 256, 128, 77, 64, 32)  # tokens that are tried where nothing tells how many fit
RETRY = "Export the network again. If it takes images of any size, try a dataset of another --size."
SAME, SAME_HALF = 1e-3, 1e-2  # largest difference of equal features by the largest value, in float32 and float16


def open_graph(
    path: Path,
    outputs: Sequence[str],
    modality: str,
    image_shape: tuple[int, int, int] | None,
    overrides: Mapping[str, Any],
) -> "OnnxEncoder":
    """Open an ONNX file as an encoder, and try it on two inputs.

    Args:
        path: The file. One that `cyclic export` made is an encoder of images, with the outputs code and embedding.
        outputs: Names of outputs of the graph; none: all that give features.
        modality: image or text.
        image_shape: (C, S, S) of the dataset, whose size a graph for images of any size takes; None where there is
            none.
        overrides: `mean` and `std` of the pixels, in place of those that the metadata of the file state.

    Raises:
        UsageError: there is no output of a name, the graph encodes another modality, or the normalisation of images is
            not stated.
        CyclicError: the file cannot be used; the message says why.
    """
    model = onnx_file.read_network(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if not model.graph.output:
        raise CyclicError(f"{path} has no outputs.", "Export the network again.")
    facts = EncoderFacts(
        kind="onnx", modality=modality, family=path.stem, fingerprint="", outputs=(),
        licence=stated_licence(metadata), settings={"one_by_one": False},
    )  # fmt: skip
    allowed: Sequence[str] = ()
    if onnx_file.KEY in metadata:
        facts, metadata, allowed = own_file(path, facts)
    graph = _Graph(onnx_file.content_of(model), str(path), CPU)
    candidates = _candidates(graph, outputs, allowed)
    facts = replace(facts, settings=facts.settings | {"outputs": candidates})
    if modality == "text":
        encoder = _opened_texts(graph, facts, path, metadata, bool(outputs))
    else:
        encoder = _opened_images(graph, facts, image_shape, metadata, overrides, bool(outputs))
    return encoder if _providers() == CPU else type(encoder)(encoder.facts, _Graph(graph.content, str(path)))


def rebuild(facts: EncoderFacts, file: Path) -> "OnnxEncoder":
    """Make an encoder from its facts and the graph that `OnnxEncoder.graph_bytes` returned.

    Raises:
        CyclicError: the file is missing or damaged, or belongs to another encoder.
    """
    onnx_file.read_network(file)  # refuses what is not safe to run
    content = file.read_bytes()  # not serialised anew: another version of protobuf may order bytes differently
    if fingerprint_of(facts, content) != facts.fingerprint or not {"outputs", "one_by_one"} <= facts.settings.keys():
        raise CyclicError(f"{file} is not the encoder of this model.", "Copy the whole run folder again.")
    kind = TextGraph if facts.modality == "text" else ImageGraph
    return kind(facts, _Graph(content, str(file)))


class OnnxEncoder(PretrainedEncoder):
    """An encoder whose graph ONNX Runtime runs. See `encoder.PretrainedEncoder` for its contract.

    `settings` of its facts: `outputs`, names of outputs of the graph; and `one_by_one`, whether the graph takes one
    sample at a time, because its batch is fixed or because the samples of a batch change one another's features.
    """

    trainable = False

    def __init__(self, facts: EncoderFacts, graph: "_Graph") -> None:
        super().__init__()
        self.facts, self.graph = facts, graph

    def place(self, device: torch.device) -> str:
        """Return the provider and version of ONNX Runtime, which chooses the device itself."""
        return f"{_providers()[0]} {onnxruntime.__version__}"

    def graph_bytes(self) -> bytes:
        """The graph with its weights, as the content of an ONNX file without metadata and traces of a machine."""
        return self.graph.content

    def parameter_count(self) -> int:
        """The number of weights."""
        return onnx_file.count_weights(self.graph.content)

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        """Features (N, F) by name, of a batch of inputs of the graph."""
        if len(batch) == 1 or not self.facts.settings["one_by_one"]:
            return self.features(self.raw(batch), batch)
        several = [self.features(self.raw(one), one) for one in map(self.alone, torch.split(batch, 1))]
        return {name: torch.cat([one[name] for one in several]) for name in several[0]}

    def alone(self, sample: Tensor) -> Tensor:
        """A batch of one sample without what only others need."""
        return sample

    def raw(self, batch: Tensor) -> dict[str, Tensor]:
        """The outputs of the graph, float32 by name."""
        names: list[str] = self.facts.settings["outputs"]
        found = self.graph.run(names, self.feeds(batch.detach().cpu()))
        return {
            name: torch.from_numpy(np.asarray(one, np.float32)).to(batch.device)
            for name, one in zip(names, found, strict=True)
        }

    def feeds(self, batch: Tensor) -> dict[str, np.ndarray]:
        """The inputs of the graph by name."""
        raise NotImplementedError

    def features(self, raw: Mapping[str, Tensor], batch: Tensor) -> dict[str, Tensor]:
        """Features (N, F) by name, of the outputs of the graph."""
        raise NotImplementedError

    def size_of(self, raw: Tensor, batch: Tensor) -> tuple[int, ...] | None:
        """What must be the same for any single sample of an output that gives features; None of another output."""
        raise NotImplementedError


class ImageGraph(OnnxEncoder):
    """An encoder of images."""

    def forward(self, content: Tensor) -> dict[str, Tensor]:
        assert self.facts.geometry is not None
        return self.encode(fitted(content, self.facts.geometry))

    def feeds(self, batch: Tensor) -> dict[str, np.ndarray]:
        port = self.graph.inputs[0]
        return {port.name: batch.numpy().astype(FLOATS[port.type], copy=False)}

    def features(self, raw: Mapping[str, Tensor], batch: Tensor) -> dict[str, Tensor]:
        return image_features(raw)

    def size_of(self, raw: Tensor, batch: Tensor) -> tuple[int, ...] | None:
        return tuple(raw.shape) if 2 <= raw.dim() <= 4 and len(raw) == 1 and raw.numel() else None


class TextGraph(OnnxEncoder):
    """An encoder of texts. Its batches are windows (N, L) as `Tokens` makes them: token number plus 1, 0 as padding."""

    def forward(self, content: Tensor) -> dict[str, Tensor]:
        names = [output.name for output in self.facts.outputs]
        together = over_windows(content, lambda rows: torch.cat([self.encode(rows)[name] for name in names], 1))
        parts = torch.split(together, [output.dims for output in self.facts.outputs], 1)
        return dict(zip(names, parts, strict=True))

    def alone(self, sample: Tensor) -> Tensor:
        return sample[:, : max(int((sample > 0).sum()), 1)]

    def padded(self, rows: Tensor) -> Tensor:
        """Windows of the length that the graph takes, where that is fixed."""
        length = self.graph.inputs[0].shape[1]
        return torch.nn.functional.pad(rows, (0, length - rows.shape[1])) if isinstance(length, int) else rows

    def feeds(self, batch: Tensor) -> dict[str, np.ndarray]:
        rows = self.padded(batch).numpy()
        values = {
            "input_ids": (rows - 1).clip(min=0),
            "attention_mask": rows > 0,
            "token_type_ids": np.zeros_like(rows),
            "position_ids": np.tile(np.arange(rows.shape[1]), (len(rows), 1)),
        }
        return {port.name: values[port.name].astype(INTEGERS[port.type]) for port in self.graph.inputs}

    def features(self, raw: Mapping[str, Tensor], batch: Tensor) -> dict[str, Tensor]:
        return text_features(raw, self.padded(batch) > 0)

    def size_of(self, raw: Tensor, batch: Tensor) -> tuple[int, ...] | None:
        length = self.padded(batch).shape[1]
        is_usable = len(raw) == 1 and raw.numel() and (raw.dim() == 2 or (raw.dim() == 3 and raw.shape[1] == length))
        return (raw.dim(), raw.shape[-1]) if is_usable else None


def image_features(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Features (N, F) by name, of the outputs of a graph of images, see above. It can be exported to ONNX."""
    found = {}
    for name, values in raw.items():
        if values.dim() == 2:
            found[name] = values
        elif values.dim() == 4:
            found[name] = values.flatten(1) if values.shape[2] * values.shape[3] == 1 else pooled_map(values)
        elif (before := _before_patches(values.shape[1])) is None:
            found[name] = values.mean(1)
        else:
            side = math.isqrt(values.shape[1] - before)
            found[name] = pooled_patches(values[:, before:], side, side)
            if before:
                found[f"{name} first"] = values[:, 0]
    return found


def text_features(raw: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Features (N, F) by name, of the outputs of a graph of texts; `mask` (N, L) is true where there are tokens."""
    return {name: mean_of_tokens(values, mask) if values.dim() == 3 else values for name, values in raw.items()}


def _before_patches(tokens: int) -> int | None:
    """The number of tokens before those of a square map of at least 2×2 patches; None where there is no such map."""
    squares = [
        count for count in BEFORE_PATCHES if tokens - count >= 4 and math.isqrt(tokens - count) ** 2 == tokens - count
    ]
    return squares[0] if squares else None


class _Graph:
    """A session of ONNX Runtime with its content and its inputs."""

    def __init__(self, content: bytes, where: str, providers: list[str] | None = None) -> None:
        """Raises CyclicError when ONNX Runtime cannot load the graph. `where` names it in messages."""
        self.content, self.where = content, where
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = available_cpus()
        options.log_severity_level = 4  # fatal only: what fails becomes a CyclicError
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers or _providers())
        except Exception as error:  # the errors of ONNX Runtime have no common base class
            raise CyclicError(f"ONNX Runtime cannot load {where}.", "Export the network again.") from error
        self.inputs = self._session.get_inputs()
        self.types = {output.name: output.type for output in self._session.get_outputs()}

    def __deepcopy__(self, _: dict[int, Any]) -> "_Graph":
        """The same graph: sessions cannot be copied, and never change."""
        return self

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of some names. Raises CyclicError when the graph does not run."""
        try:
            found: list[np.ndarray] = self._session.run(names, feeds)
        except Exception as error:  # as above
            shape = " × ".join(map(str, next(iter(feeds.values())).shape))
            raise CyclicError(f"{self.where} does not run on an input of {shape}.", RETRY) from error
        return found


def _providers() -> list[str]:
    found = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return ["CUDAExecutionProvider", *CPU] if found else CPU


def _candidates(graph: _Graph, named: Sequence[str], allowed: Sequence[str]) -> list[str]:
    """The outputs to try: those that the user names, or all that are numbers."""
    known = [name for name in graph.types if name in allowed or not allowed]
    for name in named:
        registry.check(name, known, f"output of {graph.where}")
        if graph.types[name] not in FLOATS:
            raise UsageError(f"The output {name!r} of {graph.where} is not of float32 or float16.", "Name another one.")
    found = list(named) or [name for name in known if graph.types[name] in FLOATS]
    if not found:
        raise CyclicError(f"No output of {graph.where} is of float32 or float16.", "Export the network again.")
    return list(dict.fromkeys(found))


def _opened_images(
    graph: _Graph,
    facts: EncoderFacts,
    image_shape: tuple[int, int, int] | None,
    metadata: Mapping[str, str],
    overrides: Mapping[str, Any],
    named: bool,
) -> OnnxEncoder:
    batch, channels, side = image_input(graph.inputs, graph.where)
    size = side or (image_shape[1] if image_shape else USUAL_SIZE)
    stated = stated_normalisation(metadata, graph.where)
    values = stated | {name: overrides[name] for name in ("mean", "std") if overrides.get(name) is not None}
    if not {"mean", "std"} <= values.keys():
        said = f"{graph.where} does not state the mean and std of its pixels; its source does. If both are 0.5, add"
        raise UsageError(said, NORMALISATION)
    mean, std = normalisation({}, values, channels, graph.where)
    geometry = Geometry(size=size, native=size, channels=channels, mean=mean, std=std)
    settings = facts.settings | {"one_by_one": batch == 1}
    encoder = ImageGraph(replace(facts, geometry=geometry, settings=settings), graph)
    grey = torch.full((1, 1, size, size), 0.5)
    ramp = torch.linspace(0, 1, size).expand(1, 1, size, size)
    return _tried(encoder, fitted(grey, geometry), fitted(ramp, geometry), named)


def _opened_texts(
    graph: _Graph, facts: EncoderFacts, path: Path, metadata: Mapping[str, str], named: bool
) -> OnnxEncoder:
    batch, length = text_inputs(graph.inputs, graph.where)
    tokenizer = read_tokenizer(path)
    settings = facts.settings | {"one_by_one": batch == 1}
    encoder = TextGraph(replace(facts, tokenizer=tokenizer, settings=settings), graph)
    window = _window(encoder, stated_window(tokenizer, metadata, str(path)), length)
    encoder.facts = replace(encoder.facts, window=window)
    tokens = Tokens(tokenizer, window, str(path)).encode(["a small round nodule on the left", "a"])
    long, short = (encoder.alone(one) for one in torch.split(torch.from_numpy(tokens)[:, 0], 1))
    return _tried(encoder, long, short, named)


def _window(encoder: TextGraph, stated: int | None, length: Any) -> int:
    """How many tokens the graph reads at once. Windows are tried with the last token of the vocabulary."""
    highest = Tokens(encoder.facts.tokenizer, 2**20, encoder.graph.where).size
    if isinstance(length, int):
        stated = min(length, stated or length)
    for window in (stated,) if stated else WINDOWS:
        try:
            encoder.raw(torch.full((1, window), highest))
        except CyclicError:
            continue
        return window
    raise CyclicError(
        f"{encoder.graph.where} does not run on {stated or WINDOWS[-1]} of the {highest} tokens of its tokenizer.json.",
        "Copy both from the same source, or add max_length to the metadata of the file.",
    )


def _tried(encoder: OnnxEncoder, first: Tensor, second: Tensor, named: bool) -> OnnxEncoder:
    """Run an encoder on two samples, alone and together, and fill in what that shows.

    Args:
        encoder: All outputs that may give features.
        first: The input of the graph for one sample.
        second: That for another sample; of texts a shorter one.
        named: Whether the user named the outputs. If not, those that give no features are left out.
    """
    where, graph = encoder.graph.where, encoder.graph
    one, other, again = encoder.raw(first), encoder.raw(second), encoder.raw(first)
    sizes = {name: encoder.size_of(values, first) for name, values in one.items()}
    usable = [name for name in one if sizes[name] and sizes[name] == encoder.size_of(other[name], second)]
    if not usable or (named and len(usable) < len(one)):
        bad = next(name for name in one if name not in usable)
        raise CyclicError(
            f"The output {bad!r} of {where} has no fixed size, or is neither a vector nor a map.",
            f"Name others: PATH#NAME,NAME. Outputs: {', '.join(graph.types)}.",
        )
    if not all(values[name].isfinite().all() for values in (one, other) for name in usable):
        raise CyclicError(
            f"{where} gives numbers that are not finite for a plain input.", "Export it in float32, or check it."
        )
    if not all(_close(one[name], again[name], SAME_HALF) for name in usable):
        raise CyclicError(f"{where} gives other numbers each time.", AGAIN)
    settings = encoder.facts.settings | {"outputs": usable}
    encoder.facts = replace(encoder.facts, settings=settings)
    settings = settings | {"one_by_one": settings["one_by_one"] or not _takes_batches(encoder, first, second)}
    dims = {
        name: values.shape[1] for name, values in encoder.features({name: one[name] for name in usable}, first).items()
    }
    outputs = tuple(Output(name=name, dims=count) for name, count in dims.items())
    facts = replace(encoder.facts, outputs=outputs, settings=settings)
    return type(encoder)(replace(facts, fingerprint=fingerprint_of(facts, graph.content)), graph)


def _takes_batches(encoder: OnnxEncoder, first: Tensor, second: Tensor) -> bool:
    """Whether two samples together give what each gives alone."""
    rows = first.new_zeros(2, *first.shape[1:])
    rows[:1], rows[1:, ..., : second.shape[-1]] = first, second
    try:
        together = encoder.encode(rows)
    except CyclicError:
        return False
    alone = [encoder.encode(one) for one in (first, second)]
    share = SAME_HALF if any(port.type == "tensor(float16)" for port in encoder.graph.inputs) else SAME
    return all(
        _close(one[name], together[name][place : place + 1], share) for place, one in enumerate(alone) for name in one
    )


def _close(one: Tensor, other: Tensor, share: float) -> bool:
    """Whether two tensors differ by at most a share of the largest magnitude."""
    return one.shape == other.shape and bool((one - other).abs().max() <= share * one.abs().max() + 1e-12)
