"""`cyclic train`: the same seed gives the same bits, stopped or not; and which runs are refused."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.makers import Ran, make_png, smooth_image
from helpers.run_files import rows, step_losses, timeless_rows, weights
from lightning_fabric.plugins import Precision

from cyclic_cli import distributed
from cyclic_cli.config import TrainConfig
from cyclic_cli.data.samples import Samples
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Epoch, Note, Step
from cyclic_cli.models import conv, deep, linear
from cyclic_cli.registry import names
from cyclic_cli.storage.checkpoint import read_checkpoint
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training import autoencoding, run_log, steps, validation
from cyclic_cli.training import task as training
from cyclic_cli.training.schedule import learning_rate
from cyclic_cli.training.task import train

Cyclic = Callable[..., Ran]


@pytest.fixture(autouse=True)
def short_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the spectral fit that initialises convolutions: it takes seconds, and is tested elsewhere."""
    monkeypatch.setattr(conv, "ITERATIONS", 20)


@pytest.mark.parametrize("arch", names("models"))
def test_every_architecture_trains_and_gets_better(arch: str, tiny_dataset: Path, tmp_path: Path) -> None:
    events: list[object] = []
    summary = train(tiny_dataset, tmp_path / arch, TrainConfig(arch=arch, epochs=2, batch_size=4), report=events.append)
    mean_error = float(
        np.mean(
            [np.var(image) for image in Samples.of(StoredDataset(tiny_dataset), "val").images(np.arange(4)).numpy()]
        )
    )
    assert summary.val["mse"] < mean_error
    assert summary.steps == summary.steps_executed == sum(isinstance(event, Step) for event in events)
    assert [event.epoch for event in events if isinstance(event, Epoch)] == [1, 2]
    kept = read_checkpoint(tmp_path / arch / "model.safetensors")
    assert kept.architecture["name"] == arch
    assert all(np.isfinite(value).all() for value in kept.weights.values())
    assert not any(str(tmp_path) in text for text in (json.dumps(kept.provenance), json.dumps(kept.architecture)))


@pytest.mark.parametrize("arch", ["conv", "vae"])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(arch: str, tiny_dataset: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny_dataset, tmp_path / name, TrainConfig(arch=arch, epochs=1, batch_size=4, seed=seed))
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


def test_fractions_train_on_nested_samples(tiny_dataset: Path) -> None:
    stored = StoredDataset(tiny_dataset)
    keys = {fraction: set(stored.records("train", fraction)["key"].tolist()) for fraction in (0.2, 0.5, 1.0)}
    assert keys[0.2] < keys[0.5] < keys[1.0]
    assert not keys[1.0] & set(stored.records("val")["key"].tolist())


