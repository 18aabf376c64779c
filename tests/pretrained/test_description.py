"""Tests of `cyclic info` on pretrained encoders."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.makers import Ran
from helpers.onnx_graphs import network, saved, text_network
from tokenizers import Tokenizer, models, pre_tokenizers, processors

Cyclic = Callable[..., Ran]
HALF = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 16, "width": 16}}


def write_tokenizer(folder: Path, last: str = "[SEP]") -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "heart", "large"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["[CLS]", "$A", last], special_tokens=[("[CLS]", 2), (last, words.index(last))]
    )
    (folder / "tokenizer.json").write_text(tokenizer.to_str())


def clip_folder(folder: Path) -> Path:
    """A tiny image–text model with random weights, as `save_pretrained` writes it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    text = {"vocab_size": 6, "max_position_embeddings": 12, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    configuration = transformers.CLIPConfig(
        text_config=sizes | text, vision_config=sizes | {"image_size": 16, "patch_size": 8}, projection_dim=4
    )
    transformers.CLIPModel(configuration).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(HALF))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    write_tokenizer(folder)
    return folder


def test_an_onnx_file_of_images_is_described(cyclic: Cyclic) -> None:
    path = saved(network(metadata={"mean": "0.5", "std": "0.25", "license": "MIT"}), Path("small_net.onnx"))
    found: dict[str, Any] = cyclic("info", path, "--json").json
    fingerprint = found.pop("fingerprint")
    assert len(fingerprint) == 32
    assert found == {
        "kind": "image encoder", "path": "small_net.onnx", "format": "onnx", "family": "small_net", "licence": "MIT",
        "outputs": {"map": 24, "features": 6, "logits": 4}, "parameters": 6 * 3 * 9 + 1 + 6 * 4,
        "can_be_trained": False, "size": 16, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3,
        "prepare": "cyclic prepare --size 16",
    }  # fmt: skip
    shown = cyclic("info", path).out
    assert "Image encoder small_net.onnx" in shown
    assert "cyclic prepare --size 16" in shown
    chosen = cyclic("info", f"{path}#features,map", "--json").json
    assert chosen["outputs"] == {"features": 6, "map": 24}
    assert chosen["fingerprint"] != fingerprint


def test_a_file_without_a_normalisation_is_described_with_the_settings_to_give(cyclic: Cyclic) -> None:
    found = cyclic("info", saved(network(), Path("net.onnx")), "--json").json
    assert (found["mean"], found["std"], found["licence"]) == ("not stated", "not stated", "not stated")
    assert found["train_with"] == "--set modalities.image.mean=0.5 --set modalities.image.std=0.5"


def test_an_onnx_file_of_texts_is_described(cyclic: Cyclic) -> None:
    write_tokenizer(Path())
    found = cyclic("info", saved(text_network(), Path("texts.onnx")), "--json").json
    assert (found["kind"], found["tokens"]) == ("text encoder", 32)
    assert found["outputs"] == {"last_hidden_state": 6, "pooled": 6}
    assert "prepare" not in found


def test_both_halves_of_an_image_text_model_are_described(cyclic: Cyclic) -> None:
    found = cyclic("info", clip_folder(Path("clip")), "--json").json
    assert found["kind"] == "image and text encoder"
    assert found["image"]["prepare"] == "cyclic prepare --size 16"
    assert found["image"]["mean"] == [0.5] * 3
    assert found["text"]["tokens"] == 12
    for half in (found["image"], found["text"]):
        assert half["format"] == "transformers"
        assert half["licence"] == "apache-2.0"
        assert half["parameters"] > 1000
        assert half["outputs"]
    assert "Image and text encoder clip" in cyclic("info", "clip").out


def test_a_half_that_cannot_be_used_says_why(cyclic: Cyclic) -> None:
    folder = clip_folder(Path("clip"))
    write_tokenizer(folder, last="heart")
    found = cyclic("info", folder, "--json").json
    assert found["kind"] == "image encoder"
    assert found["image"]["outputs"]
    assert "does not end texts" in found["text"]["unusable"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: saved(network(batch=8), Path("net.onnx")), "takes batches of 8 images only"),
        (lambda: saved(text_network(), Path("net.onnx")), "no tokenizer.json"),
        (lambda: saved(network(), Path("net.onnx")), "output of net.onnx: 'nothing'"),
    ],
    ids=["image", "text", "name"],
)
def test_what_is_no_encoder_says_why(make: Callable[[], Path], message: str, cyclic: Cyclic) -> None:
    ran = cyclic("info", f"{make()}#nothing" if "nothing" in message else make())
    assert ran.code in (1, 2)
    assert message in " ".join(ran.err.split())


def test_a_folder_without_weights_says_so(cyclic: Cyclic) -> None:
    folder = clip_folder(Path("clip"))
    (folder / "model.safetensors").unlink()
    ran = cyclic("info", folder)
    assert ran.code == 1
    assert "safetensors" in ran.err


def test_looking_at_a_dataset_loads_no_torch(tiny_dataset: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom cyclic_cli.commands.info import _describe\n"
        f"_describe(Path({str(tiny_dataset)!r}))\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
