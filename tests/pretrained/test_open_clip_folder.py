"""Folders of open_clip, compared with transformers (their tensors are renamed here) and with open_clip itself."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.pretrained.encoder import PretrainedEncoder
from cyclic_cli.pretrained.find import open_encoder
from cyclic_cli.pretrained.open_clip_folder import open_folder, rebuild
from cyclic_cli.pretrained.stored import read_encoder, write_encoder
from cyclic_cli.pretrained.tokens import Tokens

transformers = pytest.importorskip("transformers")

STATED = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
WORDS = ["no", "disc", "lies", "upper", "left", "of", "the", "image", "a"]
TEXTS = ["no disc", "a disc lies upper left of the image", "the image"]
SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 1, "intermediate_size": 96}
IMAGES = {"image_size": 32, "patch_size": 8}

TIMM = [
    (r"^", "visual.trunk."), (r"embeddings\.cls_token", "cls_token"), (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"), (r"encoder\.layer\.", "blocks."),
    (r"attention\.attention\.(query|key|value)", "attn.qkv"), (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"), (r"output\.dense", "mlp.fc2"), (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"), (r"trunk\.layernorm", "trunk.norm"),
]  # fmt: skip
BLOCKS = [
    (r"encoder\.layers", "transformer.resblocks"), (r"self_attn\.[qkv]_proj\.", "attn.in_proj_"),
    (r"self_attn", "attn"), (r"layer_norm", "ln_"), (r"mlp\.fc1", "mlp.c_fc"), (r"mlp\.fc2", "mlp.c_proj"),
]  # fmt: skip
OWN_IMAGES = [
    (r"vision_model\.(embeddings\.)?", "visual."), (r"patch_embedding", "conv1"),
    (r"position_embedding\.weight", "positional_embedding"), (r"pre_layrnorm", "ln_pre"),
    (r"post_layernorm", "ln_post"), (r"visual_projection\.weight", "visual.proj"), *BLOCKS,
]  # fmt: skip
OWN_TEXTS = [
    (r"text_model\.(embeddings\.)?", ""), (r"position_embedding\.weight", "positional_embedding"),
    (r"final_layer_norm", "ln_final"), (r"text_projection\.weight", "text_projection"), *BLOCKS,
]  # fmt: skip
BERT = [(r"^", "text.transformer.")]
TRANSPOSED = ("visual.proj", "text_projection")


def named_as_open_clip(model: Any, table: list[tuple[str, str]], folder: Path) -> dict[str, Tensor]:
    """The tensors of a model of transformers by their names in open_clip. Query, key and value are put together."""
    model.save_pretrained(folder / "saved")  # the names on disk are the same in all versions of the library
    parts: dict[str, list[Tensor]] = {}
    for name, value in sorted(
        load_file(folder / "saved" / "model.safetensors").items(), key=lambda item: order(item[0])
    ):
        for pattern, there in table:
            name = re.sub(pattern, there, name)
        parts.setdefault(name, []).append(value.T if name in TRANSPOSED else value)
    return {name: torch.cat(values).contiguous() for name, values in parts.items()}


def order(name: str) -> int:
    found = re.search(r"\.(q_proj|query|k_proj|key|v_proj|value)\.", name)
    return "qkv".index(found[1][0]) if found else 0


def random(model: Any) -> Any:
    """The model with other random weights: norms begin as ones and zeros, which hides mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def write_folder(folder: Path, tensors: dict[str, Tensor], vision: dict[str, Any], text: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors | {"logit_scale": torch.ones(())}, folder / "open_clip_model.safetensors")
    described = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": STATED}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    return folder


def write_tokenizer(folder: Path, special: list[str], first: str, last: str) -> None:
    """A tokenizer of whole words. Special tokens have the lowest numbers, but for `last`, which has the highest."""
    known = [*(one for one in special if one != last), *WORDS, last]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(one, known.index(one)) for one in (first, last)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def features(encoder: PretrainedEncoder, content: Tensor) -> dict[str, np.ndarray]:
    with torch.no_grad():
        found = encoder(content)
    assert [(one.name, (len(content), one.dims)) for one in encoder.facts.outputs] == [
        (name, tuple(values.shape)) for name, values in found.items()
    ]
    return {name: values.numpy() for name, values in found.items()}


