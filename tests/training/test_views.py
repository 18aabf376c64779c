"""`--objective views`: encoders of images trained without reports, so that two views of an image agree."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.makers import Ran
from helpers.run_files import gradient_difference, rows, weights
from torch.nn import functional

from cyclic_cli import distributed
from cyclic_cli.config import TrainConfig
from cyclic_cli.data.samples import Samples
from cyclic_cli.data.views import view
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.models import conv
from cyclic_cli.models._embedding import FLOOR
from cyclic_cli.registry import names
from cyclic_cli.storage.checkpoint import read_checkpoint
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training.self_supervised import SelfSupervised, filled_in
from cyclic_cli.training.task import TrainSummary, train

Cyclic = Callable[..., Ran]


@pytest.fixture(autouse=True)
def short_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the spectral fit that initialises convolutions: it takes seconds, and is tested elsewhere."""
    monkeypatch.setattr(conv, "ITERATIONS", 20)


def words(dataset: Path, *more: Any) -> list[Any]:
    common = ("--objective", "views", "--arch", "linear", "--set", "model.latent=32", "--precision", "32")
    return ["train", dataset, *common, "--epochs", 3, "--batch-size", 24, "--json", "--quiet", *more]


def learner(dataset: Path, **settings: Any) -> SelfSupervised:
    stored = StoredDataset(dataset)
    config = filled_in(TrainConfig(objective="views", device="cpu", precision="32", **settings), 100)
    return SelfSupervised(distributed.launch("cpu", "32"), stored, config)


def test_views_of_an_image_agree_after_training(paired_dataset: Path, tmp_path: Path) -> None:
    untrained, trained = trained_and_not(paired_dataset, tmp_path, arch="conv", model={"embedding": 32})
    assert trained.val["agreement"] > untrained.val["agreement"] + 0.05
    losses = [row["val"]["loss"] for row in rows(tmp_path / "trained", "epoch")]
    assert trained.val["loss"] == min(losses) < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("arch", names("models"))
def test_every_architecture_learns_from_views(arch: str, paired_dataset: Path, tmp_path: Path) -> None:
    untrained, trained = trained_and_not(paired_dataset, tmp_path, arch=arch)
    assert trained.val["loss"] < untrained.val["loss"] - 0.1


def trained_and_not(dataset: Path, folder: Path, **settings: Any) -> list[TrainSummary]:
    """The summaries of a run without training and of a run of eight epochs."""
    config = TrainConfig(objective="views", epochs=8, batch_size=32, **settings)
    return [
        train(dataset, folder / "untrained", replace(config, epochs=1, lr=0.0)),
        train(dataset, folder / "trained", config),
    ]


def test_the_loss_compares_all_views_of_a_batch(paired_dataset: Path) -> None:
    """A step computes SimCLR's loss by the formula, for the views of a batch."""
    one = learner(paired_dataset, arch="linear", model={"latent": 8}, augment=0.5)
    one.set_up(one.ranks.fabric.setup_module(one.module), one.plan())
    chosen = np.arange(6)
    found = one.losses(chosen, 3 * one.steps_per_epoch)
    images, keys = one.data.images(chosen), one.data.keys(chosen)
    rows = []
    for number in (0, 1):
        shown = view(images, keys, one.views, 0.5, 0, 3, number)
        rows.append(functional.normalize(one.module.projector(one.module.model.encode(shown)), dim=1))
    similar = (torch.cat(rows) @ torch.cat(rows).T / 0.2).fill_diagonal_(-1e9)
    expected = functional.cross_entropy(similar, torch.arange(12).roll(6))
    assert found["simclr"] == pytest.approx(expected.item(), rel=1e-5)


def test_the_embedding_network_is_white_on_the_training_images(paired_dataset: Path, tmp_path: Path) -> None:
    """The covariance has the eigenvalues v / (v + floor), where v are those of the features before whitening."""
    config = TrainConfig(objective="views", arch="conv", model={"embedding": 8}, epochs=2, batch_size=32)
    train(paired_dataset, tmp_path / "run", config)
    network = TorchModel(tmp_path / "run" / "model.safetensors", "cpu").module.embedding
    samples = Samples.of(StoredDataset(paired_dataset), "train")
    with torch.no_grad():
        images = samples.images(np.arange(len(samples)))
        features, embeddings = (found.double().numpy() for found in (network.features(images), network(images)))
    np.testing.assert_allclose(embeddings.mean(0), 0, atol=1e-3)
    variances = np.linalg.eigvalsh(np.cov(features.T, bias=True))
    expected = variances / (variances + FLOOR * variances.mean())
    np.testing.assert_allclose(np.linalg.eigvalsh(np.cov(embeddings.T, bias=True)), np.sort(expected), atol=1e-3)
    assert expected.max() > 0.99


