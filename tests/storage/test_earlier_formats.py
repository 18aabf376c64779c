"""Files of earlier formats stay readable: those in `tests/stored`, which its README describes."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import yaml
from helpers.makers import Ran
from helpers.run_files import weights

from cyclic_cli.inference.onnx_model import OnnxModel
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.storage.checkpoint import read_checkpoint
from cyclic_cli.storage.dataset import INPUT_COLUMNS, StoredDataset
from cyclic_cli.storage.embeddings import EmbeddingFile

STORED = Path(__file__).parents[1] / "stored"
Cyclic = Callable[..., Ran]


def check_tensor_names(path: Path) -> None:
    """Check that a checkpoint of format 3 is read with the present names; the test renames the tensors by itself."""
    tensors = safetensors.numpy.load_file(path)
    new = {name.replace("towers.", "encoders.").replace(".tower.", ".encoder."): one for name, one in tensors.items()}
    checkpoint = read_checkpoint(path)
    assert checkpoint.weights.keys() == new.keys()
    assert all(np.array_equal(new[name], one) for name, one in checkpoint.weights.items())


@pytest.mark.parametrize("version", [2, 3])
def test_a_dataset_of_an_earlier_format_is_read(version: int, cyclic: Cyclic) -> None:
    folder = STORED / f"dataset-format-{version}"
    dataset = StoredDataset(folder)
    dataset.check()
    assert dataset.facts.format == version
    assert len(dataset.records("train")) == 34
    inputs = list(dataset.inputs())
    assert len(inputs) == 44
    assert set(inputs[0]) == set(INPUT_COLUMNS)
    assert all(re.fullmatch("[0-9a-f]{64}", row["perceptual_hash"]) for row in inputs)
    assert cyclic("info", folder, "--json").json["counts"]["used"] == 44


def test_a_dataset_of_an_earlier_format_is_updated(tmp_path: Path, cyclic: Cyclic) -> None:
    shutil.copytree(STORED / "dataset-format-3", tmp_path / "dataset")
    cyclic("demo", "--out", "demo", "-n", 60, "--quiet")
    words = ("prepare", "demo", "--out", tmp_path / "dataset", "--already-deidentified", "--size", 32, "--json")
    updated = cyclic(*words, "--update")
    assert updated.code == 0, updated.err
    assert (updated.json["inputs"], updated.json["used"]) == (60, 60)
    assert StoredDataset(tmp_path / "dataset").facts.format > 3


def test_checkpoints_of_an_earlier_format_are_read_and_used(cyclic: Cyclic) -> None:
    check_tensor_names(STORED / "image-text.safetensors")
    for name in ("autoencoder", "image-text"):
        model = STORED / f"{name}.safetensors"
        said = cyclic("info", model, "--json").json
        assert said["fingerprint"] == read_checkpoint(model).fingerprint
        found = cyclic("evaluate", STORED / "dataset-format-3", "--model", model, "--json")
        assert found.code == 0, found.err
        assert found.json["reconstruction"]["mse"] < 0.05


def test_exported_parts_of_an_earlier_format_embed_as_the_checkpoint_does() -> None:
    by_onnx, by_torch = OnnxModel(STORED / "onnx"), TorchModel(STORED / "image-text.safetensors", "cpu")
    dataset = StoredDataset(STORED / "dataset-format-3")
    rows = dataset.rows(["shard", "row", "text"], "val")
    pixels, texts = dataset.images(rows["shard"], rows["row"]), rows["text"].tolist()
    assert by_onnx.fingerprint == by_torch.fingerprint
    np.testing.assert_allclose(by_onnx.embed_images(pixels), by_torch.embed_images(pixels), atol=1e-4)
    np.testing.assert_allclose(by_onnx.embed_texts(texts), by_torch.embed_texts(texts), atol=1e-4)


def test_an_export_of_an_earlier_format_is_described_and_reconstructs(cyclic: Cyclic) -> None:
    assert cyclic("info", STORED / "onnx" / "text-tower.onnx", "--json").json["part"] == "text-encoder"
    cyclic("demo", "--out", "demo", "-n", 2, "--quiet")
    ran = cyclic("reconstruct", "demo", "--model", STORED / "autoencoder.onnx", "--json")
    assert [line["mse"] < 0.1 for line in ran.lines] == [True, True]


def test_stored_embeddings_are_searched_with_the_checkpoint_that_made_them(cyclic: Cyclic) -> None:
    file, model = STORED / "embeddings.parquet", STORED / "image-text.safetensors"
    assert EmbeddingFile(file).facts.model == read_checkpoint(model).fingerprint
    ran = cyclic("search", "Large left pleural effusion.", "--in", file, "--model", model, "-k", 3, "--json")
    assert ran.code == 0, ran.err
    assert len(ran.json["results"]) == 3


def test_a_run_of_an_earlier_format_is_resumed_with_equal_bits(tmp_path: Path, cyclic: Cyclic) -> None:
    """Resumed as stored, and resumed after this test has renamed its settings, the run ends with equal weights."""
    settings = yaml.safe_load((STORED / "run" / "config.yaml").read_text())
    settings.pop("dataset")
    Path("settings.yaml").write_text(yaml.safe_dump(settings))
    for name in ("stored", "renamed"):
        shutil.copytree(STORED / "run", tmp_path / name)
    config = tmp_path / "renamed" / "config.yaml"
    config.write_text(config.read_text().replace("tower:", "encoder:"))
    for name in ("stored", "renamed"):
        words = ("train", STORED / "dataset-format-3", "--config", "settings.yaml", "--out", tmp_path / name)
        ran = cyclic(*words, "--resume", "must", "--json")
        assert ran.code == 0, ran.err
        assert (ran.json["resumed_from_step"], ran.json["steps"]) == (6, 9)
    assert weights(tmp_path / "stored") == weights(tmp_path / "renamed")
    before = read_checkpoint(STORED / "run" / "model.safetensors").weights
    known, found = (
        read_checkpoint(path).weights
        for path in (STORED / "image-text.safetensors", tmp_path / "stored" / "model.safetensors")
    )
    for name, value in known.items():
        moved = 3 * 0.003  # Adam moves a weight by about the learning rate per step, and there are three steps
        np.testing.assert_allclose(found[name], value, atol=2 * moved, err_msg=name)
        assert np.array_equal(value, before[name]) == np.array_equal(found[name], before[name])
    assert json.loads((tmp_path / "stored" / "summary.json").read_text())["steps"] == 9
