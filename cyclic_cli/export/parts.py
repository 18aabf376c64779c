"""The parts of a model that can be exported: a module with named input and output tensors for each.

Names of parts: autoencoder, encoder, decoder, and MODALITY-encoder for each modality, such as text-encoder.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cyclic_cli import registry
from cyclic_cli.errors import CyclicError
from cyclic_cli.export.examples import Examples
from cyclic_cli.inference.torch_model import TorchModel, embedding_of

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


class ImageEncoder(nn.Module):
    """Maps images (N, C, S, S) to their codes and their embeddings (N, D).

    The code of an image–text model is its shared and its private part, concatenated: (N, D + P).
    """

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.model, self.is_joint = model.module, model.is_joint

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_joint:
            shared, private = self.model.parts("image", image)
            return torch.cat([shared, private], 1), shared
        code = self.model.encode(image)
        return code, embedding_of(self.model, image, code)


class Decoder(nn.Module):
    """Maps codes, as `ImageEncoder` gives them, to images (N, C, S, S) in [0, 1]."""

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
    """Maps images (N, C, S, S) to their reconstructions (N, C, S, S) in [0, 1] and their embeddings (N, D)."""

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.encoder, self.decoder = ImageEncoder(model), Decoder(model)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        code, embedding = self.encoder(image)
        return self.decoder(code), embedding


class ModalityEncoder(nn.Module):
    """Maps the INPUTS of a modality to embeddings (N, D)."""

    def __init__(self, model: TorchModel, name: str, value_of: Callable[..., Tensor]) -> None:
        """`value_of` turns the INPUTS into the tensor that the modality's encoder takes."""
        super().__init__()
        self.model, self.is_joint, self.name, self.value_of = model.module, model.is_joint, name, value_of

    def forward(self, *inputs: Tensor) -> Tensor:
        value = self.value_of(*inputs)
        return self.model.embed(self.name, value) if self.is_joint else embedding_of(self.model, value)


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
    if name in ("autoencoder", "encoder"):
        return _image_part(name, model, real, other)
    return _modality_part(name, modality, model, real, other)


def _decoder_part(model: TorchModel, images: Tensor, calibration: Tensor) -> Part:
    """Its examples are the codes of images."""
    with torch.no_grad():
        encode = ImageEncoder(model)
        codes, calibration_codes = encode(images)[0], encode(calibration)[0]
    return Part(
        "decoder", Decoder(model), ("code",), ("reconstruction",), (codes,), (calibration_codes,),
        {"code": {0: "batch"}}, _random_like(codes),
    )  # fmt: skip


def _image_part(name: str, model: TorchModel, images: Tensor, calibration: Tensor) -> Part:
    """The autoencoder or the encoder."""
    module = Autoencoder(model) if name == "autoencoder" else ImageEncoder(model)
    outputs = ("reconstruction" if name == "autoencoder" else "code", "embedding")
    return Part(
        name, module, ("image",), outputs, (images,), (calibration,), {"image": {0: "batch"}}, _random_like(images)
    )


def _modality_part(name: str, modality: str, model: TorchModel, values: Tensor, calibration: Tensor) -> Part:
    """The encoder of a modality. A modality without INPUTS has one input, named like the modality."""
    file = registry.load("modalities", modality, "modality")
    dynamic = getattr(file, "INPUTS", {modality: {0: "batch"}})
    inputs_of = getattr(file, "inputs_of", lambda value: (value,))
    module = ModalityEncoder(model, modality, getattr(file, "value_of", lambda value: value))
    inputs = inputs_of(values)
    return Part(
        name, module, tuple(dynamic), ("embedding",), inputs, inputs_of(calibration), dict(dynamic),
        _random_like(*inputs),
    )  # fmt: skip


def _random_like(*examples: Tensor) -> Callable[[int], tuple[Tensor, ...]]:
    """A function that makes a number of random inputs of the same kind as some examples.

    Floating-point inputs are uniform over the range of the examples. Token inputs (N, L) keep the lengths and the masks
    of randomly chosen examples, and get other tokens.
    """

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