def encoded(encoder: PretrainedEncoder) -> Tensor:
    assert encoder.facts.window is not None
    return torch.from_numpy(Tokens(encoder.facts.tokenizer, encoder.facts.window).encode(TEXTS))


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(STATED[name])[:, None, None] for name in ("mean", "std"))
    return (images - mean) / std


def close(found: np.ndarray, expected: Tensor | np.ndarray) -> None:
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.fixture
def biomed(tmp_path: Path) -> tuple[Path, Any, Any, dict[str, Tensor]]:
    """A folder like that of BiomedCLIP, its ViT and its BERT in transformers, and all tensors."""
    torch.manual_seed(0)
    vit = random(transformers.ViTModel(transformers.ViTConfig(**SMALL, **IMAGES), add_pooling_layer=False))
    vit.config.layer_norm_eps = 1e-6
    for layer in vit.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = 1e-6  # of timm
    bert = random(
        transformers.BertModel(
            transformers.BertConfig(**SMALL, vocab_size=20, max_position_embeddings=12), add_pooling_layer=False
        )
    )
    tensors = named_as_open_clip(vit, TIMM, tmp_path) | named_as_open_clip(bert, BERT, tmp_path)
    shapes = {"visual.head.proj.weight": (8, 64), "text.proj.0.weight": (36, 64), "text.proj.2.weight": (8, 36)}
    tensors |= {name: torch.randn(shape) for name, shape in shapes.items()}
    vision = {"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 32}
    text = {
        "hf_model_name": "some/Bert", "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    }  # fmt: skip
    folder = write_folder(tmp_path / "biomed", tensors, vision, text)
    write_tokenizer(folder, ["[UNK]", "[CLS]", "[SEP]"], "[CLS]", "[SEP]")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return folder, vit, bert, tensors


def test_the_image_half_of_a_biomedclip_is_timms_vit(biomed: tuple[Path, Any, Any, dict[str, Tensor]]) -> None:
    folder, vit, _, tensors = biomed
    encoder = open_folder(folder, "image", (1, 32, 32), {})
    grey = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        result = vit(pixel_values=normalised(grey.expand(-1, 3, -1, -1)), output_hidden_states=True)
        expected = result.last_hidden_state[:, 0] @ tensors["visual.head.proj.weight"].T
    found = features(encoder, grey)
    close(found["embedding"], expected)
    for name, state in (("patches", result.last_hidden_state), ("layer 2", result.hidden_states[2])):
        maps = state[:, 1:].unflatten(1, (2, 2, 2, 2))  # rows of cells, rows in a cell, columns of cells, columns
        roots = maps.sign() * maps.abs().sqrt()
        close(found[name], roots.mean((2, 4)).permute(0, 3, 1, 2).flatten(1))
    assert set(found) == {"embedding", "patches", "layer 2", "layer 3"}
    assert encoder.facts.geometry is not None
    assert (encoder.facts.geometry.mean, encoder.facts.geometry.std) == (tuple(STATED["mean"]), tuple(STATED["std"]))
    assert (encoder.facts.kind, encoder.facts.family, encoder.facts.licence) == ("open_clip", "vit", "mit")


def test_positions_are_interpolated_to_the_size_of_the_dataset(
    biomed: tuple[Path, Any, Any, dict[str, Tensor]],
) -> None:
    folder, vit, _, tensors = biomed
    encoder = open_folder(folder, "image", (3, 50, 50), {"mean": 0.0, "std": 1.0})
    assert encoder.facts.geometry is not None
    assert (encoder.facts.geometry.size, encoder.facts.geometry.native) == (48, 32)
    images = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        last = vit(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state
    close(features(encoder, images)["embedding"], last[:, 0] @ tensors["visual.head.proj.weight"].T)


def test_the_text_half_of_a_biomedclip_is_a_bert(biomed: tuple[Path, Any, Any, dict[str, Tensor]]) -> None:
    folder, _, bert, tensors = biomed
    encoder = open_folder(folder, "text", None, {})
    assert encoder.facts.window == 12  # no more than the positions of its BERT
    content = encoded(encoder)
    assert content.shape == (3, 1, 10)
    inner, outer = tensors["text.proj.0.weight"], tensors["text.proj.2.weight"]
    for number, row in enumerate(content[:, 0]):
        with torch.no_grad():
            first = bert(input_ids=row[row > 0][None] - 1).last_hidden_state[:, 0]
            expected = nn.functional.gelu(first @ inner.T) @ outer.T
        close(features(encoder, content)["embedding"][[number]], expected)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_an_encoder_is_read_from_its_copy(biomed: tuple[Path, Any, Any, dict[str, Tensor]], modality: str) -> None:
    encoder = open_encoder(str(biomed[0]), modality, (1, 32, 32), {})
    write_encoder(biomed[0] / "stored", encoder)
    again = read_encoder(biomed[0] / "stored", encoder.facts.fingerprint)
    content = torch.rand(2, 1, 32, 32) if modality == "image" else encoded(encoder)
    for name, values in features(again, content).items():
        np.testing.assert_array_equal(values, features(encoder, content)[name])
    assert again.facts == encoder.facts
    with pytest.raises(CyclicError, match="damaged facts"):
        rebuild(replace(encoder.facts, settings={}))


@pytest.mark.parametrize("quick", [False, True])
def test_open_clips_own_halves_are_those_of_clip(tmp_path: Path, quick: bool) -> None:
    torch.manual_seed(1)
    small = SMALL | {"num_attention_heads": 4, "hidden_act": "quick_gelu" if quick else "gelu", "projection_dim": 8}
    vision = random(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**small, **IMAGES)))
    numbers = {"bos_token_id": 1, "eos_token_id": 11, "pad_token_id": 0}
    settings = transformers.CLIPTextConfig(**small, vocab_size=12, max_position_embeddings=10, **numbers)
    text = random(transformers.CLIPTextModelWithProjection(settings))
    tensors = named_as_open_clip(vision, OWN_IMAGES, tmp_path) | named_as_open_clip(text, OWN_TEXTS, tmp_path)
    half = {"width": 64, "layers": 4}
    folder = write_folder(
        tmp_path / "own", tensors, half | {"head_width": 16, "patch_size": 8, "image_size": 32}, half | {"heads": 4}
    )
    described = json.loads((folder / "open_clip_config.json").read_text())
    described["model_cfg"]["quick_gelu"] = quick
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    write_tokenizer(folder, ["[UNK]", "<|startoftext|>", "<|endoftext|>"], "<|startoftext|>", "<|endoftext|>")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = vision(pixel_values=normalised(images)).image_embeds
    close(features(open_folder(folder, "image", (3, 32, 32), {}), images)["embedding"], expected)
    encoder = open_folder(folder, "text", None, {})
    content = encoded(encoder)
    assert encoder.facts.window == 10
    with torch.no_grad():
        expected = text(input_ids=(content[:, 0] - 1).clamp(min=0)).text_embeds
    close(features(encoder, content)["embedding"], expected)


def test_what_the_folder_lacks_is_said(biomed: tuple[Path, Any, Any, dict[str, Tensor]]) -> None:
    folder, _, _, tensors = biomed
    file, config = folder / "open_clip_model.safetensors", folder / "open_clip_config.json"

    def refused(modality: str = "image") -> CyclicError:
        with pytest.raises(CyclicError) as error:
            open_folder(folder, modality, (1, 32, 32), {})
        return error.value

    (folder / "tokenizer.json").unlink()
    assert "save_pretrained" in refused("text").hint
    name = "visual.trunk.blocks.1.attn.qkv.bias"
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    assert name in refused().message
    save_file(tensors | {"visual.trunk.blocks.0.ls1.gamma": torch.ones(64)}, file)
    assert "visual.trunk.blocks.0.ls1.gamma" in refused().message
    save_file(tensors | {"visual.trunk.norm.bias": torch.ones(63)}, file)
    assert "layernorm.bias" in refused().message
    save_file(tensors | {"visual.trunk.norm.bias": torch.full((64,), torch.nan)}, file)
    assert "not finite" in refused().message
    file.write_bytes(file.read_bytes()[:-9])
    assert "not a complete safetensors file" in refused().message
    file.rename(folder / "open_clip_pytorch_model.bin")
    assert "torch.load" in refused().hint
    (folder / "open_clip_pytorch_model.bin").unlink()
    assert "holds no weights" in refused().message
    save_file(tensors, file)
    described = json.loads(config.read_text())
    config.write_text(json.dumps({"model_cfg": described["model_cfg"]}))
    error = refused()
    assert isinstance(error, UsageError)
    assert "modalities.image.mean" in error.hint
    config.write_text(json.dumps({"model_cfg": []}))
    assert "is damaged" in refused().message


@pytest.mark.parametrize(
    "changes",
    [{"timm_model_name": "convnext_base"}, {"timm_model_name": "eva02_base_patch16_clip_224"},
     {"timm_model_name": None, "layers": [3, 4, 6, 3], "width": 64}, {"timm_pool": "abs_attn"}],
)  # fmt: skip
def test_a_model_without_counterpart_is_refused_with_the_line_that_exports_it(
    biomed: tuple[Path, Any, Any, dict[str, Tensor]], changes: dict[str, Any]
) -> None:
    folder = biomed[0]
    described = json.loads((folder / "open_clip_config.json").read_text())
    described["model_cfg"]["vision_cfg"] |= changes
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    with pytest.raises(CyclicError, match="no counterpart") as error:
        open_folder(folder, "image", None, {})
    line = re.fullmatch(r'.*python -c "(.*)"', error.value.hint)
    assert line is not None
    compile(line[1], "hint", "exec")
    assert f"local-dir:{folder}" in line[1]
    assert "torch.zeros(1, 3, 32, 32)" in line[1]


# ------------------------------------------------------------------------------------------------ open_clip itself

VIT = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224}
OWN = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64}
OWN_TEXT = {"context_length": 16, "vocab_size": 100, "width": 64, "heads": 2, "layers": 2}
CLS = "cls_last_hidden_state_pooler"


