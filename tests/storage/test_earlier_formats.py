"""Files of earlier formats stay readable: those in `tests/stored`, which its README describes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import yaml
from helpers.makers import Ran
from helpers.run_files import gradient_difference

from cyclic_cli.config import read_run_file
from cyclic_cli.earlier_names import upgraded_provenance
from cyclic_cli.inference.onnx_model import OnnxModel
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.registry import names
from cyclic_cli.storage import onnx_file
from cyclic_cli.storage.checkpoint import read_checkpoint
from cyclic_cli.storage.dataset import StoredDataset
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
    assert cyclic("info", folder, "--json").json["counts"]["used"] == 44


@pytest.mark.parametrize("version", [2, 3])
def test_a_dataset_that_was_rendered_by_earlier_rules_is_not_updated(
    version: int, tmp_path: Path, cyclic: Cyclic
) -> None:
    shutil.copytree(STORED / f"dataset-format-{version}", tmp_path / "dataset")
    cyclic("demo", "--out", "demo", "-n", 46, "--quiet")  # two more than the stored datasets hold
    words = ("prepare", "demo", "--out", tmp_path / "dataset", "--already-deidentified", "--size", 32)
    for more in (["--update"], []):
        said = cyclic(*words, *more)
        assert said.code == 1
        assert "showed some files in another way" in said.err
        assert "another --out" in said.err


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
    """Resumed as stored, and resumed after this test has renamed its settings, the run has equal weights and moments.

    They are also those that the earlier version computed. On another processor they differ by rounding, which three
    steps enlarge little; state that is not restored changes moments by a tenth and more.
    """
    settings = yaml.safe_load((STORED / "run" / "config.yaml").read_text())
    settings.pop("dataset")
    Path("settings.yaml").write_text(yaml.safe_dump(settings))
    for name in ("stored", "renamed"):
        shutil.copytree(STORED / "run", tmp_path / name)
    config = tmp_path / "renamed" / "config.yaml"
    config.write_text(config.read_text().replace("tower:", "arch:"))
    for name in ("stored", "renamed"):
        words = ("train", STORED / "dataset-format-3", "--config", "settings.yaml", "--out", tmp_path / name)
        ran = cyclic(*words, "--resume", "must", "--json")
        assert ran.code == 0, ran.err
        assert (ran.json["resumed_from_step"], ran.json["steps"]) == (6, 9)
    last = "state/step-00000009"
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "stored" / last / file).read_bytes() == (tmp_path / "renamed" / last / file).read_bytes()
    assert gradient_difference(tmp_path / "stored", STORED / "resumed", "exp_avg") < 2e-3
    begun, ended, found = (
        read_checkpoint(path / "model.safetensors").weights
        for path in (STORED / "run/state/step-00000006", STORED / "resumed" / last, tmp_path / "stored" / last)
    )
    for name, value in ended.items():
        moved = np.linalg.norm(value - begun[name])
        np.testing.assert_array_less(np.linalg.norm(found[name] - value), 0.05 * moved + 1e-6, err_msg=name)


def test_checkpoints_of_format_4_and_their_exports_are_read() -> None:
    by_torch = TorchModel(STORED / "format-4" / "image-text.safetensors", "cpu")
    by_onnx = OnnxModel(STORED / "format-4" / "text-encoder.onnx")
    texts = ["Large left pleural effusion.", "No acute disease."]
    np.testing.assert_allclose(by_onnx.embed_texts(texts), by_torch.embed_texts(texts), atol=1e-4)
    _, exported = onnx_file.read(STORED / "format-4" / "text-encoder.onnx")
    for made in (by_torch.checkpoint, exported):
        for settings in (made.provenance["settings"], made.architecture["config"]):
            assert settings["modalities"]["text"]["arch"] == "bag"
            assert "encoder" not in settings["modalities"]["text"]


def test_a_model_trained_with_objectives_that_exist_no_more_is_used(cyclic: Cyclic) -> None:
    model, dataset = STORED / "removed-objectives.safetensors", STORED / "dataset-format-3"
    trained_with = read_checkpoint(model).provenance["settings"]["objectives"]
    assert set(trained_with) - set(names("objectives")) == {
        "code_cycle", "latent_cycle", "half_latent_cycle", "half_data_cycle", "neighbour_cycle", "pseudo_pairs",
        "wasserstein", "discrepancy",
    }  # fmt: skip
    assert cyclic("info", model, "--json").json["provenance"]["settings"]["objectives"] == trained_with
    small = ("--epochs", 1, "--batch-size", 16, "--set", "embedding=4", "--set", "private=2")
    settings = "modalities={image: {arch: linear, model: {latent: 4}}, text: {model: {latent: 4}, vocabulary: 259}}"
    for words in (
        ("evaluate", dataset, "--model", model),
        ("embed", dataset, "--model", model, "--with-text", "--out", "embeddings.parquet"),
        ("export", "--model", model, "--part", "all", "--dataset", dataset, "--out", "exported"),
        ("embed", dataset, "--model", "exported", "--with-text", "--out", "by_onnx.parquet"),
        ("train", dataset, "--objective", "contrastive", "--init-from", model, "--set", settings, *small),
    ):
        ran = cyclic(*words, "--json")
        assert ran.code == 0, ran.err


@pytest.mark.parametrize("name", ["neighbour_cycle", "wasserstein"])
def test_a_run_with_an_objective_that_exists_no_more_is_not_resumed(name: str, tmp_path: Path, cyclic: Cyclic) -> None:
    shutil.copytree(STORED / "run", tmp_path / "run")
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    settings["objectives"] = {"contrastive": 1.0, name: 0.1}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    settings.pop("dataset")
    Path("settings.yaml").write_text(yaml.safe_dump(settings))
    words = ("train", STORED / "dataset-format-3", "--config", "settings.yaml", "--out", tmp_path / "run")
    ran = cyclic(*words, "--resume", "must")
    assert ran.code == 2
    assert f"Unknown objective: {name!r}." in ran.err
    assert f"Known: {', '.join(names('objectives'))}." in " ".join(ran.err.split())


def test_every_earlier_name_is_replaced_where_it_is_read(tmp_path: Path) -> None:
    for name in ("tower", "encoder"):
        settings = {"modalities": {"text": {name: "bag"}}}
        assert upgraded_provenance({"start_from": "abc", "settings": settings}) == {
            "init_from": "abc", "settings": {"modalities": {"text": {"arch": "bag"}}},
        }  # fmt: skip
        (tmp_path / "config.yaml").write_text(f"start_from: abc\nmodalities: {{text: {{{name}: bag}}}}\n")
        read = read_run_file(tmp_path / "config.yaml")
        assert read == {"init_from": "abc", "modalities": {"text": {"arch": "bag"}}}
    checkpoint = read_checkpoint(STORED / "image-text.safetensors")
    assert checkpoint.provenance["settings"]["modalities"]["text"]["arch"] == "bag"
    assert checkpoint.architecture["config"]["modalities"]["text"]["arch"] == "bag"
    _, exported = onnx_file.read(STORED / "onnx" / "text-tower.onnx")
    assert exported.provenance["settings"]["modalities"]["text"]["arch"] == "bag"
    assert exported.architecture["config"]["modalities"]["text"]["arch"] == "bag"
