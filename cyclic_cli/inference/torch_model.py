"""Apply a checkpoint with torch: embeddings of images and texts, and reconstructions of images.

`onnx_model.py` does the same without torch, for models that `cyclic export` made.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cyclic_cli import registry
from cyclic_cli.codes.code_reader import CodeReader
from cyclic_cli.codes.coded import CodedEncoder
from cyclic_cli.codes.contents import image_digests, text_digests
from cyclic_cli.codes.open_cache import OpenCache
from cyclic_cli.codes.text_reader import TERMS
from cyclic_cli.config import Preprocessing, build
from cyclic_cli.distributed import resolve, use_available_threads, use_whole_float32
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Report, silent
from cyclic_cli.imaging.readers import as_float
from cyclic_cli.models._embedding import embed
from cyclic_cli.models._joint import Reconstructing
from cyclic_cli.models._rebuilding import attach_frozen, rebuild
from cyclic_cli.pretrained.stored import read_encoder
from cyclic_cli.storage.checkpoint import read_checkpoint
from cyclic_cli.storage.run import encoders_of

BATCHES = {"cpu": 16, "cuda": 256}  # batch sizes with nearly the highest throughput, by device


class TorchModel:
    """A checkpoint, rebuilt with torch on the CPU or on CUDA."""

    def __init__(self, path: Path, device: str = "auto") -> None:
        """Load a checkpoint.

        Args:
            path: A `.safetensors` file.
            device: auto, cpu or cuda.

        Raises:
            CyclicError: the checkpoint is damaged, or does not fit its architecture; there is no CUDA device.
        """
        use_available_threads()
        use_whole_float32()
        self.path = path
        self._device = torch.device(resolve(device, "32")[0])
        self.checkpoint = read_checkpoint(path)
        self.preprocessing: Preprocessing = self.checkpoint.preprocessing
        self.fingerprint = self.checkpoint.fingerprint
        self.is_joint = self.architecture == "joint"
        module = self._module()
        weights = {name: torch.from_numpy(value) for name, value in self.checkpoint.weights.items()}
        try:
            if any(weights[name].dtype != known.dtype for name, known in module.state_dict().items()):
                raise ValueError("another data type")  # torch would silently cast the weights
            module.load_state_dict(weights)
        except (RuntimeError, KeyError, ValueError) as error:
            raise CyclicError(f"{path} does not fit the architecture it names.", "Train the model again.") from error
        if self.is_joint:
            attach_frozen(module, self.checkpoint.architecture, lambda name: read_encoder(encoders_of(path), name))
        self.module = module.to(self._device).eval()
        self.batch = BATCHES[self._device.type]
        self._codes: CodeReader | None = None

    def _module(self) -> Any:
        description = self.checkpoint.architecture
        if self.is_joint:
            return rebuild(description, str(self.path))
        architecture = registry.load("models", description["name"], "architecture")
        try:
            config = build(architecture.Config, description["config"], str(self.path))
            return architecture.Model(config, tuple(description["image_shape"]))
        except ValueError as error:
            raise CyclicError(
                f"{self.path} does not fit the architecture it names.", "Train the model again."
            ) from error

    @property
    def architecture(self) -> str:
        """The name of the architecture; joint for an image–text model."""
        return str(self.checkpoint.architecture["name"])

    @property
    def modalities(self) -> list[str]:
        """The modalities that the model encodes."""
        return self.module.modalities if self.is_joint else ["image"]

    @property
    def has_decoders(self) -> bool:
        """Whether the model was trained with decoders."""
        description = self.checkpoint.architecture
        return bool(description["config"].get("decoders") if self.is_joint else description.get("decoders", True))

    def require(self, *modalities: str, decoders: bool = False) -> None:
        """Raise CyclicError when the model does not encode a modality, or was trained without decoders."""
        for name in modalities:
            if name not in self.modalities:
                raise CyclicError(
                    f"{self.path} has no {name} encoder.",
                    "Take an image–text model, trained with an --objective such as cyclic.",
                )
        if decoders and not self.has_decoders and not self.is_joint:
            raise CyclicError(
                f"{self.path} was trained without a decoder.", "Train an autoencoder: --objective autoencode."
            )
        if decoders and not self.has_decoders:
            raise CyclicError(
                f"{self.path} was trained without decoders.",
                "Train with reconstruction and translation among the objectives, as --objective cyclic has.",
            )

    def placed(self, value: Tensor) -> Tensor:
        """A tensor on the device of the model."""
        return value.to(self._device)

    def images(self, fitted: np.ndarray) -> Tensor:
        """Images (N, C, H, W) uint8 or uint16 as the input of the model: float32 in [0, 1]."""
        return self.placed(torch.from_numpy(as_float(fitted)))

    def texts(self, texts: list[str]) -> Tensor:
        """N texts as the input of the model: tokens."""
        return self.placed(self.module.encoders["text"].read(texts))

    @contextmanager
    def using_cache(self, report: Report = silent) -> Iterator[CodeReader]:
        """While the block runs, features of frozen pretrained encoders come from the cache, and new ones go there.

        This is for datasets: `embed_images` and `embed_texts` then compare the contents with those that training
        encoded. Yields the codes; of modalities without a frozen pretrained encoder it has none.

        Raises:
            UsageError: `$CYCLIC_CACHE_LIMIT` is no size.
        """
        facts = self.checkpoint.architecture.get("facts", {})
        encoders = self._frozen_encoders()
        with OpenCache(report) as cache:
            terms = {name: facts[name].get(TERMS) for name in encoders}
            self._codes = CodeReader(encoders, terms, cache, self._device, report)
            try:
                yield self._codes
            finally:
                self._codes = None

    def _frozen_encoders(self) -> dict[str, CodedEncoder]:
        """The encoders of fixed codes with pretrained encoders that training did not move, by modality."""
        if not self.is_joint:
            return {}
        tables = self.checkpoint.architecture["config"]["modalities"]
        return {
            name: encoder
            for name, encoder in self.module.encoders.items()
            if isinstance(encoder, CodedEncoder) and tables[name].get("frozen", True) and encoder.pretrained
        }

    def embed(self, name: str, value: Tensor) -> np.ndarray:
        """L2-normalised embeddings (N, D) float32 of one modality's inputs, as its `Samples` load them, or fixed codes.

        The embedding of an autoencoder is that of its embedding network if it has one, else its code; a spatial code
        is averaged over a grid of 4×4 cells.
        """
        with torch.inference_mode():
            if self.is_joint:
                embeddings = self.module.embed(name, self.placed(value))
            else:
                embeddings = embedding_of(self.module, self.placed(value))
            found: np.ndarray = embeddings.float().cpu().numpy()
        return found

    def embed_images(self, fitted: np.ndarray) -> np.ndarray:
        """L2-normalised embeddings (N, D) float32 of images (N, C, H, W) uint8 or uint16."""
        if self._codes is None or "image" not in self._codes:
            return self.embed("image", self.images(fitted))
        codes = self._codes.codes("image", image_digests(fitted), lambda chosen: self.images(fitted[chosen]))
        return self.embed("image", codes)

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """L2-normalised embeddings (N, D) float32 of N texts. Raises CyclicError without a text encoder."""
        self.require("text")
        if self._codes is None or "text" not in self._codes:
            return self.embed("text", self.texts(texts))
        codes = self._codes.codes(
            "text", text_digests(texts), lambda chosen: self.texts([texts[one] for one in chosen]), texts
        )
        return self.embed("text", codes)

    def unknown_words(self, text: str) -> list[str]:
        """The different words of a text that the model does not know, in order, see `text_encoders._known_words`."""
        self.require("text")
        unknown: list[str] = self.module.encoders["text"].unknown_words(text, self._words)
        return unknown

    @cached_property
    def _words(self) -> frozenset[str]:
        return frozenset(self.checkpoint.architecture["facts"]["text"].get("words", ()))

    def reconstruct(self, fitted: np.ndarray, codes: np.ndarray | None = None) -> np.ndarray:
        """Images (N, C, H, W) uint8 or uint16 → reconstructions (N, C, H, W) float32 in [0, 1].

        `codes` may hold the fixed codes (N, code) of the images, which are then not encoded again.
        """
        with torch.inference_mode():
            model = Reconstructing(self.module) if self.is_joint else self.module
            content = self.images(fitted) if codes is None else self.placed(torch.from_numpy(codes))
            output: np.ndarray = model(content)["reconstruction"].float().clamp(0, 1).cpu().numpy()
        return output


def embedding_of(module: Any, image: Tensor, code: Tensor | None = None) -> Tensor:
    """L2-normalised embeddings (N, D) of images (N, C, H, W) by an autoencoder; `code` may hold their codes."""
    return functional.normalize(embed(module, image, code), dim=1)