@pytest.mark.parametrize(
    ("arch", "number"),
    [
        ("linear", signal.SIGTERM),
        ("linear", signal.SIGUSR1),
        ("linear", signal.SIGINT),
        pytest.param("vae", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_in_mid_epoch_ends_with_the_bits_of_one_never_stopped(
    arch: str, number: signal.Signals, tiny_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    words = ("train", tiny_dataset, "--arch", arch, "--epochs", 3, "--batch-size", 4, "--resume", "auto", "--quiet")
    whole = cyclic(*words, "--out", tmp_path / "whole", "--json").json
    config = TrainConfig(arch=arch, epochs=3, batch_size=4)
    stop_at = whole["steps"] // 2 + 1
    assert stop_at % (whole["steps"] // 3) != 0  # in mid-epoch

    def stop(event: object) -> None:
        if isinstance(event, Step) and event.step == stop_at:
            os.kill(os.getpid(), number)

    with pytest.raises(CyclicError) as caught:
        train(tiny_dataset, tmp_path / "stopped", config, report=stop)
    assert caught.value.exit_code == (130 if number == signal.SIGINT else 143)
    rest = cyclic(*words, "--out", tmp_path / "stopped", "--json").json
    assert (rest["resumed"], rest["resumed_from_step"]) == (True, stop_at)
    assert stop_at + rest["steps_executed"] == whole["steps_executed"]
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert timeless_rows(tmp_path / "stopped") == timeless_rows(tmp_path / "whole")
    last = [sorted((tmp_path / name / "state").iterdir())[-1] for name in ("whole", "stopped")]
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (last[0] / file).read_bytes() == (last[1] / file).read_bytes()


def test_a_resumed_run_with_threads_and_augmentation_ends_with_the_same_bits(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    config = TrainConfig(arch="residual", epochs=2, batch_size=4, augment=1.0, parallel="samples", micro_batch=1)
    whole = train(tiny_dataset, tmp_path / "whole", config)
    stop_at = whole.steps // 2 + 2
    assert stop_at % (whole.steps // 2) != 0  # in mid-epoch

    def stop(event: object) -> None:
        if isinstance(event, Step) and event.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(CyclicError):
        train(tiny_dataset, tmp_path / "stopped", config, report=stop)
    rest = train(tiny_dataset, tmp_path / "stopped", config, resume="auto")
    assert rest.resumed_from_step == stop_at
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert timeless_rows(tmp_path / "stopped") == timeless_rows(tmp_path / "whole")
    last = [sorted((tmp_path / name / "state").iterdir())[-1] for name in ("whole", "stopped")]
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (last[0] / file).read_bytes() == (last[1] / file).read_bytes()


def test_a_run_logs_how_its_steps_are_computed(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch, cyclic: Cyclic
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    words = ("train", tiny_dataset, "--arch", "deep", "--epochs", 1, "--batch-size", 6, "--precision", "32")
    said = cyclic(*words, "--out", "run", "--device", "cpu")
    hardware = [row for row in timeless_rows(Path("run")) if row["kind"] == "hardware"]
    assert hardware == [
        {
            "kind": "hardware", "device": "cpu", "precision": "32", "processes": 1, "sharded": False, "threads": 2,
            "parallel": "samples", "side_by_side": 2, "micro_batch": 3,
            "memory_format": "channels_last", "fuse": True, "keep_memory": True, "compile": False,
        }
    ]  # fmt: skip
    assert "2 threads, 2 micro-batches of 3 side by side" in said.err


class Float64(Precision):
    """The model in float64, for inputs of float64."""

    def convert_module(self, module: torch.nn.Module) -> torch.nn.Module:
        return module.double()

    def convert_output(self, data: Any) -> Any:
        return data


PLAIN = {"micro_batch": 1, "parallel": "operations", "fuse": False, "keep_memory": False, "memory_format": "contiguous"}


@pytest.mark.parametrize(
    "arch", ["conv", "deep", *(pytest.param(name, marks=pytest.mark.slow) for name in ("residual", "vae"))]
)
def test_every_way_to_compute_a_step_gives_the_same_losses_and_weights(
    arch: str, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is parallel, fused or laid out in memory, the optimizer sees the right gradient of each weight.

    In float64, because Adam divides a gradient by its size: of a gradient near zero it amplifies the rounding. The
    rounding of float64 stays far below the 1e-8 that Adam adds to the divisor.
    """
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(run_log, "LOG_EVERY", 1)
    monkeypatch.setattr(distributed, "_precision", lambda name, device: Float64())
    read, draw = Samples.images, autoencoding.sample_noise
    monkeypatch.setattr(Samples, "images", lambda self, chosen: read(self, chosen).double())
    monkeypatch.setattr(autoencoding, "sample_noise", lambda *words: draw(*words).double())
    config = TrainConfig(
        arch=arch, epochs=2, batch_size=5, lr=1e-3, fitted_lr=1.0, augment=0.0, device="cpu", precision="32"
    )
    ways = {
        "fast": {}, "plain": PLAIN, "operations": {"parallel": "operations"}, "samples": {"parallel": "samples"},
        "contiguous": {"memory_format": "contiguous"}, "not fused": {"fuse": False}, "parts": {"micro_batch": 3},
        "still": {"lr": 0.0},
    }  # fmt: skip
    states = {}
    for name, way in ways.items():
        train(tiny_dataset, tmp_path / name, replace(config, **way))
        states[name] = read_checkpoint(max((tmp_path / name / "state").iterdir()) / "model.safetensors").weights
    still, fast = states.pop("still"), states["fast"]
    assert len(step_losses(tmp_path / "fast")) == 10
    for way, weights_of_way in states.items():
        assert step_losses(tmp_path / way) == pytest.approx(step_losses(tmp_path / "fast"), rel=1e-6), way
        for name, weight in still.items():
            stored = 2**-23 * np.linalg.norm(weight) + 1e-12  # checkpoints hold float32
            movement = np.linalg.norm(fast[name] - weight)
            assert np.linalg.norm(fast[name] - weights_of_way[name]) <= 1e-6 * movement + stored, (way, name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("arch", ["linear", "conv"])
def test_a_compiled_network_trains_to_the_same_losses(
    arch: str, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch, cyclic: Cyclic
) -> None:
    monkeypatch.setattr(run_log, "LOG_EVERY", 1)
    words = ("train", tiny_dataset, "--arch", arch, "--epochs", 1, "--batch-size", 8, "--precision", 32, "--lr", 1e-5)
    assert cyclic(*words, "--out", "plain").code == 0
    assert cyclic(*words, "--out", "compiled", "--compile").code == 0
    assert step_losses(Path("compiled")) == pytest.approx(step_losses(Path("plain")), rel=1e-3)
    assert weights(Path("compiled")).keys() == weights(Path("plain")).keys()


def test_compilation_for_a_processor_is_refused(tiny_dataset: Path, cyclic: Cyclic) -> None:
    ran = cyclic("train", tiny_dataset, "--arch", "linear", "--compile", "--device", "cpu")
    assert ran.code == 2
    assert "--compile works on GPUs only" in ran.err


def test_augmentation_has_the_strength_of_the_settings(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strengths: list[float] = []

    def noted(images: torch.Tensor, keys: np.ndarray, strength: float, seed: int, epoch: int) -> torch.Tensor:
        strengths.append(strength)
        return images

    monkeypatch.setattr(autoencoding, "moved", noted)
    config = TrainConfig(arch="deep", epochs=1, batch_size=24)
    for augment, expected in ((0.0, set()), (0.5, {0.5}), (None, {deep.RECIPE["augment"]})):
        strengths.clear()
        train(tiny_dataset, tmp_path / str(augment), replace(config, augment=augment))
        assert set(strengths) == expected


def test_parameters_initialised_in_closed_form_have_their_own_learning_rate(tiny_dataset: Path, tmp_path: Path) -> None:
    config = TrainConfig(arch="residual", epochs=1, batch_size=12, weight_decay=0.0)
    train(tiny_dataset, tmp_path / "still", replace(config, lr=0.0))
    train(tiny_dataset, tmp_path / "fitted still", replace(config, fitted_lr=0.0))
    train(tiny_dataset, tmp_path / "usual", config)
    still, fitted_still, usual = (weights(tmp_path / name) for name in ("still", "fitted still", "usual"))
    for name, start in still.items():
        assert (fitted_still[name] == start) == name.startswith("linear."), name
        assert usual[name] != start, name


def test_the_best_epoch_is_kept_not_the_last(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(autoencoding, "validate", lambda *_: {"mse": next(errors), "psnr": 1.0})
    summary = train(tiny_dataset, tmp_path / "run", TrainConfig(arch="linear", epochs=3, batch_size=4))
    assert summary.val["mse"] == 0.1
    assert read_checkpoint(tmp_path / "run" / "model.safetensors").provenance["epoch"] == 2
    assert [row["best"] for row in rows(tmp_path / "run", "epoch")] == [True, True, False]


def test_validation_equals_the_errors_of_reconstruct(
    tiny_dataset: Path, tiny_files: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    """Both leave the letterbox out: the tiny images are 80 × 64, so it is a fifth of each square."""
    summary = train(tiny_dataset, tmp_path / "run", TrainConfig(arch="conv", epochs=1))
    samples = StoredDataset(tiny_dataset).index(["source", "split"]).to_pylist()
    sources = [sample["source"] for sample in samples if sample["split"] == "val"]
    scans = [tiny_files / source for source in sources]
    said = cyclic("reconstruct", *scans, "--model", tmp_path / "run", "--json").lines
    assert len(said) == len(sources) > 2
    assert summary.val["mse"] == pytest.approx(np.mean([line["mse"] for line in said]), rel=1e-4)
    assert summary.val["psnr"] == pytest.approx(np.mean([line["psnr"] for line in said]), abs=1e-3)


def test_metrics_that_a_killed_attempt_wrote_after_its_state_are_cut(tiny_dataset: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", TrainConfig(arch="linear", epochs=2, batch_size=4)

    def stop(event: object) -> None:
        if isinstance(event, Step) and event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(CyclicError):
        train(tiny_dataset, run, config, report=stop)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 4}\n{"kind": "st')
    train(tiny_dataset, run, config, resume="auto")
    train(tiny_dataset, tmp_path / "whole", config)
    assert timeless_rows(run) == timeless_rows(tmp_path / "whole")


def test_rate_noise_and_weights_reach_the_model(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(arch="vae", model={"width": 8, "latent": 16}, epochs=1, batch_size=4)
    train(tiny_dataset, tmp_path / "usual", config)
    train(tiny_dataset, tmp_path / "weighed", replace(config, objectives={"reconstruction": 1.0, "divergence": 1.0}))
    train(tiny_dataset, tmp_path / "decayed", replace(config, weight_decay=0.5))
    with monkeypatch.context() as patch:
        patch.setattr(autoencoding, "sample_noise", lambda keys, size, seed, epoch: torch.zeros(len(keys), size))
        train(tiny_dataset, tmp_path / "noiseless", config)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "learning_rate", lambda *_: 0.0)
        train(tiny_dataset, tmp_path / "still", config)
        train(tiny_dataset, tmp_path / "still too", replace(config, epochs=2))
    usual = weights(tmp_path / "usual")
    for name in ("weighed", "decayed", "noiseless", "still"):
        assert weights(tmp_path / name) != usual, name
    assert weights(tmp_path / "still") == weights(tmp_path / "still too")


def test_a_finished_run_without_its_model_is_an_error(tiny_dataset: Path, cyclic: Cyclic) -> None:
    words = ("train", tiny_dataset, "--arch", "linear", "--epochs", 1, "--out", "run", "--resume", "auto")
    cyclic(*words)
    model = Path("run/model.safetensors")
    model.write_bytes(model.read_bytes()[:-10])
    assert cyclic(*words).code == 1
    model.unlink()
    assert cyclic(*words).code == 1


def test_a_folder_that_is_not_a_run_is_never_written_into(tiny_dataset: Path, cyclic: Cyclic) -> None:
    Path("mine").mkdir()
    Path("mine/metrics.jsonl").write_text("years of work")
    for resume in ("never", "auto", "must"):
        assert cyclic("train", tiny_dataset, "--out", "mine", "--resume", resume).code == 1
    assert [path.name for path in Path("mine").iterdir()] == ["metrics.jsonl"]
    assert Path("mine/metrics.jsonl").read_text() == "years of work"


def test_an_unfinished_dataset_is_an_error_rather_than_replaced_by_the_demo(cyclic: Cyclic) -> None:
    Path("dataset/.unfinished").mkdir(parents=True)
    ran = cyclic("train")
    assert ran.code == 1
    assert "does not contain a finished dataset" in ran.err


def test_a_finished_run_is_summarised_again_and_an_existing_one_refused(tiny_dataset: Path, cyclic: Cyclic) -> None:
    words = ("train", tiny_dataset, "--arch", "linear", "--epochs", 1)
    first = cyclic(*words, "--json").json
    assert first["run"] == "runs/linear-1-seed0"
    assert Path("runs/latest").resolve().name == "linear-1-seed0"
    again = cyclic(*words, "--resume", "auto", "--json")
    assert again.code == 0
    assert again.json == {**first, "steps_executed": 0}
    refused = cyclic(*words)
    assert refused.code == 1
    assert "--resume auto" in refused.err
    other = cyclic(*words, "--resume", "auto", "--lr", 0.5, "--out", "runs/linear-1-seed0")
    assert other.code == 1
    assert "lr: " in other.err
    assert cyclic(*words, "--resume", "must", "--out", "runs/new").code == 1


def test_a_run_on_another_dataset_is_refused(tiny_dataset: Path, tiny_files: Path, cyclic: Cyclic) -> None:
    cyclic("prepare", tiny_files, "--out", "other", "--size", 32)
    cyclic("train", tiny_dataset, "--arch", "linear", "--epochs", 1, "--out", "run")
    ran = cyclic("train", "other", "--arch", "linear", "--epochs", 1, "--out", "run", "--resume", "auto")
    assert ran.code == 1
    assert "dataset" in ran.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--arch", "vriational"), 2, "Did you mean 'vae'?"),
        (("--arch", "vea"), 2, "Did you mean 'vae'?"),
        (("--set", "fration=0.3"), 2, "Did you mean 'fraction'?"),
        (("--set", "model.latnet=3"), 2, "Did you mean 'latent'?"),
        (("--set", "objectives.divergence=1"), 2, "log_variance"),
        (("--set", "objectives.reconstrucion=1"), 2, "Did you mean 'reconstruction'?"),
        (("--fraction", "0.0001"), 1, "--fraction"),
        (("--fraction", "2"), 2, "fraction"),
        (("--resume", "sometimes"), 2, "auto"),
        (("--set", "objectives.reconstruction=-1"), 2, "objectives"),
        (("--precision", "16"), 2, "bf16"),
        (("--device", "cuda"), 1, "CUDA"),
        (("--set", "lr=1e30", "--set", "gradient_clip=1e30", "--batch-size", "2", "--epochs", "50"), 1, "not finite"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_settings_are_errors_that_name_the_way_out(
    words: tuple[str, ...], code: int, said: str, tiny_dataset: Path, cyclic: Cyclic
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("CUDA is available")
    ran = cyclic("train", tiny_dataset, "--arch", "conv", *words, "--out", "run")
    assert ran.code == code
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_an_image_size_that_an_architecture_does_not_support_is_refused(cyclic: Cyclic) -> None:
    for number in range(12):
        make_png(Path(f"files/{number}.png"), smooth_image(number))
    cyclic("prepare", "files", "--out", "ds", "--size", 37, "--already-deidentified")
    ran = cyclic("train", "ds", "--arch", "conv")
    assert ran.code == 2
    assert "multiple" in ran.err


def test_without_validation_data_the_last_model_is_the_best(tiny_files: Path, cyclic: Cyclic) -> None:
    cyclic("prepare", tiny_files, "--out", "ds", "--size", 32, "--split", "100/0/0", "--already-deidentified")
    said = cyclic("train", "ds", "--arch", "conv", "--epochs", 2, "--out", "run", "--json").json
    assert said["val"] == {}
    assert read_checkpoint(Path("run/model.safetensors")).provenance["step"] == said["steps"]


def test_without_training_data_the_error_counts_the_splits(tiny_files: Path, cyclic: Cyclic) -> None:
    cyclic("prepare", tiny_files, "--out", "ds", "--size", 32, "--split", "0/0/100", "--already-deidentified")
    ran = cyclic("train", "ds")
    assert ran.code == 1
    assert "test 40" in ran.err


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0
    assert rates[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert 0 < rates[99] < 0.001


# ---------------------------------------------------------------------------- losses and weights that are not finite


def poisoned(monkeypatch: pytest.MonkeyPatch, number: int, size: int) -> None:
    """Replace the image `number` of the split that has `size` images by NaN whenever it is read."""
    read = Samples.images

    def images(samples: Samples, chosen: np.ndarray) -> torch.Tensor:
        found = read(samples, chosen)
        if len(samples) == size:
            found[chosen == number] = float("nan")
        return found

    monkeypatch.setattr(Samples, "images", images)


def test_a_run_whose_only_step_makes_weights_infinite_is_an_error(tiny_dataset: Path, cyclic: Cyclic) -> None:
    ran = cyclic("train", tiny_dataset, "--arch", "linear", "--epochs", 1, "--batch-size", 500, "--lr", 1e36)
    assert ran.code == 1
    assert "not finite at step" in ran.err
    assert not list(Path("runs").rglob("model.safetensors"))


def test_a_batch_whose_loss_is_not_finite_stops_the_run_or_is_skipped(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch, cyclic: Cyclic
) -> None:
    keys = StoredDataset(tiny_dataset).records("train")["key"]
    monkeypatch.setattr(training, "initialise", lambda *_: None)
    poisoned(monkeypatch, 3, len(keys))
    words = ("train", tiny_dataset, "--arch", "linear", "--epochs", 2, "--batch-size", 5, "--out", "run")
    stopped = cyclic(*words)
    assert stopped.code == 1
    assert "The loss is not finite" in stopped.err
    assert f"{keys[3]:016x}" in stopped.err
    skipped = cyclic(*words, "--set", "not_finite=skip", "--resume", "auto", "--json")
    assert skipped.code == 0, skipped.err
    skipped = rows(Path("run"), "skipped")
    assert [f"{keys[3]:016x}" in row["samples"] for row in skipped] == [True, True]  # type: ignore[operator]
    assert all(np.isfinite(value).all() for value in read_checkpoint(Path("run/model.safetensors")).weights.values())


def test_losses_that_stay_infinite_stop_a_run_that_skips(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch, cyclic: Cyclic
) -> None:
    """Then the weights are at fault, not the samples. With another learning rate the run may begin again."""
    monkeypatch.setattr(steps, "SKIPS", 4)
    words = ("train", tiny_dataset, "--arch", "linear", "--epochs", 2, "--batch-size", 2, "--out", "run")
    words += ("--resume", "auto", "--set", "not_finite=skip")
    ran = cyclic(*words, "--lr", 1e30)
    assert ran.code == 1
    assert "The loss of each of the last 4 batches is not finite at step 5." in ran.err
    assert "not_finite=skip" not in ran.err
    assert cyclic(*words, "--lr", 1e-5).code == 0


# ------------------------------------------------------------------------------------------------ resuming


def stopped_at(step: int, dataset: Path, run: Path, config: TrainConfig) -> None:
    def stop(event: object) -> None:
        if isinstance(event, Step) and event.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(CyclicError, match="Stopped by SIGTERM"):
        train(dataset, run, config, report=stop)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "progress.json"])
@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_a_damaged_state_is_reported_and_the_one_before_it_used(
    file: str, damage: str, tiny_dataset: Path, tmp_path: Path
) -> None:
    config = TrainConfig(arch="linear", epochs=2, batch_size=4, checkpoint_steps=2)
    train(tiny_dataset, tmp_path / "whole", config)
    run = tmp_path / "run"
    stopped_at(5, tiny_dataset, run, config)
    newest = sorted((run / "state").iterdir())[-1]
    content = (newest / file).read_bytes()
    middle = len(content) * 2 // 3
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    (newest / file).write_bytes(content[:middle] if damage == "cut" else flipped)
    events: list[object] = []
    rest = train(tiny_dataset, run, config, resume="auto", report=events.append)
    said = [event.text for event in events if isinstance(event, Note) and event.warning]
    assert len(said) == 1
    assert newest.name in said[0]
    assert (newest.name, rest.resumed_from_step) == ("step-00000005", 4)
    assert weights(run) == weights(tmp_path / "whole")
    assert timeless_rows(run) == timeless_rows(tmp_path / "whole")


def test_a_run_whose_states_are_all_damaged_is_an_error(tiny_dataset: Path, tmp_path: Path) -> None:
    config = TrainConfig(arch="linear", epochs=2, batch_size=4, checkpoint_steps=2)
    stopped_at(5, tiny_dataset, tmp_path / "run", config)
    for state in (tmp_path / "run" / "state").iterdir():
        (state / "progress.json").write_text("{}")
    with pytest.raises(CyclicError, match="Every saved state"):
        train(tiny_dataset, tmp_path / "run", config, resume="auto")


def test_a_disk_that_fills_up_while_state_is_written_leaves_the_state_before_it(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    """A limit on file sizes, set after the third step, makes the real writers fail as a full disk would."""
    run, config = tmp_path / "run", TrainConfig(arch="linear", epochs=2, batch_size=4, checkpoint_steps=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(event: object) -> None:
        if isinstance(event, Step) and event.step == 3:
            deadline = time.monotonic() + 60
            while not (run / "state" / "step-00000002").exists():  # a separate thread writes it
                assert time.monotonic() < deadline
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))

    try:
        with pytest.raises(CyclicError, match=r"cannot be written: File too large"):
            train(tiny_dataset, run, config, report=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (run / "state").iterdir()] == ["step-00000002"]
    assert train(tiny_dataset, run, config, resume="auto").resumed_from_step == 2
    train(tiny_dataset, tmp_path / "whole", config)
    assert weights(run) == weights(tmp_path / "whole")
    assert timeless_rows(run) == timeless_rows(tmp_path / "whole")


def test_a_second_signal_ends_a_process_that_waits_inside_a_c_library() -> None:
    """As in a collective operation whose other process hangs. Here locking a mutex twice waits for ever."""
    program = """if True:
        import ctypes
        from cyclic_cli.training.signals import stop_signals
        with stop_signals():
            libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
            libc.pthread_mutex_lock(mutex)
            print("waiting", flush=True)
            libc.pthread_mutex_lock(mutex)
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGUSR1)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143


def test_a_signal_ends_a_validation_and_the_next_attempt_repeats_it(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = tmp_path / "run", TrainConfig(arch="linear", epochs=2, batch_size=4)
    monkeypatch.setattr(validation, "BATCH", 2)
    read, looks = Samples.images, []

    def images(samples: Samples, chosen: np.ndarray) -> torch.Tensor:
        if len(chosen) == 2:
            looks.append(chosen)
            os.kill(os.getpid(), signal.SIGTERM)
        return read(samples, chosen)

    with monkeypatch.context() as patch:
        patch.setattr(Samples, "images", images)
        with pytest.raises(CyclicError, match="Stopped by SIGTERM at step 6 of 12, state saved"):
            train(tiny_dataset, run, config)
    assert len(looks) == 1
    assert train(tiny_dataset, run, config, resume="auto").resumed_from_step == 6
    train(tiny_dataset, tmp_path / "whole", config)
    assert weights(run) == weights(tmp_path / "whole")
    assert timeless_rows(run) == timeless_rows(tmp_path / "whole")


def test_a_model_that_was_lost_after_the_last_epoch_is_written_again(tiny_dataset: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", TrainConfig(arch="linear", epochs=2, batch_size=4)
    train(tiny_dataset, run, config)
    (run / "summary.json").unlink()
    (run / "model.safetensors").unlink()
    train(tiny_dataset, run, config, resume="auto")
    assert read_checkpoint(run / "model.safetensors").provenance["step"] == 12


def test_two_runs_in_one_folder_are_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    config = TrainConfig(arch="linear", epochs=1, batch_size=4)
    refused = []

    def second(event: object) -> None:
        if isinstance(event, Step) and not refused:
            with pytest.raises(CyclicError, match="is being trained by another process"):
                train(tiny_dataset, tmp_path / "run", config, resume="auto")
            refused.append(event.step)

    train(tiny_dataset, tmp_path / "run", config, report=second)
    assert refused == [1]
    assert not (tmp_path / "run" / ".running").exists()


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("fma avx2 avx512_bf16", "32"), ("avx512_bf16 amx_bf16", "bf16"), ("asimd bf16 sve", "bf16"), ("fma", "32")],
)
def test_bfloat16_is_used_where_the_processor_multiplies_matrices_of_it(
    flags: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"processor: 0\nflags: {flags}\n")
    assert distributed.resolve("cpu", "auto") == ("cpu", precision)


def test_a_resumed_run_keeps_the_precision_of_its_first_attempt(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(arch="linear", epochs=1, batch_size=4)
    monkeypatch.setattr(distributed, "_cpu_has_bf16", lambda: False)
    stopped_at(2, tiny_dataset, tmp_path / "run", config)
    monkeypatch.setattr(distributed, "_cpu_has_bf16", lambda: True)
    train(tiny_dataset, tmp_path / "run", config, resume="auto")
    assert read_checkpoint(tmp_path / "run" / "model.safetensors").provenance["settings"]["precision"] == "32"


def test_a_signal_during_initialisation_ends_it_at_once(tiny_dataset: Path, tmp_path: Path, cyclic: Cyclic) -> None:
    def stop(event: object) -> None:
        if isinstance(event, Note) and event.text.startswith("initialising"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(CyclicError, match="before the first step") as caught:
        train(tiny_dataset, tmp_path / "run", TrainConfig(arch="linear", epochs=1), report=stop)
    assert caught.value.exit_code == 143
    assert cyclic("train", tiny_dataset, "--arch", "linear", "--out", tmp_path / "run", "--epochs", 1).code == 0


def test_gradients_are_clipped(tiny_dataset: Path, tmp_path: Path) -> None:
    for name, norm in (("a", 1.0), ("b", 1e-12)):
        train(
            tiny_dataset,
            tmp_path / name,
            TrainConfig(arch="vae", model={"width": 8, "latent": 16}, epochs=1, batch_size=4, gradient_clip=norm),
        )
    assert weights(tmp_path / "a") != weights(tmp_path / "b")


def test_initialisation_uses_a_bounded_number_of_images(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoencoding, "INITIALISATION_IMAGES", 7)
    seen: list[int] = []
    monkeypatch.setattr(linear.Model, "initialise", lambda model, images: seen.extend(map(len, images)))
    train(tiny_dataset, tmp_path / "run", TrainConfig(arch="linear", epochs=1))
    assert sum(seen) == 7
