"""Encoders from a folder that `save_pretrained` of transformers wrote, or from a sentence-transformers folder.

Images: DINOv2, DINOv3, ViT, DeiT, ConvNeXt, Swin, ResNet, image halves of CLIP and SigLIP (`transformers_images`).
Texts: BERT and its relatives, text halves of CLIP and SigLIP (`transformers_texts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cyclic_cli.errors import CyclicError
from cyclic_cli.pretrained import transformers_images, transformers_texts
from cyclic_cli.pretrained.encoder import EncoderFacts, Geometry, PretrainedEncoder
from cyclic_cli.pretrained.fingerprint import LIBRARY, fingerprint_of
from cyclic_cli.pretrained.folder_files import licence_of, read_object, tensor_names
from cyclic_cli.pretrained.geometry import native_size, normalisation, size_for
from cyclic_cli.pretrained.sentence_modules import Parts, read_parts
from cyclic_cli.pretrained.tokens import Tokens, lower_cased, with_frame
from cyclic_cli.pretrained.transformers_images import FAMILIES, ImageEncoder
from cyclic_cli.pretrained.transformers_library import configuration, half_of, loaded, plain, untrained
from cyclic_cli.pretrained.transformers_refusals import refuse_unusable
from cyclic_cli.pretrained.transformers_texts import HALVES, TextEncoder
from cyclic_cli.text_encoders._transformers import library

KIND = "transformers"
USUAL_WINDOW = 512  # tokens, of a model whose positions have no end
ENDLESS = 1_000_000  # tokens from which on a stated limit is none
COPY_BOTH = "Copy model and tokenizer from the same source."


def open_folder(
    path: Path, modality: str, image_shape: tuple[int, int, int] | None, overrides: Mapping[str, Any]
) -> PretrainedEncoder:
    """Return the encoder in a folder.

    Args:
        path: A folder with `config.json` and safetensors, or with `modules.json`.
        modality: What it shall encode, image or text.
        image_shape: (C, S, S) of the dataset, or None where none is known: its size is used by encoders that
            interpolate their positions.
        overrides: `mean` and `std` of the images, before those of the folder.

    Raises:
        UsageError: The folder does not say how its images are normalised, or is of the other modality.
        CyclicError: The folder is incomplete or damaged, or its model cannot be used.
    """
    parts = read_parts(path) if (path / "modules.json").is_file() else None
    folder = parts.transformer if parts else path
    values = read_object(folder / "config.json")
    model = values.get("model_type")
    if not isinstance(model, str):
        raise CyclicError(f"{folder / 'config.json'} names no model_type.", "Give a folder that save_pretrained wrote.")
    refuse_unusable(path, values, model, modality, sentences=parts is not None)
    if modality == "image":
        return _open_image(path, configuration(values, str(folder)), image_shape, overrides)
    return _open_text(path, folder, configuration(values, str(folder)), parts)


def rebuild(facts: EncoderFacts) -> PretrainedEncoder:
    """Return the encoder of facts with random weights. Raises CyclicError when the facts are damaged."""
    where = f"The encoder {facts.fingerprint}"
    try:
        settings = facts.settings
        configured = configuration(settings["model"], where)
        network = untrained(str(settings["network"]), configured, where, bool(settings["pooler"]))
        return ImageEncoder(network, facts) if facts.modality == "image" else TextEncoder(network, facts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CyclicError(f"{where} has damaged facts.", "Copy the run again.") from error


def _open_image(
    path: Path, settings: Any, image_shape: tuple[int, int, int] | None, overrides: Mapping[str, Any]
) -> PretrainedEncoder:
    half = half_of(settings, "image")
    family = FAMILIES[half.model_type]
    names = tensor_names(path)
    geometry = _geometry(path, half, family.patches, image_shape, overrides)
    network = transformers_images.network_of(family, names)
    built = loaded(path, network, half, keeps_pooler=family.pools)
    facts = EncoderFacts(
        kind=KIND, modality="image", family=settings.model_type, fingerprint="", licence=licence_of(path), outputs=(),
        geometry=geometry, settings=_settings(network, half, family.pools),
    )  # fmt: skip
    return _named(ImageEncoder(built, facts))


def _geometry(
    path: Path, half: Any, patches: bool, image_shape: tuple[int, int, int] | None, overrides: Mapping[str, Any]
) -> Geometry:
    processor = read_object(path / "preprocessor_config.json")
    if not processor:  # version 5 of the library may write one file for images and texts
        processor = read_object(path / "processor_config.json").get("image_processor", {})
    channels = getattr(half, "num_channels", 3)
    if channels not in (1, 3):
        raise CyclicError(f"{path} takes images of {channels} channels.", "Give an encoder of grey or colour images.")
    mean, std = normalisation(processor, overrides, channels, str(path))
    native = native_size(processor, getattr(half, "image_size", None), str(path))
    patch = half.patch_size if patches else None
    size = size_for(native, image_shape, patch)
    return Geometry(size=size, native=native, channels=channels, mean=mean, std=std)


def _open_text(path: Path, folder: Path, settings: Any, parts: Parts | None) -> PretrainedEncoder:
    half = half_of(settings, "text")
    names = tensor_names(folder)
    network = _text_network(half, names)
    tokenizer = _tokenizer(folder, half)
    if parts and parts.lower_case:
        tokenizer = lower_cased(tokenizer, str(folder))
    built = loaded(folder, network, half, keeps_pooler=False)
    window = _window(folder, built, parts)
    tokens = _checked(Tokens(tokenizer, window, str(folder)), half, folder)
    halved = half.model_type in HALVES
    settings_of_pools = {
        "padding": _padding(folder, half, tokens),
        "pools": [] if halved else parts.pools if parts else ["mean"],
        "layers": parts.layers if parts else [],
    }
    facts = EncoderFacts(
        kind=KIND, modality="text", family=settings.model_type, fingerprint="", licence=licence_of(path), outputs=(),
        window=window, tokenizer=tokenizer, settings=_settings(network, half, False) | settings_of_pools,
    )  # fmt: skip
    encoder = TextEncoder(built, facts)
    if parts:
        encoder.layers.load_state_dict(parts.weights)
    return _named(encoder)


def _text_network(half: Any, names: set[str]) -> str:
    if half.model_type in HALVES:
        network, projected = HALVES[half.model_type]
        return projected if projected and "text_projection.weight" in names else network
    return str(library().MODEL_MAPPING[type(half)].__name__)


def _tokenizer(folder: Path, half: Any) -> str:
    """The content of `tokenizer.json`, with the special tokens that halves of image–text models need."""
    file = folder / "tokenizer.json"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        made = f"transformers.AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')"
        raise CyclicError(
            f"{folder} has no tokenizer.json.", f'Make it: python -c "import transformers; {made}"'
        ) from None
    if half.model_type not in HALVES:
        return text
    special = _special(folder)
    first = special.get("bos_token", "") if half.model_type == "clip_text_model" else ""
    return with_frame(text, first, special.get("eos_token", ""), str(folder))


def _special(folder: Path) -> dict[str, str]:
    """The special tokens by name, such as `eos_token`, as the settings of the tokenizer state them."""
    stated = read_object(folder / "special_tokens_map.json") | read_object(folder / "tokenizer_config.json")
    contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in stated.items()}
    return {name: value for name, value in contents.items() if name.endswith("_token") and isinstance(value, str)}


def _checked(tokens: Tokens, half: Any, folder: Path) -> Tokens:
    """Return tokens that fit the model. Raises CyclicError when the model could not read them."""
    if tokens.size > half.vocab_size:
        raise CyclicError(f"{folder} has fewer tokens than its tokenizer.", COPY_BOTH)
    # CLIP takes the vector of its end token. Early configurations name a wrong one, and the highest token counts.
    ends = {half.eos_token_id, tokens.size - 1} if half.eos_token_id == 2 else {half.eos_token_id}
    if half.model_type == "clip_text_model" and not ends & set(tokens.behind):
        raise CyclicError(f"The tokenizer in {folder} does not end texts as its model needs it.", COPY_BOTH)
    return tokens


def _padding(folder: Path, half: Any, tokens: Tokens) -> int:
    """The token number of a padded position, which a half of an image–text model reads and others do not."""
    number = getattr(half, "pad_token_id", None)
    if half.model_type in HALVES:
        of_tokenizer = tokens.number_of(_special(folder).get("pad_token", ""))
        number = number if of_tokenizer is None else of_tokenizer
    return number if isinstance(number, int) and 0 <= number < half.vocab_size else 0


def _window(folder: Path, network: Any, parts: Parts | None) -> int:
    """The most tokens of a window: what the network, its tokenizer and sentence-transformers allow."""
    stated = read_object(folder / "tokenizer_config.json").get("model_max_length")
    limits = [transformers_texts.positions_of(network), stated, parts.window if parts else None]
    several = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < ENDLESS]
    return min(several, default=USUAL_WINDOW)


def _settings(network: str, half: Any, keeps_pooler: bool) -> dict[str, Any]:
    version = str(library().__version__)
    return {"network": network, "model": plain(half), "pooler": keeps_pooler, LIBRARY: f"transformers {version}"}


def _named(encoder: PretrainedEncoder) -> PretrainedEncoder:
    """The encoder with its fingerprint."""
    encoder.facts = replace(encoder.facts, fingerprint=fingerprint_of(encoder.facts, encoder.state_dict()))
    return encoder
