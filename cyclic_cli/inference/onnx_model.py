"""Apply an exported model with ONNX Runtime: embeddings and reconstructions, as `torch_model.py` makes with torch."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from cyclic_cli.config import NORM_TOLERANCE, Preprocessing
from cyclic_cli.environment import available_cpus
from cyclic_cli.errors import CyclicError
from cyclic_cli.imaging.readers import as_float
from cyclic_cli.storage import onnx_file
from cyclic_cli.storage.onnx_file import Description

if TYPE_CHECKING:
    from cyclic_cli.codes.text_reader import TextReader
    from cyclic_cli.text_encoders._vocabulary import Vocabulary

EMBED_IMAGES = ("image-encoder", "encoder", "autoencoder")  # parts that embed images, the cheapest first
TYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(int32)": np.int32,
}  # fmt: skip
EXPORT = "Take a model that has one, and export all of its parts: cyclic export --part all."


class OnnxModel:
    """One exported part of a model, or all the parts in a folder."""

    def __init__(self, path: Path, device: str = "auto", files: Sequence[Path] = ()) -> None:
        """Open a file, or a folder.

        Args:
            path: An `.onnx` file, or a folder of such files.
            device: auto, cpu or cuda.
            files: The files of the folder to open; none: all that passed the check of `cyclic export`.

        Raises:
            CyclicError: a file is not a part of a model; a folder holds parts of several models; there is no CUDA
                device.
        """
        self.path = path
        self._providers = _providers(device)
        passed = sorted(file for file in path.glob("*.onnx") if not file.name.endswith(onnx_file.FAILED))
        files = list(files) or (passed if path.is_dir() else [path])
        if not files:
            raise CyclicError(f"{path} holds no model.", "Give a run folder, a .safetensors or an .onnx file.")
        described = {file: onnx_file.read(file)[1] for file in files}
        self._parts = {one.part: (file, one) for file, one in described.items()}
        one = next(iter(described.values()))
        if len({other.fingerprint for other in described.values()}) > 1 or len(self._parts) < len(described):
            raise CyclicError(f"{path} holds parts of several models.", "Name one file.")
        self.preprocessing: Preprocessing = one.preprocessing
        self.fingerprint = one.fingerprint
        self.architecture = str(one.architecture["name"])
        self.batch = 16 if self._providers == ["CPUExecutionProvider"] else 256
        self._runners: dict[str, PartRunner] = {}

    @property
    def modalities(self) -> list[str]:
        """The modalities that the parts encode."""
        encoders = [part.removesuffix("-encoder") for part in self._parts if part.endswith("-encoder")]
        return sorted({*encoders, *(["image"] if self._parts.keys() & set(EMBED_IMAGES) else [])})

    def require(self, *modalities: str, decoders: bool = False) -> None:
        """Raise CyclicError when the parts encode no such modality, or do not decode images."""
        for name in modalities:
            if name not in self.modalities:
                raise CyclicError(f"{self.path} has no {name} encoder.", EXPORT)
        if decoders and "autoencoder" not in self._parts:
            raise CyclicError(f"{self.path} has no decoder.", EXPORT)

    def embed_images(self, fitted: np.ndarray) -> np.ndarray:
        """L2-normalised embeddings (N, D) float32 of images (N, C, H, W) uint8 or uint16."""
        self.require("image")
        part = next(part for part in EMBED_IMAGES if part in self._parts)
        return self._embeddings(part, {"image": self._images(part, fitted)}, len(fitted))

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """L2-normalised embeddings (N, D) float32 of N texts."""
        # imported here, because most models have no text encoder
        from cyclic_cli.text_encoders._vocabulary import padded

        self.require("text")
        if self._reader:
            return self._embeddings("text-encoder", {"input_ids": self._reader.read(texts)}, len(texts))
        encoded = self._vocabulary.encode(texts, int(self._parts["text-encoder"][1].tokenizer["limit"]))
        tokens = padded(encoded, max(map(len, encoded)))
        values = {"input_ids": tokens, "attention_mask": (tokens != 0) * 1}
        return self._embeddings("text-encoder", values, len(texts))

    def unknown_words(self, text: str) -> list[str]:
        """The different words of a text that the model does not know, in order, see `text_encoders._known_words`."""
        from cyclic_cli.text_encoders._known_words import unknown_to

        self.require("text")
        if self._reader:
            return self._reader.unknown_words(text, self._words)
        return unknown_to(self._vocabulary, text, self._words)

    def reconstruct(self, fitted: np.ndarray) -> np.ndarray:
        """Images (N, C, H, W) uint8 or uint16 → reconstructions (N, C, H, W) float32 in [0, 1]."""
        self.require("image", decoders=True)
        output = self._run("autoencoder", "reconstruction", {"image": self._images("autoencoder", fitted)})
        return output.clip(0, 1)

    @cached_property
    def _reader(self) -> "TextReader | None":
        """The reader of texts of a model with fixed codes."""
        from cyclic_cli.codes.text_reader import TextReader

        sources = self._parts["text-encoder"][1].tokenizer.get("sources")
        return TextReader(sources) if sources else None

    @cached_property
    def _vocabulary(self) -> "Vocabulary":
        from cyclic_cli.text_encoders._vocabulary import Vocabulary

        return Vocabulary.from_json(self._parts["text-encoder"][1].tokenizer["vocabulary"])

    @cached_property
    def _words(self) -> frozenset[str]:
        return frozenset(self._parts["text-encoder"][1].tokenizer.get("words", ()))

    def _images(self, part: str, fitted: np.ndarray) -> np.ndarray:
        return fitted if self._parts[part][1].rendered else as_float(fitted)

    def _embeddings(self, part: str, values: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        """Embeddings (N, D) of N images or texts.

        Raises:
            CyclicError: the output has another shape, or is not L2-normalised; a file of another program may do that.
        """
        found = self._run(part, "embedding", values)
        if found.ndim != 2 or len(found) != count or not np.isfinite(found).all():
            raise CyclicError(f"{self._parts[part][0]} does not return embeddings.", "Export it again.")
        if np.abs(np.linalg.norm(found, axis=1) - 1).max(initial=0) > NORM_TOLERANCE:
            raise CyclicError(f"{self._parts[part][0]} returns vectors that are not L2-normalised.", "Export it again.")
        return found

    def _run(self, part: str, output: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
        file, description = self._parts[part]
        if part not in self._runners:
            self._runners[part] = PartRunner(file, description, self._providers)
        try:
            found = self._runners[part].run([output], values)[0]
        except Exception as error:  # the errors of ONNX Runtime have no common base class
            raise CyclicError(f"{file} does not run as the part {part}.", "Export it again.") from error
        return found.astype(np.float32, copy=False)


class PartRunner:
    """Runs the file of a part, after the files of its pieces where it has some."""

    def __init__(self, path: Path, description: Description, providers: list[str] | None = None) -> None:
        """Raises CyclicError when a file is missing or damaged, belongs to another model, or cannot be loaded."""
        self._pieces = []
        for piece in description.pieces:
            file = onnx_file.piece_of(path, piece["file"])
            if onnx_file.read(file)[1].fingerprint != description.fingerprint:
                raise CyclicError(f"{file} is of another model than {path}.", "Copy all files of the export.")
            self._pieces.append((session(file, providers), piece))
        self._session = session(path, providers)

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of some names. Raises what ONNX Runtime raises."""
        values = dict(inputs)
        for one, piece in self._pieces:
            given = {port.name: values[piece["inputs"][port.name]] for port in one.get_inputs()}
            names = list(piece["outputs"])
            found = _run_one_by_one(one, names, given) if piece.get("one_by_one") else _run(one, names, given)
            values |= zip(piece["outputs"].values(), found, strict=True)
        given = {port.name: values[port.name] for port in self._session.get_inputs()}
        return _run(self._session, list(outputs), given)