def test_the_run_is_an_encoder_without_a_decoder(paired_dataset: Path, tiny_files: Path, cyclic: Cyclic) -> None:
    ran = cyclic(*words(paired_dataset, "--out", "run"))
    assert ran.code == 0, ran.err
    assert set(ran.json["val"]) == {"loss", "agreement"}
    kept = read_checkpoint(Path("run/model.safetensors"))
    assert not any("projector" in name for name in kept.weights)
    assert cyclic("embed", paired_dataset, "--model", "run", "--out", "e.parquet").code == 0
    found = cyclic("search", tiny_files / "p00" / "scan.png", "--in", "e.parquet", "--model", "run", "--json")
    assert len(found.json["results"]) > 0
    evaluated = cyclic("evaluate", paired_dataset, "--model", "run", "--json").json
    assert evaluated["knn"]["disc"]["image"] > 0
    assert not evaluated["reconstruction"]
    refused = cyclic("reconstruct", tiny_files / "p00" / "scan.png", "--model", "run")
    assert refused.code == 1
    assert "trained without a decoder" in refused.err


def test_a_stopped_run_ends_with_the_bits_of_one_never_stopped(paired_dataset: Path, cyclic: Cyclic) -> None:
    assert cyclic(*words(paired_dataset, "--out", "whole")).code == 0
    command = [sys.executable, "-c", STOPPING, *map(str, words(paired_dataset, "--out", "parts"))]
    assert subprocess.run(command, capture_output=True, timeout=200).returncode == 143
    ran = cyclic(*words(paired_dataset, "--out", "parts", "--resume", "must"))
    assert ran.code == 0, ran.err
    assert ran.json["resumed_from_step"] == 5
    assert weights(Path("whole")) == weights(Path("parts"))
    assert rows(Path("whole"), "epoch")[-1]["val"] == rows(Path("parts"), "epoch")[-1]["val"]


STOPPING = """
import os, signal
from cyclic_cli.training.steps import Stepper
from cyclic_cli.__main__ import main
usual = Stepper.step
def counted(self):
    result = usual(self)
    if self.progress.step == 5: os.kill(os.getpid(), signal.SIGTERM)
    return result
Stepper.step = counted
main()
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_does(paired_dataset: Path, tmp_path: Path, cyclic: Cyclic) -> None:
    """Batches of 25 images, so that the parts of the processes differ in size."""
    common = ("--batch-size", 25, "--lr", 1e-5)
    assert cyclic(*words(paired_dataset, *common, "--out", tmp_path / "one")).code == 0
    command = [sys.executable, "-m", "cyclic_cli"]
    command += map(str, words(paired_dataset, *common, "--out", tmp_path / "two", "--devices", 2))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert gradient_difference(tmp_path / "one", tmp_path / "two") < 1e-2  # rounding is a thousandth of that
    for kind, field in (("step", "losses"), ("epoch", "val")):
        for first, second in zip(rows(tmp_path / "one", kind), rows(tmp_path / "two", kind), strict=True):
            assert first[field] == pytest.approx(second[field], rel=1e-4)


def test_bfloat16_learns_too(paired_dataset: Path, cyclic: Cyclic) -> None:
    ran = cyclic(*words(paired_dataset, "--precision", "bf16", "--out", "run"))
    assert ran.code == 0, ran.err
    assert ran.json["val"]["loss"] > 0


def test_an_autoencoder_keeps_the_embedding_that_views_have_trained(
    paired_dataset: Path, tiny_files: Path, cyclic: Cyclic
) -> None:
    model = ("--arch", "conv", "--set", "model={embedding: 16}")
    refused = cyclic(*words(paired_dataset, "--objective", "autoencode", *model, "--out", "none"))
    assert refused.code == 2
    assert "--objective views" in refused.err
    assert cyclic(*words(paired_dataset, *model, "--out", "views")).code == 0
    ran = cyclic(*words(paired_dataset, "--objective", "autoencode", *model, "--init-from", "views", "--out", "both"))
    assert ran.code == 0, ran.err
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32), np.uint8)
    before, after = (TorchModel(Path(name) / "model.safetensors", "cpu") for name in ("views", "both"))
    np.testing.assert_array_equal(before.embed_images(images), after.embed_images(images))
    assert after.embed_images(images).shape == (3, 16)
    first, second = (weights(Path(name)) for name in ("views", "both"))
    changed = {name.split(".")[0] for name in first if first[name] != second[name]}
    assert changed == {"encoder", "decoder"}
    assert cyclic("reconstruct", tiny_files / "p00" / "scan.png", "--model", "both").code == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--set", "objectives={reconstruction: 1}"), "does not compare views"),
        (("--set", "objectives={simclr: {weight: 1, sharpnes: 3}}"), "sharpness"),
        (("--set", "modalities.image.flip=true"), "flips"),
        (("--set", "modalities.image.crop=0"), "crop"),
        (("--batch-size", 1), "--batch-size"),
        (("--strategy", "fsdp"), "--strategy ddp"),
        (("--paired-fraction", 0.5), "image–text models"),
    ],
)
def test_impossible_settings_are_refused_with_a_way_out(
    more: tuple[Any, ...], message: str, paired_dataset: Path, cyclic: Cyclic
) -> None:
    ran = cyclic(*words(paired_dataset, *more, "--out", "run"))
    assert ran.code == 2
    assert message in ran.err
    assert not Path("run/model.safetensors").exists()
