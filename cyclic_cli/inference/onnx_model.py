"""An exported model at work, by ONNX Runtime: what `torch_model.py` does, without torch."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from cyclic_cli.config import UNIT, Preprocessing, available_cpus
from cyclic_cli.errors import CyclicError
from cyclic_cli.imaging.readers import as_float
from cyclic_cli.storage import onnx_file

if TYPE_CHECKING:
    from cyclic_cli.text_encoders._vocabulary import Vocabulary

EMBED_IMAGES = ("image-encoder", "encoder", "autoencoder")  # parts that can, those that do least beside it first
EXPORT = "Export the whole of a model that has: cyclic export --part all."


class OnnxModel:
    """One exported part of a model, or those that lie in a folder."""

    def __init__(self, path: Path, device: str = "auto", files: Sequence[Path] = ()) -> None:
        """Open a file, or of a folder those `files`; else all that passed their check.

        Raises:
            CyclicError: a file is no part of a model, those of a folder are of several, CUDA is not there.
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
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    @property
    def modalities(self) -> list[str]:
        """What the parts encode."""
        encoders = [part.removesuffix("-encoder") for part in self._parts if part.endswith("-encoder")]
        return sorted({*encoders, *(["image"] if self._parts.keys() & set(EMBED_IMAGES) else [])})

    def require(self, *modalities: str, decoders: bool = False) -> None:
        """Raise CyclicError when the parts at hand lack a modality, or the way back from a code."""
        for name in modalities:
            if name not in self.modalities:
                raise CyclicError(f"{self.path} has no {name} side.", EXPORT)
        if decoders and "autoencoder" not in self._parts:
            raise CyclicError(f"{self.path} encodes and does not decode.", EXPORT)

    def embed_images(self, fitted: np.ndarray) -> np.ndarray:
        """Embeddings (N, D) float32 of unit norm of images (N, C, H, W) uint8 or uint16."""
        self.require("image")
        part = next(part for part in EMBED_IMAGES if part in self._parts)
        return self._embeddings(part, {"image": self._images(part, fitted)}, len(fitted))

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Embeddings (N, D) float32 of unit norm of texts (N)."""
        from cyclic_cli.text_encoders._vocabulary import padded  # here: most models have no texts

        self.require("text")
        encoded = self._vocabulary.encode(texts, int(self._parts["text-encoder"][1].tokenizer["limit"]))
        tokens = padded(encoded, max(map(len, encoded)))
        values = {"input_ids": tokens, "attention_mask": (tokens != 0) * 1}
        return self._embeddings("text-encoder", values, len(texts))

    def reconstruct(self, fitted: np.ndarray) -> np.ndarray:
        """Images (N, C, H, W) uint8 or uint16 → reconstructions (N, C, H, W) float32 in [0, 1]."""
        self.require("image", decoders=True)
        output = self._run("autoencoder", "reconstruction", {"image": self._images("autoencoder", fitted)})
        return output.clip(0, 1)

    @cached_property
    def _vocabulary(self) -> "Vocabulary":
        from cyclic_cli.text_encoders._vocabulary import Vocabulary

        return Vocabulary.from_json(self._parts["text-encoder"][1].tokenizer["vocabulary"])

    def _images(self, part: str, fitted: np.ndarray) -> np.ndarray:
        return fitted if self._parts[part][1].rendered else as_float(fitted)

    def _embeddings(self, part: str, values: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        """Embeddings (N, D) of N values. Raises CyclicError when a part gives anything else, as one of others may."""
        found = self._run(part, "embedding", values)
        if found.ndim != 2 or len(found) != count or not np.isfinite(found).all():
            raise CyclicError(f"{self._parts[part][0]} gives no embeddings.", "Export it again.")
        if np.abs(np.linalg.norm(found, axis=1) - 1).max(initial=0) > UNIT:
            raise CyclicError(f"{self._parts[part][0]} gives embeddings that are not of unit norm.", "Export it again.")
        return found

    def _run(self, part: str, output: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
        file = self._parts[part][0]
        if part not in self._sessions:
            self._sessions[part] = session(file, self._providers)
        try:
            found: np.ndarray = self._sessions[part].run([output], values)[0]
        except Exception as error:  # the library's own have no root of theirs
            raise CyclicError(f"{file} does not run as the {part} that it says it is.", "Export it again.") from error
        return found.astype(np.float32, copy=False)


def session(model: Path | bytes, providers: list[str] | None = None) -> onnxruntime.InferenceSession:
    """A model that ONNX Runtime can run. Raises CyclicError when it cannot."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    options.log_severity_level = 3  # errors: what it has to say besides is about itself
    try:
        return onnxruntime.InferenceSession(model, options, providers or ["CPUExecutionProvider"])
    except Exception as error:  # the library's own have no root of theirs
        where = model if isinstance(model, Path) else "the model"
        raise CyclicError(f"ONNX Runtime cannot load {where}.", "Export it again.") from error


def _providers(device: str) -> list[str]:
    there: list[Any] = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" in there and device != "cpu":
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    if device == "cuda":
        raise CyclicError("No CUDA device can be used here.", "Take --device cpu or auto.")
    return ["CPUExecutionProvider"]
