"""Encoders from folders that transformers and sentence-transformers write."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.tiny_encoders import IMAGES, POSITIONS, TEXTS, add_modules, tiny_image_folder, tiny_text_folder
from safetensors.torch import load, save_file
from torch import Tensor
from torch.nn import functional

from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.pretrained.encoder import PretrainedEncoder
from cyclic_cli.pretrained.tokens import Tokens
from cyclic_cli.pretrained.transformers_folder import open_folder, rebuild
from cyclic_cli.pretrained.transformers_library import configuration

FORWARDS = {"clip", "siglip", "vit", "deit", "clip_vision_model", "siglip_vision_model"}  # interpolate when told to
REPORTS = ["no acute findings", "the heart is enlarged", "", "small left pleural effusion"]
LONG = "the left lung is normal " * 7
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums of fewer than a hundred numbers, in another order


def one_by_default(names: Any, default: str) -> list[Any]:
    return [name if name == default else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("encoders")
    return {
        "image": tiny_image_folder("vit", place / "vit"),
        "text": tiny_text_folder("bert", place / "bert"),
        "sentences": tiny_text_folder("sentence-transformers", place / "sentences"),
    }


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Any:
    """A copy of one of the folders, to damage it."""
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name))


def opened(path: Path, modality: str, **overrides: Any) -> PretrainedEncoder:
    shape = overrides.pop("shape", (1, 40, 40) if modality == "image" else None)
    return open_folder(path, modality, shape, overrides)


def images(count: int = 3, size: int = 40) -> Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(1))


def read(encoder: PretrainedEncoder, texts: list[str]) -> Tensor:
    return torch.from_numpy(Tokens(encoder.facts.tokenizer, encoder.facts.window or 0).encode(texts))


def encode(encoder: PretrainedEncoder, texts: list[str]) -> Tensor:
    assert encoder.facts.window is not None
    with torch.inference_mode():
        return encoder(read(encoder, texts))["embedding"]


def refused(path: Path, modality: str, **overrides: Any) -> CyclicError:
    with pytest.raises(CyclicError) as caught:
        opened(path, modality, **overrides)
    return caught.value


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# -------------------------------------------------------------------------------------------------------- features


def pixels_by_hand(content: Tensor, size: int) -> Tensor:
    """What the image processor of the folder would give, without a crop."""
    resized = functional.interpolate(content, size=(size, size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))
    return (resized.repeat(1, 3, 1, 1) - mean) / std


def quarters(state: Tensor, side: int) -> Tensor:
    """The 2×2 means of the signed square roots of a map, or of vectors of patches behind other tokens."""
    if state.dim() == 3:
        state = state[:, -side * side :].transpose(1, 2).reshape(len(state), -1, side, side)
    return functional.adaptive_avg_pool2d(state.sign() * state.abs().sqrt(), 2).flatten(1)


def image_features_by_hand(family: str, path: Path, pixels: Tensor, side: int) -> dict[str, Tensor]:
    whole = transformers.AutoModel.from_pretrained(path).eval()
    flags = {"interpolate_pos_encoding": True} if family in FORWARDS else {}
    network = whole.vision_model if family in ("clip", "siglip") else whole
    with torch.inference_mode():
        result = network(pixel_values=pixels, output_hidden_states=True, **flags)
        vector = result.last_hidden_state[:, 0] if family in ("vit", "deit") else result.pooler_output
        vector = whole.visual_projection(vector) if family == "clip" else vector
    states = result.get("reshaped_hidden_states") or result.hidden_states
    last = states[-1].shape[-1] if states[-1].dim() == 4 else side
    maps = {"patches": result.last_hidden_state, "layer 2": states[2], "layer 3": states[3]}
    pooled = {
        name: quarters(state, last if name == "patches" else side if state.dim() == 3 else state.shape[-1])
        for name, state in maps.items()
    }
    return {"embedding": vector.flatten(1), **pooled}


@pytest.mark.parametrize("family", one_by_default(IMAGES, "vit"))
def test_image_features_are_those_of_the_library(family: str, tmp_path: Path) -> None:
    path = tiny_image_folder(family, tmp_path / family)
    encoder, content = opened(path, "image", shape=(1, 21, 21)), images(3, 21)
    with torch.inference_mode():
        found = encoder(content)
    geometry = encoder.facts.geometry
    assert geometry is not None
    patches = "hidden_size" in IMAGES[family][1] or family in ("clip", "siglip")
    assert (geometry.size, geometry.native) == (16 if patches else 32, 32)  # 21 pixels are two patches of 8
    expected = image_features_by_hand(family, path, pixels_by_hand(content, geometry.size), geometry.size // 8)
    assert {output.name: output.dims for output in encoder.facts.outputs} == {
        name: value.shape[1] for name, value in found.items()
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **CLOSE)


def text_features_by_hand(family: str, path: Path, texts: list[str]) -> Tensor:
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"), pad_token="[PAD]")
    whole = getattr(transformers, TEXTS[family][0]).from_pretrained(path).eval()
    filled = {"padding": "max_length", "max_length": POSITIONS} if family.startswith("siglip") else {"padding": True}
    given = tokenizer(texts, return_tensors="pt", **filled)
    with torch.inference_mode():
        if family in ("clip", "siglip"):
            vectors = whole.text_model(input_ids=given["input_ids"]).pooler_output
            return whole.text_projection(vectors) if family == "clip" else vectors
        if family in ("clip_text_model", "siglip_text_model"):
            return whole(input_ids=given["input_ids"]).pooler_output
        last = whole(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
    mask = given["attention_mask"][:, :, None]
    return (last * mask).sum(1) / mask.sum(1)


@pytest.mark.parametrize("family", one_by_default(TEXTS, "bert"))
def test_text_features_are_those_of_the_library(family: str, tmp_path: Path) -> None:
    path = tiny_text_folder(family, tmp_path / family)
    found = encode(opened(path, "text"), REPORTS)
    torch.testing.assert_close(found, text_features_by_hand(family, path, REPORTS), **CLOSE)
    assert torch.pdist(found).min() > 0.01  # no two texts are the same


@pytest.mark.parametrize("family", one_by_default([*TEXTS, "sentence-transformers"], "sentence-transformers"))
def test_a_text_does_not_depend_on_those_beside_it(family: str, tmp_path: Path) -> None:
    encoder = opened(tiny_text_folder(family, tmp_path / family), "text")
    together, alone = encode(encoder, [*REPORTS, LONG]), [encode(encoder, [text]) for text in [*REPORTS, LONG]]
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)


def test_a_long_text_is_the_mean_of_its_windows_by_their_tokens(folders: dict[str, Path]) -> None:
    encoder = opened(folders["text"], "text")
    words = LONG.split()  # 35 words, each a token; a window of 16 tokens has room for 14
    parts = [" ".join(words[first : first + 14]) for first in (0, 14, 28)]
    expected = torch.from_numpy(np.average(encode(encoder, parts).numpy(), axis=0, weights=[16, 16, 9]))
    torch.testing.assert_close(encode(encoder, [LONG])[0], expected.float(), **CLOSE)


@pytest.mark.parametrize(
    ("settings", "pools"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, ["mean"]),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, None),
        ({"pooling_mode": "cls"}, ["cls"]),
    ],
)
def test_sentence_transformers_pool_and_normalise(
    settings: dict[str, bool], pools: list[str] | None, folders: dict[str, Path], copied: Any
) -> None:
    path = copied("sentences")
    add_modules(path, ["Pooling", "Dense", "Normalize"], settings)
    pools = pools or ["cls", "max", "mean"]
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(7, 32 * len(pools), generator=generator), torch.randn(7, generator=generator)
    save_file({"linear.weight": weight, "linear.bias": bias}, path / "2_Dense" / "model.safetensors")
    (path / "2_Dense" / "config.json").write_text(
        json.dumps({"bias": True, "activation_function": "torch.nn.modules.activation.Tanh"})
    )
    encoder = opened(path, "text")
    network = transformers.AutoModel.from_pretrained(folders["text"]).eval()
    expected = []
    for text in REPORTS:
        row = read(encoder, [text])[0] - 1
        with torch.inference_mode():
            last = network(input_ids=row).last_hidden_state[0]
        of = {"cls": last[0], "max": last.amax(0), "mean": last.mean(0)}
        expected.append(torch.tanh(weight @ torch.cat([of[name] for name in pools]) + bias))
    found = encode(encoder, REPORTS)
    torch.testing.assert_close(found, functional.normalize(torch.stack(expected), dim=1), **CLOSE)
    again = rebuild(encoder.facts)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(encode(again, REPORTS), found)


@pytest.mark.parametrize("family", one_by_default([*IMAGES, *TEXTS], "vit"))
def test_an_encoder_is_built_again_from_its_facts(family: str, tmp_path: Path) -> None:
    if family in IMAGES:
        encoder, content = opened(tiny_image_folder(family, tmp_path / "images"), "image"), images()
    else:
        encoder = opened(tiny_text_folder(family, tmp_path / "texts"), "text")
        content = read(encoder, [*REPORTS, LONG])
    again = rebuild(encoder.facts)
    again.load_state_dict(encoder.state_dict())
    with torch.inference_mode():
        first, second = encoder(content), again(content)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not any(module.training for one in (encoder, again, encoder.train()) for module in one.modules())


@pytest.mark.slow
@pytest.mark.parametrize("family", [*IMAGES, "bert", "sentence-transformers", "clip text", "siglip text"])
def test_an_encoder_becomes_onnx(family: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    size, many = torch.export.Dim("batch", min=1, max=64), torch.export.Dim
    if family in IMAGES:
        encoder = opened(tiny_image_folder(family, tmp_path / "images"), "image")
        content, other, dims = images(2), images(3), {0: size}
    else:
        encoder = opened(tiny_text_folder(family.removesuffix(" text"), tmp_path / "texts"), "text")
        content, other = read(encoder, [*REPORTS[:1], LONG]), read(encoder, [*REPORTS, LONG])
        dims = {0: size, 1: many("windows", min=1, max=64), 2: many("tokens", min=2, max=POSITIONS)}
    path = tmp_path / "encoder.onnx"
    torch.onnx.export(encoder, (content,), str(path), dynamo=True, input_names=["content"], dynamic_shapes=(dims,))
    session = onnxruntime.InferenceSession(path)
    with torch.inference_mode():
        expected = list(encoder(other).values())
    for found, value in zip(session.run(None, {"content": other.numpy()}), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), value, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------ facts, geometry


def test_the_fingerprint_is_that_of_the_content(folders: dict[str, Path], copied: Any, tmp_path: Path) -> None:
    first = opened(folders["image"], "image").facts
    transformers.AutoModel.from_pretrained(folders["image"]).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    shutil.copy(folders["image"] / "preprocessor_config.json", tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert opened(tmp_path / "shards", "image").facts == first
    assert opened(folders["image"], "image", shape=(1, 64, 64)).facts.fingerprint != first.fingerprint
    assert opened(folders["image"], "image", mean=0.3).facts.fingerprint != first.fingerprint
    path = copied("image") / "model.safetensors"
    weights = load(path.read_bytes())
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, path, {"format": "pt"})
    assert opened(path.parent, "image").facts.fingerprint != first.fingerprint
    assert len(first.fingerprint) == 32


def test_an_image_text_model_is_both_and_each_half_is_itself(tmp_path: Path) -> None:
    whole, text = tiny_text_folder("clip", tmp_path / "clip"), tmp_path / "text"
    shutil.copy(tiny_image_folder("vit", tmp_path / "vit") / "preprocessor_config.json", whole)
    image, words = opened(whole, "image"), opened(whole, "text")
    assert image.facts.family == words.facts.family == "clip"
    config = transformers.CLIPTextConfig.from_pretrained(whole, projection_dim=20)
    transformers.CLIPTextModelWithProjection.from_pretrained(whole, config=config).save_pretrained(text)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(whole / name, text)
    assert torch.equal(encode(opened(text, "text"), REPORTS), encode(words, REPORTS))


def test_a_tokenizer_without_a_frame_gets_that_of_clip(tmp_path: Path) -> None:
    path = tiny_text_folder("clip", tmp_path / "clip")
    framed = encode(opened(path, "text"), REPORTS)
    change(path / "tokenizer.json", post_processor=None)
    torch.testing.assert_close(encode(opened(path, "text"), REPORTS), framed)
    change(path / "tokenizer_config.json", eos_token="[UNK]")
    assert "does not end texts" in refused(path, "text").message


@pytest.mark.parametrize(("size", "used"), [(40, 40), (47, 40), (64, 64), (5, 8)])
def test_a_vit_takes_the_size_of_the_dataset(size: int, used: int, folders: dict[str, Path]) -> None:
    geometry = opened(folders["image"], "image", shape=(1, size, size)).facts.geometry
    assert geometry is not None
    assert (geometry.size, geometry.native) == (used, 32)


def test_without_a_dataset_an_encoder_takes_its_native_size(folders: dict[str, Path]) -> None:
    geometry = opened(folders["image"], "image", shape=None).facts.geometry
    assert geometry is not None
    assert geometry.size == 32


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("README.md", "---\nlicense: apache-2.0\ntags: [a]\n---\n# Model", "apache-2.0"),
        ("README.md", "---\nlicense: other\nlicense_name: rail\n---\n", "rail"),
        ("README.md", "---\n: : [\n---\n", ""),
        ("LICENSE", "\n    MIT License\n\nCopyright", "MIT License"),
    ],
)
def test_the_licence_is_what_the_folder_states(name: str, text: str, licence: str, copied: Any) -> None:
    path = copied("text")
    assert opened(path, "text").facts.licence == ""
    (path / name).write_text(text)
    assert opened(path, "text").facts.licence == licence


def test_nothing_is_printed(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    opened(folders["image"], "image")
    opened(folders["sentences"], "text")
    assert capfd.readouterr() == ("", "")


# --------------------------------------------------------------------------------------------------------- refused


def test_normalisation_must_be_known(copied: Any) -> None:
    path = copied("image")
    (path / "preprocessor_config.json").unlink()
    error = refused(path, "image")
    assert isinstance(error, UsageError)
    assert error.hint == "--set modalities.image.mean=0.5 --set modalities.image.std=0.5"
    geometry = opened(path, "image", mean=0.5, std=[0.1, 0.2, 0.3]).facts.geometry
    assert geometry is not None
    assert (geometry.mean, geometry.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))


def test_an_encoder_of_the_other_modality_is_a_wrong_usage(folders: dict[str, Path]) -> None:
    for name, found, asked in (("image", "image", "text"), ("text", "text", "image"), ("sentences", "text", "image")):
        error = refused(folders[name], asked)
        assert isinstance(error, UsageError)
        assert error.hint == f"Give it as --{found}-encoder {folders[name]}"


@pytest.mark.parametrize(
    ("config", "said", "way_out"),
    [
        ({"model_type": "gpt2"}, "writes texts", "BERT"),
        ({"model_type": "t5"}, "writes texts", "BERT"),
        ({"model_type": "bert", "is_decoder": True}, "writes texts", "BERT"),
        (
            {"model_type": "strange", "auto_map": {"AutoModel": "code.Model"}},
            "needs code of its own",
            "trust_remote_code",
        ),
        (
            {"model_type": "bert", "auto_map": {"AutoModel": "code.Model"}},
            "needs code of its own",
            "trust_remote_code",
        ),
        ({"model_type": "strange"}, "is unknown", "torch.onnx.export"),
        ({"model_type": "beit"}, "is not supported", "torch.onnx.export"),
        ({"model_type": "bert", "hidden_size": "many"}, "configuration of", "Copy"),
        ({}, "names no model_type", "save_pretrained"),
    ],
)
def test_other_models_are_refused(config: dict[str, Any], said: str, way_out: str, copied: Any) -> None:
    path = copied("text")
    (path / "config.json").write_text(json.dumps(config))
    (path / "code.py").write_text("raise SystemExit('foreign code ran')")
    error = refused(path, "text")
    assert said in error.message
    assert way_out in error.hint


def test_pickles_are_not_read(copied: Any) -> None:
    path = copied("text")
    (path / "model.safetensors").unlink()
    assert "holds no weights" in refused(path, "text").message
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    error = refused(path, "text")
    assert "pytorch_model.bin is a pickle" in error.message
    assert f"AutoModel.from_pretrained('{path}').save_pretrained('{path}')" in error.hint
    (path / "pytorch_model.bin").rename(path / "last.ckpt")
    assert "weights_only=True" in refused(path, "text").hint


def test_the_line_that_converts_a_pickle_works(copied: Any) -> None:
    path = copied("text")
    before = opened(path, "text").facts.fingerprint
    torch.save(load((path / "model.safetensors").read_bytes()), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    hint = refused(path, "text").hint
    exec(hint.partition('-c "')[2].rstrip('"'))
    assert opened(path, "text").facts.fingerprint == before


def test_damaged_weights_are_refused(copied: Any) -> None:
    file = copied("text") / "model.safetensors"
    whole, weights = file.read_bytes(), load(file.read_bytes())
    name = next(name for name in weights if name.endswith("LayerNorm.weight"))
    file.write_bytes(whole[: len(whole) // 2])
    assert "not a complete safetensors file" in refused(file.parent, "text").message
    save_file({other: value for other, value in weights.items() if other != name}, file, {"format": "pt"})
    assert "lacks weights of its bert model" in refused(file.parent, "text").message
    save_file(weights | {name: weights[name] * float("nan")}, file, {"format": "pt"})
    assert "not finite" in refused(file.parent, "text").message
    save_file(weights | {name: torch.ones(5)}, file, {"format": "pt"})
    assert "do not fit" in refused(file.parent, "text").message


def test_a_missing_or_cut_shard_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "shards"
    transformers.AutoModel.from_pretrained(folders["text"]).save_pretrained(path, max_shard_size="20KB")
    shutil.copy(folders["text"] / "tokenizer.json", path)
    shard = max(path.glob("*.safetensors"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    assert f"{shard} is not a complete" in refused(path, "text").message
    shard.unlink()
    assert f"lacks {shard.name}" in refused(path, "text").message


def test_a_missing_or_foreign_tokenizer_is_refused(copied: Any) -> None:
    path = copied("text")
    file = path / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["further"] = 500
    file.write_text(json.dumps(tokenizer))
    assert "fewer tokens than its tokenizer" in refused(path, "text").message
    file.write_text("{}")
    assert "not a valid tokenizer.json" in refused(path, "text").message
    file.unlink()
    error = refused(path, "text")
    assert "has no tokenizer.json" in error.message
    assert f"AutoTokenizer.from_pretrained('{path}').save_pretrained('{path}')" in error.hint


def test_unknown_modules_of_sentence_transformers_are_refused(copied: Any) -> None:
    path = copied("sentences")
    add_modules(path, ["Pooling"], {"pooling_mode_lasttoken": True})
    assert "lasttoken" in refused(path, "text").message
    add_modules(path, ["Pooling", "LSTM"], {"pooling_mode_mean_tokens": True})
    assert "LSTM" in refused(path, "text").message
    modules = json.loads((path / "modules.json").read_text())
    modules[0]["type"] = "custom.Transformer"
    (path / "modules.json").write_text(json.dumps(modules))
    assert "custom.Transformer" in refused(path, "text").message
    modules[0]["path"] = "../elsewhere"
    (path / "modules.json").write_text(json.dumps(modules))
    assert "damaged" in refused(path, "text").message


def test_without_the_library_the_extra_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "cyclic-cli[hub]" in refused(folders["image"], "image").hint


def test_a_configuration_cannot_ask_for_foreign_code(tmp_path: Path) -> None:
    folder = tiny_image_folder("vit", tmp_path / "vit")
    values = json.loads((folder / "config.json").read_text())
    for name in ("attn_implementation", "_attn_implementation", "experts_implementation", "quantization_config"):
        changed = values | {name: "kernels-community/flash-attn"}
        settings = configuration(changed, "here")
        assert settings._attn_implementation in (None, "sdpa", "eager")
        assert "kernels-community" not in json.dumps(settings.to_dict())
