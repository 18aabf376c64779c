"""The parts of a model that can be exported: a module with named input and output tensors for each.

Names of parts: autoencoder, encoder, decoder, and MODALITY-encoder for each modality, such as text-encoder. A part with
pretrained encoders has a second module for the exporter, in which stand-ins take their places (see `stand_ins`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from cyclic_cli import registry
from cyclic_cli.errors import CyclicError
from cyclic_cli.export.examples import EXAMPLES, Examples
from cyclic_cli.export.stand_ins import StandIn, with_stand_ins
from cyclic_cli.inference.torch_model import TorchModel, embedding_of
from cyclic_cli.models._aligned import AlignedModel
from cyclic_cli.models._joint import JointModel

SEED = 0  # of random inputs
IMAGE_PARTS = ("autoencoder", "encoder", "image-encoder")  # parts that take images


@dataclass(frozen=True)
class Part:
    """What one ONNX file computes: a module with named input and output tensors."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    examples: tuple[Tensor, ...]  # real inputs, a tensor (N, ...) per input; N is at least `examples.EXAMPLES`
    calibration: tuple[Tensor, ...]  # other real inputs, from which int8 takes the ranges of activations
    dynamic: dict[str, dict[int, str]]  # by input: the dimensions of variable size, and their names
    random: Callable[[int], tuple[Tensor, ...]]  # makes the given number of random inputs
    traced: nn.Module | None = None  # for the exporter, where it differs from `module`: with stand-ins
    stand_ins: list[StandIn] = field(default_factory=list)  # those of the pretrained encoders in `traced`
    is_fixed: bool = False  # whether the part is of a model with fixed codes, which only has them to make smaller


class ImageEncoder(nn.Module):
    """Maps images (N, C, S, S) to their codes and their embeddings (N, D).

    The code of an image–text model is its latent: the shared and the private part, concatenated (N, D + P), or the
    fixed code (N, code).
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.model = module

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.model, AlignedModel):
            code = self.model.latent("image", image)
            return code, self.model.split("image", code)[0]
        if isinstance(self.model, JointModel):
            code = self.model.latent("image", image)
            return code, code[:, : self.model.embedding]
        code = self.model.encode(image)
        return code, embedding_of(self.model, image, code)


class Decoder(nn.Module):
    """Maps codes, as `ImageEncoder` gives them, to images (N, C, S, S) in [0, 1]."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.model = module

    def forward(self, code: Tensor) -> Tensor:
        if isinstance(self.model, JointModel):
            image = self.model.encoders["image"].decode(self.model.code_of_latent("image", code))
        else:
            image = self.model.decode(code)
        return image.clamp(0, 1)


class Autoencoder(nn.Module):
    """Maps images (N, C, S, S) to their reconstructions (N, C, S, S) in [0, 1] and their embeddings (N, D)."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = ImageEncoder(module), Decoder(module)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        code, embedding = self.encoder(image)
        return self.decoder(code), embedding


class ModalityEncoder(nn.Module):
    """Maps the inputs of a modality to embeddings (N, D)."""

    def __init__(self, module: Any, name: str, value_of: Callable[..., Tensor]) -> None:
        """`value_of` turns the inputs into the tensor that the modality's encoder takes."""
        super().__init__()
        self.model, self.name, self.value_of = module, name, value_of

    def forward(self, *inputs: Tensor) -> Tensor:
        value = self.value_of(*inputs)
        is_joint = isinstance(self.model, JointModel)
        return self.model.embed(self.name, value) if is_joint else embedding_of(self.model, value)


def part_names(model: TorchModel) -> list[str]:
    """The names of the parts that a model has."""
    image_parts = ["autoencoder", "encoder", "decoder"] if model.has_decoders else ["encoder"]
    return [
        *(image_parts if "image" in model.modalities else []),
        *(f"{name}-encoder" for name in model.modalities),
    ]


def part_of(name: str, model: TorchModel, examples: Examples, calibration: Examples) -> Part:
    """The part with a name of `part_names`. Raises CyclicError when there is no example of its inputs."""
    modality = name.removesuffix("-encoder") if name.endswith("-encoder") else "image"
    if modality not in examples or modality not in calibration:
        raise CyclicError(
            f"There is no {modality} to check the export with.", f"Name a dataset that has some {modality}s."
        )
    real, other = examples[modality], calibration[modality]
    if name == "decoder":
        return _decoder_part(model, real, other)
    part = _image_part(name, model, real, other) if name in ("autoencoder", "encoder") else None
    part = part or _modality_part(name, modality, model, real, other)
    if not isinstance(model.module, AlignedModel):
        return part
    twin, stand_ins = with_stand_ins(model, modality)
    return replace(part, traced=_module(name, modality, twin).eval(), stand_ins=stand_ins, is_fixed=True)