def _run(one: onnxruntime.InferenceSession, names: list[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run a session on inputs that may have other number types than it takes."""
    types = {port.name: TYPES.get(port.type) for port in one.get_inputs()}
    feeds = {name: value.astype(types[name] or value.dtype, copy=False) for name, value in inputs.items()}
    found: list[np.ndarray] = one.run(names, feeds)
    return found


def _run_one_by_one(
    one: onnxruntime.InferenceSession, names: list[str], inputs: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Run a session on the samples of a batch, one after another, and on texts without their padding if it can."""
    mask = inputs.get("attention_mask")
    is_fixed = any(isinstance(port.shape[1], int) for port in one.get_inputs())
    rows = []
    for place in range(len(next(iter(inputs.values())))):
        sample = {name: value[place : place + 1] for name, value in inputs.items()}
        length = int(mask[place].sum()) if mask is not None and not is_fixed else None
        found = _run(one, names, {name: value[:, :length] for name, value in sample.items()} if length else sample)
        missing = mask.shape[1] - length if mask is not None and length else 0
        rows.append([np.pad(value, ((0, 0), (0, missing), (0, 0))) if value.ndim == 3 else value for value in found])
    return [np.concatenate(values) for values in zip(*rows, strict=True)]


def session(model: Path | bytes, providers: list[str] | None = None) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session of a model. Raises CyclicError when the model cannot be loaded."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    options.log_severity_level = 3  # errors only: its warnings are about its own optimisations
    try:
        return onnxruntime.InferenceSession(model, options, providers or ["CPUExecutionProvider"])
    except Exception as error:  # the errors of ONNX Runtime have no common base class
        where = model if isinstance(model, Path) else "the model"
        raise CyclicError(f"ONNX Runtime cannot load {where}.", "Export it again.") from error


def _providers(device: str) -> list[str]:
    available: list[Any] = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" in available and device != "cpu":
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    if device == "cuda":
        raise CyclicError("No CUDA device can be used here.", "Take --device cpu or auto.")
    return ["CPUExecutionProvider"]