def hugging_face(name: str, pooler: str | None, projection: str | None) -> dict[str, Any]:
    return {"hf_model_name": name, "hf_pooler_type": pooler, "hf_proj_type": projection, "context_length": 16}


WITH_PROJECTION = {"timm_pool": "avg", "timm_proj": "mlp"}
MODELS = {
    "biomedclip": (VIT, hugging_face("bert", CLS, "mlp")),
    "averaged": (VIT | WITH_PROJECTION, hugging_face("bert", "mean_pooler", "linear")),
    "head": (VIT | {"timm_pool": "token", "timm_proj": None}, hugging_face("bert", "cls_pooler", "linear")),
    "long": (OWN | {"pool_type": "avg"}, hugging_face("roberta", "mean_pooler", "mlp")),
    "own": (OWN, OWN_TEXT),
    "own end": (
        OWN | {"pool_type": "avg", "final_ln_after_pool": True, "norm_kwargs": {"eps": 1e-3}},
        OWN_TEXT | {"pool_type": "eos", "eos_id": 99, "proj_bias": True},
    ),
    "quick": (OWN | {"quick_gelu": True}, OWN_TEXT | {"proj_type": "none"}),
    "siglip": (
        {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none", "image_size": 224},
        OWN_TEXT | {"pool_type": "first"},
    ),
}  # by name: vision_cfg and text_cfg


@pytest.fixture(scope="session")
def open_clip_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with open_clip: that of $CYCLIC_OPEN_CLIP_PYTHON, else one made here."""
    if given := os.environ.get("CYCLIC_OPEN_CLIP_PYTHON"):
        return given
    folder = tmp_path_factory.mktemp("open_clip")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    packages = ["torch==2.14.1", "torchvision==0.29.1", "open_clip_torch", "transformers", "safetensors", "onnx"]
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages], check=True)
    return str(folder / "bin" / "python")


def write_model(folder: Path, vision: dict[str, Any], text: dict[str, Any]) -> None:
    """A folder without weights, with inputs: images, and tokens of texts of several lengths."""
    folder.mkdir()
    vision = dict(vision)
    custom = "timm_model_name" in vision or "hf_model_name" in text or text != OWN_TEXT
    width = 768 if "siglip" in vision.get("timm_model_name", "") else 64 if text.get("proj_type") == "none" else 32
    model = {"embed_dim": width, "custom_text": custom, "quick_gelu": vision.pop("quick_gelu", False)}
    described = {"model_cfg": model | {"vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": STATED}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    draws = np.random.default_rng(0)
    side = vision["image_size"]
    np.save(folder / "images.npy", draws.random((3, 3, side, side), dtype=np.float32))
    tokens = draws.integers(5, 99, (3, 16))
    for row, length in zip(tokens, (4, 9, 16), strict=True):
        row[0], row[length - 1] = 3, 99
        row[length:] = 1 if text.get("hf_model_name") == "roberta" else 0
    np.save(folder / "tokens.npy", tokens)
    known = [f"t{number}" for number in range(100)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["t3", "t99"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="t3 $A t99", special_tokens=[("t3", 3), ("t99", 99)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def run_open_clip(python: str, *words: Path | str) -> None:
    subprocess.run([python, *words], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})


SCRIPT = Path(__file__).parents[1] / "helpers" / "open_clip_models.py"


@pytest.mark.slow
def test_embeddings_are_those_of_open_clip(tmp_path: Path, open_clip_python: str) -> None:
    small = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    transformers.BertConfig(**small, vocab_size=100, max_position_embeddings=64).save_pretrained(tmp_path / "bert")
    transformers.RobertaConfig(
        **small, vocab_size=100, max_position_embeddings=66, type_vocab_size=1, layer_norm_eps=1e-5
    ).save_pretrained(tmp_path / "roberta")
    for name, halves in MODELS.items():
        write_model(tmp_path / name, *halves)
    run_open_clip(open_clip_python, SCRIPT, tmp_path)
    for name, (vision, text) in MODELS.items():
        folder = tmp_path / name
        size = vision["image_size"]
        image = open_folder(folder, "image", (3, size, size), {})
        close(
            features(image, torch.from_numpy(np.load(folder / "images.npy")))["embedding"],
            np.load(folder / "image.npy"),
        )
        encoder = open_folder(folder, "text", None, {})
        tokens = torch.from_numpy(np.load(folder / "tokens.npy"))
        padding = 1 if text.get("hf_model_name") == "roberta" else 0
        content = torch.where(tokens == padding, 0, tokens + 1)[:, None]
        close(features(encoder, content)["embedding"], np.load(folder / "text.npy"))


@pytest.mark.slow
def test_what_is_refused_becomes_an_onnx_file_by_the_line_of_the_message(tmp_path: Path, open_clip_python: str) -> None:
    folder = tmp_path / "model"
    vision = {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    write_model(folder, vision, OWN_TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True})
    tokens = np.load(folder / "tokens.npy")
    tokens[tokens == 0] = 1  # padding, as in SigLIP
    np.save(folder / "tokens.npy", tokens)
    run_open_clip(open_clip_python, SCRIPT, tmp_path)
    contents = {
        "image": torch.from_numpy(np.load(folder / "images.npy")),
        "text": torch.from_numpy(np.where(tokens == 1, 0, tokens + 1))[:, None],
    }
    for modality, content in contents.items():
        with pytest.raises(CyclicError, match="no counterpart") as error:
            open_folder(folder, modality, None, {})
        line = re.fullmatch(r'.*python -c "(.*)"', error.value.hint)
        assert line is not None
        run_open_clip(open_clip_python, "-c", line[1])
        encoder = open_encoder(str(folder / f"{modality}.onnx"), modality, (3, 160, 160), STATED)
        close(features(encoder, content)["embedding"], np.load(folder / f"{modality}.npy"))