def _module(name: str, modality: str, module: Any) -> nn.Module:
    """What a part with an encoder computes, with a model's module."""
    if name in ("autoencoder", "encoder"):
        return Autoencoder(module) if name == "autoencoder" else ImageEncoder(module)
    file = registry.load("modalities", modality, "modality")
    return ModalityEncoder(module, modality, getattr(file, "value_of", lambda value: value))


def _decoder_part(model: TorchModel, images: Tensor, calibration: Tensor) -> Part:
    """Its examples are the codes of images."""
    with torch.no_grad():
        encode = ImageEncoder(model.module)
        codes, calibration_codes = (
            torch.cat([encode(some)[0] for some in torch.split(several, EXAMPLES)]) for several in (images, calibration)
        )
    return Part(
        "decoder", Decoder(model.module), ("code",), ("reconstruction",), (codes,), (calibration_codes,),
        {"code": {0: "batch"}}, _random_like(codes), is_fixed=isinstance(model.module, AlignedModel),
    )  # fmt: skip


def _image_part(name: str, model: TorchModel, images: Tensor, calibration: Tensor) -> Part:
    """The autoencoder or the encoder."""
    outputs = ("reconstruction" if name == "autoencoder" else "code", "embedding")
    return Part(
        name, _module(name, "image", model.module), ("image",), outputs, (images,), (calibration,),
        {"image": {0: "batch"}}, _random_like(images),
    )  # fmt: skip


def _modality_part(name: str, modality: str, model: TorchModel, values: Tensor, calibration: Tensor) -> Part:
    """The encoder of a modality. A modality without `inputs_of` has one input, named like the modality."""
    file = registry.load("modalities", modality, "modality")
    inputs_of = getattr(file, "inputs_of", lambda value: {modality: (value, {0: "batch"})})
    named = inputs_of(values)
    inputs, other = (tuple(one for one, _ in some.values()) for some in (named, inputs_of(calibration)))
    dynamic = {name: dict(sides) for name, (_, sides) in named.items()}
    return Part(
        name, _module(name, modality, model.module), tuple(named), ("embedding",), inputs, other, dynamic,
        _random_like(*inputs),
    )  # fmt: skip


def _random_like(*examples: Tensor) -> Callable[[int], tuple[Tensor, ...]]:
    """A function that makes a number of random inputs of the same kind as some examples.

    Floating-point inputs are uniform over the range of the examples. Token inputs (N, L) keep the lengths and the masks
    of randomly chosen examples, and get other tokens. Those of fixed codes, (N, P, W, L), have tokens of each of their
    P sources, and more windows.
    """

    def random(count: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(SEED + count)
        first, *others = examples
        if first.is_floating_point():
            noise = torch.rand(count, *first.shape[1:], generator=generator)
            return (first.min() + (first.max() - first.min()) * noise,)
        rows = torch.randint(len(first), (count,), generator=generator)
        if first.dim() == 4:
            return (_random_windows(first, generator, rows),)
        tokens = torch.randint(1, int(first.max()) + 1, (count, first.shape[1]), generator=generator)
        return (tokens * (first[rows] != 0), *(other[rows] for other in others))

    return random


def _random_windows(tokens: Tensor, generator: torch.Generator, rows: Tensor) -> Tensor:
    """The chosen rows of tokens (N, P, W, L), with the windows of other texts behind their own: (M, P, 2W, L).

    Their tokens are drawn anew. Each source has a vocabulary of its own, so they are those of the source's examples.
    """
    others = tokens[torch.randint(len(tokens), (len(rows),), generator=generator)]
    found = torch.cat([tokens[rows], others], 2)
    for place in range(tokens.shape[1]):
        own, drawn = tokens[:, place], found[:, place]
        known = own[own > 0]
        if len(known):
            choice = known[torch.randint(len(known), drawn.shape, generator=generator)]
            found[:, place] = torch.where(drawn > 0, choice, 0)
    return found
