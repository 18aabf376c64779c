"""Runs and checkpoints of this program as encoders: autoencoders, and halves of image–text models trained from scratch.

    output        of                        features
    code          an image or text encoder  its code; of a spatial code (N, C, h, w), the map pooled to 2×2
    code 4x4      a spatial code            the map pooled to 4×4
    embedding     an image–text model       its L2-normalised embedding
    embedding     an embedding network      its output (`model.embedding`, which `--objective views` trains)
    maps          an embedding network      its last maps, pooled to 2×2

Images are resized to the size that the run was trained with. Long texts are read in windows of the longest text that
the run was trained with. Only the tensors of the used half are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli import registry
from cyclic_cli.config import build
from cyclic_cli.data.mixture import Modality
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.pretrained.encoder import EncoderFacts, Geometry, Output, PretrainedEncoder
from cyclic_cli.pretrained.fingerprint import fingerprint_of
from cyclic_cli.pretrained.geometry import fitted
from cyclic_cli.pretrained.pooling import pooled_map
from cyclic_cli.pretrained.windows import over_windows
from cyclic_cli.storage.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from cyclic_cli.text_encoders._vocabulary import END, PADDING, SPECIAL, Vocabulary

JOINT = "joint"  # architecture of image–text models in checkpoints
FINE = 4  # cells per side of the finer pooled map of a spatial code
FITS = "Copy the checkpoint again, or train again."


def open_run(
    path: Path, modality: str, image_shape: tuple[int, int, int] | None, overrides: Mapping[str, Any]
) -> PretrainedEncoder:
    """Return an encoder of a run folder or checkpoint.

    Args:
        path: A run folder or a `.safetensors` file of this program.
        modality: image or text.
        image_shape: Of the dataset. It does not matter: images are resized to the size of the run.
        overrides: Of the normalisation. They do not matter: a checkpoint knows its own.

    Raises:
        UsageError: The model was built on pretrained encoders, or is an exported one.
        CyclicError: The path cannot be read, is damaged, or has no encoder of this modality.
    """
    del image_shape, overrides
    file = find_checkpoint(path)
    if file.is_dir():
        raise UsageError(f"{path} holds exported models.", f"Name one of them: --{modality}-encoder {path}/NAME.onnx")
    checkpoint = read_checkpoint(file)
    settings = _settings(checkpoint, modality, path)
    encoder = _built(settings, modality, str(path))
    _load(encoder, _weights(checkpoint, modality), path)
    licence = checkpoint.provenance.get("licence", "")
    facts = replace(encoder.facts, licence=licence if isinstance(licence, str) else "")
    # As `write_tensors` stores them: numbers become arrays of one.
    stored = {name: value.reshape(value.shape or (1,)) for name, value in encoder.state_dict().items()}
    encoder.facts = replace(facts, fingerprint=fingerprint_of(facts, stored))
    return encoder


def rebuild(facts: EncoderFacts) -> PretrainedEncoder:
    """Return the encoder of facts that `open_run` gave, without its weights. Raises CyclicError when they are damaged.

    Its tensors have the names that they had when the encoder was opened.
    """
    encoder = _built(facts.settings, facts.modality, "The stored encoder")
    if encoder.facts.outputs != facts.outputs:
        raise CyclicError("The stored encoder does not fit its description.", FITS)
    encoder.facts = facts
    return encoder


class RunImages(PretrainedEncoder):
    """The image encoder of a run."""

    trainable = True

    def __init__(
        self, encoder: Any, code_shape: tuple[int, ...], embedding: Embedding | None, facts: EncoderFacts
    ) -> None:
        """
        Args:
            encoder: Has a method `encode`, from images (N, C, S, S) to codes. That of an autoencoder may have an
                attribute `embedding`, its embedding network, see `models`.
            code_shape: Of the code of an image: (D,) or (C, h, w).
            embedding: Of an image–text model.
            facts: Without the outputs.
        """
        super().__init__()
        self.encoder, self.embedding, self.code_shape = encoder, embedding, code_shape
        self.facts = facts
        assert facts.geometry is not None
        blank = torch.zeros(1, facts.geometry.channels, facts.geometry.size, facts.geometry.size)
        self.facts = replace(facts, outputs=_outputs(self.eval(), blank))

    @property
    def network(self) -> Any:
        """The embedding network of an autoencoder; None: it has none."""
        return getattr(self.encoder, "embedding", None)

    def forward(self, content: Tensor) -> dict[str, Tensor]:
        """Return features (N, F) of images (N, C, S, S) in [0, 1]."""
        assert self.facts.geometry is not None
        images = fitted(content, self.facts.geometry)
        code = self.encoder.encode(images).flatten(1)
        found = {"code": code}
        if len(self.code_shape) == 3:
            maps = code.unflatten(1, self.code_shape)
            found = {"code": pooled_map(maps), f"code {FINE}x{FINE}": pooled_map(maps, FINE)}
        if self.network is not None:
            found |= {"embedding": self.network(images), "maps": pooled_map(self.network.last_maps(images))}
        return found if self.embedding is None else found | {"embedding": self.embedding(code)}


class RunTexts(PretrainedEncoder):
    """The text encoder of an image–text run."""

    trainable = True

    def __init__(self, encoder: Any, embedding: Embedding, facts: EncoderFacts) -> None:
        """
        Args:
            encoder: The `Encoder` of the modality, from tokens (N, L) of its vocabulary to codes (N, code).
            embedding: Of the model.
            facts: Without outputs, window and tokenizer.
        """
        super().__init__()
        vocabulary: Vocabulary = encoder.vocabulary
        self.encoder, self.embedding, self.limit = encoder, embedding, int(encoder.limit)
        self.before, self.behind = (len(part) for part in vocabulary.frame)
        window = self.before + max(self.limit - 1, 1) + self.behind  # END needs a place
        word = torch.ones(1, 1, self.before + 1 + self.behind, dtype=torch.long)
        outputs = _outputs(self.eval(), word)
        self.facts = replace(facts, outputs=outputs, window=window, tokenizer=vocabulary.to_library())

    def forward(self, content: Tensor) -> dict[str, Tensor]:
        """Return features (N, F) of texts (N, W, L), see `tokens.Tokens.encode`."""
        code = over_windows(content, lambda windows: self.encoder.encode(self._own(windows)))
        return {"code": code, "embedding": self.embedding(code)}

    def _own(self, windows: Tensor) -> Tensor:
        """Return windows (M, L) as tokens (M, limit or less) of the vocabulary: without a frame, followed by END."""
        lengths = (windows > 0).sum(1, keepdim=True) - self.before - self.behind
        content = functional.pad(windows[:, self.before :], (0, 1)) + (SPECIAL - 1)
        places = torch.arange(content.shape[1], device=content.device)
        tokens = content.masked_fill(places > lengths, PADDING).masked_fill(places == lengths, END)
        return tokens[:, : self.limit]


class Embedding(nn.Module):
    """The head of a modality of an image–text model."""

    def __init__(self, code: int, embedding: int, private: int) -> None:
        super().__init__()
        self.head, self.dims = nn.Linear(code, embedding + private), embedding

    def forward(self, code: Tensor) -> Tensor:
        """Return L2-normalised embeddings (N, embedding) of codes (N, code)."""
        return functional.normalize(self.head(code)[:, : self.dims], dim=1)


# -------------------------------------------------------------------------------------------------------- reading


def _settings(checkpoint: Checkpoint, modality: str, path: Path) -> dict[str, Any]:
    """What `_built` needs of a checkpoint."""
    architecture = checkpoint.architecture
    if architecture["name"] != JOINT:
        if modality != "image":
            raise CyclicError(f"{path} has no {modality} encoder.", "Give a run that was trained with reports.")
        return {name: architecture[name] for name in ("name", "config", "image_shape")}
    config, facts = architecture["config"], architecture.get("facts")
    tables = config.get("modalities")
    if not isinstance(tables, dict) or not isinstance(facts, dict) or not isinstance(tables.get(modality), dict):
        raise CyclicError(f"{path} has no {modality} encoder.", "Give a run that was trained with images and reports.")
    if config.get("start") == "closed_form" or tables[modality].get("coded"):
        raise UsageError(
            f"{path} was itself built on fixed codes.",
            f"Name the encoders that it was built on: --{modality}-encoder PATH",
        )
    return {
        "name": JOINT,
        "config": tables[modality],
        "facts": facts.get(modality),
        **{name: config.get(name) for name in ("embedding", "private")},
    }


def _weights(checkpoint: Checkpoint, modality: str) -> dict[str, Tensor]:
    """The tensors of the used half, by the names that the encoder gives them."""
    if checkpoint.architecture["name"] != JOINT:
        return {f"encoder.{name}": torch.from_numpy(value) for name, value in checkpoint.weights.items()}
    parts = {f"encoders.{modality}.": "encoder.", f"heads.{modality}.": "embedding.head."}
    return {
        here + name.removeprefix(there): torch.from_numpy(value)
        for name, value in checkpoint.weights.items()
        for there, here in parts.items()
        if name.startswith(there)
    }


def _load(encoder: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    known = encoder.state_dict()
    try:
        if any(known[name].dtype != value.dtype for name, value in weights.items()):
            raise ValueError("another data type")  # torch would silently cast the weights
        encoder.load_state_dict(weights)
    except (RuntimeError, KeyError, ValueError) as error:
        raise CyclicError(f"{path} does not fit the architecture it names.", "Train the model again.") from error


# ------------------------------------------------------------------------------------------------------- building


def _built(settings: Mapping[str, Any], modality: str, where: str) -> PretrainedEncoder:
    """Return an encoder without its weights. Raises CyclicError when the settings do not describe one."""
    try:
        if settings["name"] != JOINT:
            return _autoencoder(settings, where)
        described = Modality.of(modality, dict(settings["config"]))
        encoder = described.file.Encoder(described.config, settings["facts"])
        embedding = Embedding(encoder.code, int(settings["embedding"]), int(settings["private"]))
        if modality == "text":
            return RunTexts(encoder, embedding, _facts(settings, described.config.arch, None))
        facts = _facts(settings, described.config.arch, settings["facts"]["image_shape"])
        return RunImages(encoder, encoder.code_shape, embedding, facts)
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CyclicError(f"{where} describes an encoder that cannot be built.", FITS) from error


def _autoencoder(settings: Mapping[str, Any], where: str) -> RunImages:
    architecture = registry.load("models", settings["name"], "architecture")
    channels, height, width = (int(side) for side in settings["image_shape"])
    model = architecture.Model(build(architecture.Config, dict(settings["config"]), where), (channels, height, width))
    with torch.no_grad():
        code_shape = tuple(model.encode(torch.zeros(1, channels, height, width)).shape[1:])
    return RunImages(model, code_shape, None, _facts(settings, settings["name"], settings["image_shape"]))


def _facts(settings: Mapping[str, Any], family: str, image_shape: Any) -> EncoderFacts:
    """The facts that need no model. The image shape is None for texts. Raises ValueError for an unusual image shape."""
    geometry = None
    if image_shape is not None:
        channels, height, width = (int(side) for side in image_shape)
        if height != width or channels not in (1, 3):
            raise ValueError("not square images")
        plain = ((0.0,) * channels, (1.0,) * channels)  # a run reads pixels in [0, 1] as they are
        geometry = Geometry(size=height, native=height, channels=channels, mean=plain[0], std=plain[1])
    return EncoderFacts(
        kind="cyclic",
        modality="text" if geometry is None else "image",
        family=family,
        fingerprint="",
        licence="",
        outputs=(),
        geometry=geometry,
        settings=dict(settings),
    )


def _outputs(encoder: PretrainedEncoder, content: Tensor) -> tuple[Output, ...]:
    with torch.no_grad():
        return tuple(Output(name=name, dims=values.shape[1]) for name, values in encoder(content).items())
