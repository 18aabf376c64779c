"""Runs of this program as encoders, compared with what the same checkpoint gives in other commands."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from cyclic_cli import registry
from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.pretrained.encoder import PretrainedEncoder
from cyclic_cli.pretrained.find import open_encoder
from cyclic_cli.pretrained.own_run import open_run, rebuild
from cyclic_cli.pretrained.stored import read_encoder, write_encoder
from cyclic_cli.pretrained.tokens import Tokens
from cyclic_cli.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

TEXTS = ["a disc lies at the upper left", "no disc", "the disc is in the centre of the image"]


def autoencoder(
    folder: Path, name: str, provenance: dict[str, Any] | None = None, size: int = 32, **settings: Any
) -> Path:
    """A run folder with an autoencoder of random weights."""
    torch.manual_seed(0)
    file = registry.load("models", name, "architecture")
    config = file.Config(**settings)
    model = file.Model(config, (1, size, size))
    architecture = {"name": name, "config": asdict(config), "image_shape": [1, size, size]}
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    preprocessing = Preprocessing(size=size)
    checkpoint = Checkpoint(
        weights=weights, architecture=architecture, preprocessing=preprocessing, provenance=provenance or {}
    )
    write_checkpoint(folder / "model.safetensors", checkpoint)
    return folder


def changed(run: Path, out: Path, **config: Any) -> Path:
    """A copy of the checkpoint of an image–text run with other settings."""
    checkpoint = read_checkpoint(run / "model.safetensors")
    architecture = checkpoint.architecture | {"config": checkpoint.architecture["config"] | config}
    write_checkpoint(out / "model.safetensors", replace(checkpoint, architecture=architecture))
    return out


def features(encoder: PretrainedEncoder, content: torch.Tensor) -> dict[str, np.ndarray]:
    with torch.no_grad():
        found = encoder(content)
    assert {one.name: (len(content), one.dims) for one in encoder.facts.outputs} == {
        name: tuple(values.shape) for name, values in found.items()
    }
    return {name: values.numpy() for name, values in found.items()}


def cells(maps: np.ndarray, grid: int) -> np.ndarray:
    """Means of the signed roots of maps (N, C, h, w) in the cells of a grid that divides their sides."""
    roots = np.sign(maps) * np.sqrt(np.abs(maps))
    count, channels, height, width = roots.shape
    means = roots.reshape(count, channels, grid, height // grid, grid, width // grid).mean((3, 5))
    return means.reshape(count, -1)


def test_a_spatial_code_is_pooled_to_two_grids(tmp_path: Path) -> None:
    run = autoencoder(tmp_path / "run", "conv")
    images = torch.rand(3, 1, 32, 32)
    found = features(open_run(run, "image", (1, 32, 32), {}), images)
    with torch.no_grad():
        maps = TorchModel(run / "model.safetensors").module.encode(images).numpy()
    assert set(found) == {"code", "code 4x4"}
    np.testing.assert_allclose(found["code"], cells(maps, 2), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["code 4x4"], cells(maps, 4), rtol=1e-4, atol=1e-5)


def test_an_embedding_network_gives_its_embedding_and_its_maps(tmp_path: Path) -> None:
    run = autoencoder(tmp_path / "run", "conv", embedding=24)
    images = torch.rand(3, 1, 32, 32)
    found = features(open_run(run, "image", (1, 32, 32), {}), images)
    assert set(found) == {"code", "code 4x4", "embedding", "maps"}
    model = TorchModel(run / "model.safetensors")
    embedded = functional.normalize(torch.from_numpy(found["embedding"]), dim=1).numpy()
    np.testing.assert_allclose(embedded, model.embed("image", images), rtol=1e-4, atol=1e-6)
    network = model.module.embedding
    with torch.no_grad():
        maps = network.maps(images - 0.5)
        np.testing.assert_allclose(network.head(maps.mean((2, 3))), network.features(images), rtol=1e-4, atol=1e-6)
    assert maps.shape[2:] == (2, 2)  # one position in each cell
    np.testing.assert_allclose(found["maps"], cells(maps.numpy(), 2), rtol=1e-4, atol=1e-5)


def test_a_vector_code_is_given_as_it_is_and_images_are_resized_to_the_run(tmp_path: Path) -> None:
    run = autoencoder(tmp_path / "run", "deep", {"licence": "CC-BY-4.0"})
    encoder = open_run(run / "model.safetensors", "image", (3, 64, 64), {"mean": 0.5, "std": 0.5})
    images = torch.rand(2, 3, 64, 64)
    smaller = functional.interpolate(images.mean(1, keepdim=True), (32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        code = TorchModel(run / "model.safetensors").module.encode(smaller).numpy()
    np.testing.assert_allclose(features(encoder, images)["code"], code, rtol=1e-4, atol=1e-5)
    assert encoder.facts.geometry is not None
    assert (encoder.facts.geometry.size, encoder.facts.geometry.native) == (32, 32)
    assert (encoder.facts.kind, encoder.facts.family, encoder.facts.licence) == ("cyclic", "deep", "CC-BY-4.0")


def test_both_halves_of_an_image_text_run_give_its_embeddings(joint_run: Path) -> None:
    model = TorchModel(joint_run / "model.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32)).astype(np.uint8)
    image, text = (open_run(joint_run, modality, (1, 32, 32), {}) for modality in ("image", "text"))
    found = features(image, torch.from_numpy(images) / 255)
    np.testing.assert_allclose(found["embedding"], model.embed_images(images), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        found["code"], model.module.encoders["image"].encode(model.images(images)).detach(), rtol=1e-4, atol=1e-5
    )
    assert text.facts.window is not None
    tokens = Tokens(text.facts.tokenizer, text.facts.window)
    found = features(text, torch.from_numpy(tokens.encode(TEXTS)))
    np.testing.assert_allclose(found["embedding"], model.embed_texts(TEXTS), rtol=1e-4, atol=1e-5)
    names = {name.split(".")[0] for name in image.state_dict() | text.state_dict()}
    assert names == {"encoder", "embedding"}  # the image half holds nothing of the text half, and the reverse
    kept = sum(value.numel() for one in (image, text) for value in one.state_dict().values())
    assert kept < sum(value.size for value in model.checkpoint.weights.values())


def test_a_long_text_is_the_weighted_mean_of_its_windows(joint_run: Path) -> None:
    encoder = open_run(joint_run, "text", None, {})
    assert encoder.facts.window is not None
    tokens = Tokens(encoder.facts.tokenizer, encoder.facts.window)
    content = torch.from_numpy(tokens.encode([" ".join(TEXTS) + " zxq" * 60]))
    counts = (content[0] > 0).sum(1)
    assert len(counts) > 1
    assert counts[0] == encoder.facts.window == encoder.limit - 1
    parts = [features(encoder, content[:, [number], :count])["code"] for number, count in enumerate(counts)]
    weighted = sum(part * int(count) for part, count in zip(parts, counts, strict=True)) / int(counts.sum())
    np.testing.assert_allclose(features(encoder, content)["code"], weighted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_an_encoder_is_read_from_its_copy(joint_run: Path, tmp_path: Path, modality: str) -> None:
    encoder = open_encoder(str(joint_run), modality, (1, 32, 32), {})
    write_encoder(tmp_path / "encoders", encoder)
    again = read_encoder(tmp_path / "encoders", encoder.facts.fingerprint)
    content = torch.rand(2, 1, 32, 32) if modality == "image" else torch.tensor([[[5, 9, 7]], [[4, 0, 0]]])
    for name, values in features(again, content).items():
        np.testing.assert_array_equal(values, features(encoder, content)[name])
    assert again.facts == encoder.facts
    assert not again.train().training


def test_the_fingerprint_is_of_the_used_half(joint_run: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(joint_run / "model.safetensors")
    name = next(name for name in checkpoint.weights if name.startswith("encoders.text."))
    weights = checkpoint.weights | {name: checkpoint.weights[name] + 1}
    write_checkpoint(tmp_path / "other" / "model.safetensors", replace(checkpoint, weights=weights))
    for modality, is_equal in (("image", True), ("text", False)):
        before, after = (open_run(run, modality, None, {}).facts.fingerprint for run in (joint_run, tmp_path / "other"))
        assert (before == after) == is_equal
        assert len(before) == 32


def test_what_has_no_such_encoder_is_refused(joint_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CyclicError, match="has no text encoder"):
        open_run(autoencoder(tmp_path / "images", "conv"), "text", None, {})
    with pytest.raises(UsageError, match="built on fixed codes"):
        open_run(changed(joint_run, tmp_path / "closed", start="closed_form"), "image", None, {})
    coded = {"image": {"coded": True}, "text": {"coded": True}}
    with pytest.raises(UsageError, match="built on fixed codes"):
        open_run(changed(joint_run, tmp_path / "coded", modalities=coded), "text", None, {})
    with pytest.raises(CyclicError, match="has no text encoder"):
        open_run(changed(joint_run, tmp_path / "half", modalities={"image": {}}), "text", None, {})
    with pytest.raises(CyclicError, match="cannot be built"):
        open_run(changed(joint_run, tmp_path / "torn", embedding=None), "image", None, {})
    with pytest.raises(CyclicError, match="does not fit"):
        open_run(changed(joint_run, tmp_path / "wide", embedding=17), "image", None, {})
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "image_encoder.onnx").touch()
    with pytest.raises(UsageError, match="holds exported models"):
        open_run(tmp_path / "exported", "image", None, {})


def test_facts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    facts = open_run(autoencoder(tmp_path / "run", "conv"), "image", None, {}).facts
    with pytest.raises(CyclicError, match="cannot be built"):
        rebuild(replace(facts, settings={"name": "conv", "image_shape": [1, 32, 32]}))
    with pytest.raises(CyclicError, match="does not fit"):
        rebuild(replace(facts, outputs=facts.outputs[:1]))
