"""Encoders from a folder of open_clip, such as BiomedCLIP: `open_clip_config.json` and weights as safetensors.

Neither open_clip nor timm is needed: `open_clip_tensors` maps the tensors onto classes of transformers. Outputs are
those of other encoders with these classes (`transformers_images`, `transformers_texts`); `embedding` includes the
projection into the space that images and texts share, but not the L2 normalisation behind it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.pretrained.encoder import EncoderFacts, Geometry, Output, PretrainedEncoder
from cyclic_cli.pretrained.fingerprint import LIBRARY, fingerprint_of
from cyclic_cli.pretrained.folder_files import licence_of, read_object
from cyclic_cli.pretrained.geometry import fitted, normalisation, size_for
from cyclic_cli.pretrained.open_clip_tensors import Mapped, NoMapping, Source, image_half, text_half
from cyclic_cli.pretrained.pooling import mean_of_tokens, pooled_patches
from cyclic_cli.pretrained.tokens import Tokens, with_frame
from cyclic_cli.pretrained.transformers_library import POOLER, configuration, plain, untrained
from cyclic_cli.pretrained.windows import over_windows
from cyclic_cli.text_encoders._transformers import library

KIND = "open_clip"
CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
PICKLES = ("open_clip_pytorch_model.bin", "*.bin", "*.pt", "*.pth", "*.ckpt")
SHARED = ("visual.", "text.", "logit_")  # beginnings of names that are not those of an unwrapped text half
USUAL_CONTEXT = 77  # tokens of a text, where the configuration names no number
FRAME = ("<|startoftext|>", "<|endoftext|>")  # special tokens of open_clip's own text transformer
ANEW = "Copy the whole folder again."
LOADED = "import torch, open_clip; m = open_clip.create_model('local-dir:{path}').eval()"
EXPORTS = {
    "image": "torch.onnx.export(m.visual, torch.zeros(1, 3, {size}, {size}), '{path}/image.onnx', input_names=['image']"
    ", output_names=['embedding'], dynamic_axes=dict(image=[0], embedding=[0]), dynamo=False)",
    "text": "t = torch.nn.Module(); t.m = m; x = torch.ones(1, {size}, dtype=torch.long); "
    "t.forward = lambda input_ids, attention_mask: m.encode_text(torch.where(attention_mask > 0, input_ids, {padding}))"
    "; torch.onnx.export(t, (x, x), '{path}/text.onnx', input_names=['input_ids', 'attention_mask'], "
    "output_names=['embedding'], dynamic_axes=dict(input_ids=[0], attention_mask=[0], embedding=[0]), dynamo=False)",
}  # lines of Python that make an ONNX file of half a model


def open_folder(
    path: Path, modality: str, image_shape: tuple[int, int, int] | None, overrides: Mapping[str, Any]
) -> PretrainedEncoder:
    """Return one half of the model in a folder as an encoder.

    Args:
        path: A folder with `open_clip_config.json`.
        modality: Which half, image or text.
        image_shape: (C, S, S) of the dataset, or None where none is known. Its size is used, rounded down to patches.
        overrides: `mean` and `std` of the images, before those of the folder.

    Raises:
        UsageError: The folder does not say how its images are normalised.
        CyclicError: The folder is incomplete or damaged, or transformers has no counterpart of its model.
    """
    described = read_object(path / CONFIG)
    model = described.get("model_cfg")
    half = model.get("vision_cfg" if modality == "image" else "text_cfg") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(half, dict):
        raise CyclicError(f"{path / CONFIG} is damaged.", "Copy it from its source again.")
    file = _weights_file(path)
    source = Source(_tensors(file, modality), str(file))
    try:
        mapped = (image_half if modality == "image" else text_half)(source, half, bool(model.get("quick_gelu")))
        context = int(half.get("context_length") or USUAL_CONTEXT)
    except NoMapping as reason:
        raise CyclicError(
            f"The {modality} half of {path} has no counterpart in transformers: {reason}.",
            _to_onnx(path, modality, half),
        ) from None
    except (ArithmeticError, KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise CyclicError(f"{path / CONFIG} does not fit the weights beside it.", ANEW) from error
    network, facts = _loaded(mapped, file), _facts(mapped, modality, path)
    if modality == "image":
        stated = described.get("preprocess_cfg")
        facts = replace(facts, geometry=_geometry(path, mapped, stated, image_shape, overrides))
        encoder: OpenClipImages | OpenClipTexts = OpenClipImages(network, facts)
    else:
        window = min(context, _positions(mapped))
        facts = replace(facts, window=window, tokenizer=_tokenizer(path, mapped, window))
        encoder = OpenClipTexts(network, facts)
    encoder.projection.load_state_dict(_projection_weights(mapped))
    encoder.facts = replace(encoder.facts, fingerprint=fingerprint_of(encoder.facts, encoder.state_dict()))
    return encoder


def rebuild(facts: EncoderFacts) -> PretrainedEncoder:
    """Return the encoder of facts with random weights. Raises CyclicError when the facts are damaged."""
    where = f"The encoder {facts.fingerprint}"
    try:
        settings = facts.settings
        configured = configuration(settings["model"], where)
        network = untrained(str(settings["network"]), configured, where, settings["pool"] == "pooler")
        return (OpenClipImages if facts.modality == "image" else OpenClipTexts)(network, facts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CyclicError(f"{where} has damaged facts.", "Copy the run again.") from error


class OpenClipImages(PretrainedEncoder):
    """The image half of an open_clip model."""

    trainable = True

    def __init__(self, network: Any, facts: EncoderFacts) -> None:
        """
        Args:
            network: Of transformers.
            facts: Their outputs may be missing; they are then found with an image. Their settings are `network` (the
                class), `model` (its configuration), `pool` (see `Mapped`) and `projection` (see `_projection`).
        """
        super().__init__()
        assert facts.geometry is not None
        self.network, self.geometry, self.pool = network, facts.geometry, str(facts.settings["pool"])
        self.projection = _projection(facts.settings["projection"])
        depth = int(network.config.num_hidden_layers)
        self.layers = sorted({depth // 2, depth * 3 // 4} - {0, depth})
        blank = torch.zeros(1, facts.geometry.channels, facts.geometry.size, facts.geometry.size)
        self.facts = facts if facts.outputs else replace(facts, outputs=_outputs(self.eval(), blank))

    def forward(self, content: Tensor) -> dict[str, Tensor]:
        """Return features (N, F) of images (N, C, S, S) by the name of the output."""
        pixels = fitted(content, self.geometry)
        result = self.network(pixel_values=pixels, output_hidden_states=True, interpolate_pos_encoding=True)
        side = self.geometry.size // int(self.network.config.patch_size)
        maps = {"patches": result.last_hidden_state} | {
            f"layer {one}": result.hidden_states[one] for one in self.layers
        }
        pooled = {name: pooled_patches(state[:, -side * side :], side, side) for name, state in maps.items()}
        return {"embedding": self.projection(self._vectors(result))} | pooled

    def _vectors(self, result: Any) -> Tensor:
        """The vectors (N, D) of whole images, before the projection."""
        if self.pool == "pooler":
            pooled: Tensor = result.pooler_output
            return pooled
        last: Tensor = result.last_hidden_state
        inner = getattr(self.network, "vision_model", self.network)  # where earlier versions keep the layers of CLIP
        norm = getattr(inner, "post_layernorm", nn.Identity())  # CLIP gives its last vectors without this
        vectors: Tensor = norm(last[:, 1:].mean(1, keepdim=True) if self.pool == "mean then norm" else last)
        return vectors[:, 1:].mean(1) if self.pool == "mean" else vectors[:, 0]


class OpenClipTexts(PretrainedEncoder):
    """The text half of an open_clip model."""

    trainable = True

    def __init__(self, network: Any, facts: EncoderFacts) -> None:
        """Arguments are those of `OpenClipImages`."""
        super().__init__()
        self.network, self.pool = network, str(facts.settings["pool"])
        self.padding = int(getattr(network.config, "pad_token_id", None) or 0)
        self.projection = _projection(facts.settings["projection"])
        word = torch.ones(1, 1, 1, dtype=torch.long)
        self.facts = facts if facts.outputs else replace(facts, outputs=_outputs(self.eval(), word))

    def forward(self, content: Tensor) -> dict[str, Tensor]:
        """Return features (N, F) of texts (N, W, L), see `tokens.Tokens.encode`."""
        return {"embedding": over_windows(content, self._windows)}

    def _windows(self, tokens: Tensor) -> Tensor:
        """Features (M, F) of windows (M, L)."""
        first = torch.arange(tokens.shape[1], device=tokens.device) == 0
        mask = (tokens > 0) | first  # an empty window has one position to read
        numbers = torch.where(tokens > 0, tokens - 1, self.padding)
        result = self.network(input_ids=numbers, attention_mask=mask.long())
        vectors: Tensor = self.projection(self._pooled(result, numbers, mask))
        return vectors

    def _pooled(self, result: Any, numbers: Tensor, mask: Tensor) -> Tensor:
        """The vectors (M, D) of windows, before the projection."""
        last: Tensor = result.last_hidden_state
        if self.pool == "pooler":
            vectors: Tensor = result.pooler_output
            return vectors
        if self.pool in ("first", "mean"):
            return last[:, 0] if self.pool == "first" else mean_of_tokens(last, mask)
        at_end = numbers if self.pool == "highest token" else (numbers == int(self.pool))
        places = at_end.int().argmax(1)[:, None, None].expand(-1, -1, last.shape[2])
        return last.gather(1, places)[:, 0]


def _projection(layers: Any) -> nn.Sequential:
    """Linear layers, each as [inputs, outputs, whether it has a bias], with GELU in between."""
    made: list[nn.Module] = []
    for inputs, outputs, bias in layers:
        made += [nn.GELU()] if made else []
        made.append(nn.Linear(int(inputs), int(outputs), bias=bool(bias)))
    return nn.Sequential(*made).requires_grad_(False)


def _projection_weights(mapped: Mapped) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for number, (weight, bias) in enumerate(mapped.projection):
        found[f"{2 * number}.weight"] = weight
        found |= {} if bias is None else {f"{2 * number}.bias": bias}
    return found


def _outputs(encoder: PretrainedEncoder, content: Tensor) -> tuple[Output, ...]:
    with torch.inference_mode():
        return tuple(Output(name=name, dims=value.shape[1]) for name, value in encoder(content).items())


# -------------------------------------------------------------------------------------------------------- reading


def _weights_file(path: Path) -> Path:
    """The safetensors file of a folder. Raises CyclicError when there is none."""
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    for pattern in PICKLES:
        if pickled := min(path.glob(pattern), default=None):
            line = (
                "import torch; from safetensors.torch import save_file; "
                f"w = torch.load('{pickled}', map_location='cpu', weights_only=True); w = w.get('state_dict', w); "
                "save_file({n.removeprefix('module.'): t.clone().contiguous() for n, t in w.items()}, "
                f"'{path / WEIGHTS[0]}')"
            )
            raise CyclicError(
                f"{pickled} is a pickle, which can run code and is not read.",
                f'If you trust its source, run: python -c "{line}"',
            )
    raise CyclicError(f"{path} holds no weights.", f"Copy its {WEIGHTS[0]}.")


def _tensors(file: Path, modality: str) -> dict[str, Tensor]:
    """The tensors of one half, float32. Raises CyclicError when the file is damaged or holds none of the half."""
    try:
        with safe_open(file, framework="pt") as stored:
            names = set(stored.keys())
            if modality == "image":
                wanted = {name for name in names if name.startswith("visual.")}
            else:
                wrapped = {name for name in names if name.startswith("text.")}
                wanted = wrapped or {name for name in names if not name.startswith(SHARED)}
            found = {name: stored.get_tensor(name) for name in sorted(wanted)}
    except (SafetensorError, OSError, ValueError) as error:
        raise CyclicError(f"{file} is not a complete safetensors file.", "Copy it again.") from error
    if not found:
        raise CyclicError(f"{file} holds no {modality} half.", ANEW)
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in found.items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CyclicError(f"{file} holds weights that are not finite, in {name}.", ANEW)
    return tensors


def _loaded(mapped: Mapped, file: Path) -> Any:
    """The network of transformers with the mapped tensors. Raises CyclicError when they do not fit it exactly."""
    made = getattr(library(), mapped.model)
    try:
        with warnings.catch_warnings(action="ignore"):
            network, report = made.from_pretrained(
                None, config=_configured(mapped), state_dict=mapped.tensors, dtype=torch.float32,
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # several libraries are involved, each with its own exceptions
        raise CyclicError(f"The weights in {file} do not fit their {CONFIG}.", ANEW) from error
    keeps_pooler = mapped.pool == "pooler"
    missing = {name for name in report["missing_keys"] if keeps_pooler or not name.startswith(POOLER)}
    wrong = missing | set(report["unexpected_keys"]) | {str(entry[0]) for entry in report["mismatched_keys"]}
    if wrong:
        raise CyclicError(f"{file} does not fit its {CONFIG}: {min(wrong)} is missing or has another shape.", ANEW)
    if not keeps_pooler and getattr(network, "pooler", None) is not None:
        network.pooler = None
    return network.requires_grad_(False).eval()


def _configured(mapped: Mapped) -> Any:
    return getattr(library(), mapped.model).config_class(**mapped.config)


def _facts(mapped: Mapped, modality: str, path: Path) -> EncoderFacts:
    """The facts without geometry, window and tokenizer, outputs and fingerprint."""
    settings = _configured(mapped)
    return EncoderFacts(
        kind=KIND,
        modality=modality,
        family=str(settings.model_type),
        fingerprint="",
        licence=licence_of(path),
        outputs=(),
        settings={
            "network": mapped.model,
            "model": plain(settings),
            "pool": mapped.pool,
            "projection": [[weight.shape[1], weight.shape[0], bias is not None] for weight, bias in mapped.projection],
            LIBRARY: f"transformers {library().__version__}",
        },
    )


def _geometry(
    path: Path, mapped: Mapped, stated: Any, image_shape: tuple[int, int, int] | None, overrides: Mapping[str, Any]
) -> Geometry:
    stated = stated if isinstance(stated, dict) else {}
    processor = {f"image_{name}": stated[name] for name in ("mean", "std") if stated.get(name) is not None}
    channels, native = int(mapped.config["num_channels"]), int(mapped.config["image_size"])
    if channels not in (1, 3):
        raise CyclicError(f"{path} takes images of {channels} channels.", "Give an encoder of grey or colour images.")
    mean, std = normalisation(processor, overrides, channels, str(path))
    size = size_for(native, image_shape, int(mapped.config["patch_size"]))
    return Geometry(size=size, native=native, channels=channels, mean=mean, std=std)


def _positions(mapped: Mapped) -> int:
    """The most tokens that the text half reads. RoBERTa counts positions from behind that of padding."""
    unused = mapped.config["pad_token_id"] + 1 if mapped.model == "RobertaModel" else 0
    return int(mapped.config["max_position_embeddings"]) - unused


def _tokenizer(path: Path, mapped: Mapped, window: int) -> str:
    """The content of `tokenizer.json`. Raises CyclicError when it is missing, or does not fit the model."""
    try:
        text = (path / "tokenizer.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        made = f"transformers.AutoTokenizer.from_pretrained('{path}').save_pretrained('{path}')"
        raise CyclicError(
            f"{path} has no tokenizer.json.", f'Make it: python -c "import transformers; {made}"'
        ) from None
    if mapped.model == "CLIPTextModel":
        text = with_frame(text, *FRAME, str(path))
    tokens = Tokens(text, window, str(path))
    if tokens.size > mapped.config["vocab_size"]:
        raise UsageError(f"The tokenizer in {path} has more tokens than its model.", "Copy both from the same source.")
    ends = {"highest token": tokens.size - 1}.get(mapped.pool, int(mapped.pool) if mapped.pool.isdigit() else None)
    if ends is not None and ends not in tokens.behind:
        raise CyclicError(
            f"The tokenizer in {path} does not end texts as its model needs it.", "Copy both from the same source."
        )
    return text


def _to_onnx(path: Path, modality: str, half: Mapping[str, Any]) -> str:
    """The line that makes an ONNX file of one half where open_clip is installed."""
    one = half.get("image_size", 224) if modality == "image" else half.get("context_length") or USUAL_CONTEXT
    one = one[0] if isinstance(one, list) and one else one
    padding = 1 if half.get("no_causal_mask") or "roberta" in str(half.get("hf_model_name")).lower() else 0
    line = "; ".join([LOADED, EXPORTS[modality]]).format(path=path, size=one, padding=padding)
    return f'Where open_clip_torch and onnx are installed, make an ONNX file of it, and give that: python -c "{line}"'
