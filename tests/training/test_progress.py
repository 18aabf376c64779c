"""The output of a running training, and the provenance that a checkpoint records."""

import fcntl
import getpass
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.makers import Ran
from helpers.run_files import rows

from cyclic_cli import console
from cyclic_cli.config import TrainConfig
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Epoch, Step
from cyclic_cli.storage.checkpoint import read_checkpoint
from cyclic_cli.training import autoencoding, run_log
from cyclic_cli.training.task import train

Cyclic = Callable[..., Ran]
VAE = ("--arch", "vae", "--set", "model.width=8", "--set", "model.latent=16")


def on_a_terminal(command: list[str]) -> str:
    """The output of a command on a terminal of 100 columns, without colours and cursor movements."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=os.environ | {"TERM": "xterm"}):
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if not part:
                break
            said += part
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())


@pytest.mark.slow
def test_a_terminal_shows_losses_rate_pace_and_the_last_validation(tiny_dataset: Path, tmp_path: Path) -> None:
    words = [*VAE, "--epochs", "3", "--batch-size", "2", "--out", str(tmp_path / "run")]
    said = on_a_terminal([sys.executable, "-m", "cyclic_cli", "train", str(tiny_dataset), *words])
    assert re.search(r"training +\S+ +\d+/\d+ +epoch [123], \d+ images/s, 0:\d\d left", said), said
    assert re.search(r"loss +0\.\d+ \(reconstruction 0\.\d+, divergence [\d.e-]+\)", said), said
    assert re.search(r"learning rate +\d\.\de-\d\d", said), said
    assert re.search(r"validation +mse 0\.\d+  psnr [\d.]+, epoch [12]", said), said
    assert said.count("epoch 2/3  val mse") == 1


def test_without_a_terminal_progress_is_plain_lines(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch, cyclic: Cyclic
) -> None:
    monkeypatch.setattr(console, "PLAIN_EVERY", 0.0)
    ran = cyclic("train", tiny_dataset, *VAE, "--epochs", 1, "--batch-size", 8)
    assert re.search(
        r"^step 2 of \d+, epoch 1/1, loss 0\.\d+ \(reconstruction 0\.\d+, divergence [\d.e-]+\), lr \d\.\de-\d\d, "
        r"\d+ images/s, \d+:\d\d left$",
        ran.err,
        re.MULTILINE,
    ), ran.err
    assert "\x1b" not in ran.err


def test_epoch_0_is_shown_as_the_closed_form(capsys: pytest.CaptureFixture[str]) -> None:
    with console.reporting(quiet=False) as report:
        report(Epoch(0, 0, {"rank": 1.5}, True))
        report(Epoch(0, 3, {"rank": 1.5}, True))
        report(Epoch(1, 3, {"rank": 1.25}, False))
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert lines == ["closed form  val rank 1.5", "closed form  val rank 1.5  best", "epoch 1/3  val rank 1.25"]


def test_tensorboard_holds_the_metrics_also_of_a_resumed_run(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr(run_log, "LOG_EVERY", 1)
    run = tmp_path / "run"
    config = TrainConfig(arch="linear", epochs=3, batch_size=4, checkpoint_steps=2, tensorboard=True)

    def fail(event: object) -> None:
        if isinstance(event, Step) and event.step == 5:
            raise CyclicError("the power goes off", "")

    with pytest.raises(CyclicError, match="power"):
        train(tiny_dataset, run, config, report=fail)
    train(tiny_dataset, run, config, resume="auto")
    events = reader.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    steps, epochs = rows(run, "step"), rows(run, "epoch")
    assert [row["step"] for row in steps] == list(range(1, steps[-1]["step"] + 1))
    for curve, wanted in {
        "train/total": {row["step"]: row["losses"]["total"] for row in steps},
        "learning rate": {row["step"]: row["lr"] for row in steps},
        "validation/mse": {row["step"]: row["val"]["mse"] for row in epochs},
    }.items():
        points = events.Scalars(curve)
        assert [point.step for point in points] == list(wanted), curve
        assert [point.value for point in points] == pytest.approx(list(wanted.values()), rel=1e-6), curve
    (name,) = events.Tags()["images"]
    assert [picture.step for picture in events.Images(name)] == [row["step"] for row in epochs]
    assert (events.Images(name)[0].width, events.Images(name)[0].height) == (8 * 32, 2 * 32)


def test_tensorboard_without_its_extra_is_an_error_that_names_the_extra(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch, cyclic: Cyclic
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    ran = cyclic("train", tiny_dataset, "--arch", "linear", "--epochs", 1, "--tensorboard")
    assert ran.code == 1
    assert "cyclic-cli[tensorboard]" in ran.err


RECIPES = {
    "linear": ("--arch", "linear", "--fraction", 0.6, "--lr", 1e-5, "--seed", 3),
    "vae": (*VAE, "--set", "augment=0.5", "--batch-size", 5),
    "conv": ("--arch", "conv", "--set", "objectives={reconstruction: 1, similarity: 2.0e-5}", "--set", "fuse=false"),
}


@pytest.mark.parametrize(
    "recipe", ["linear", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vae", "conv"))]
)
def test_info_prints_the_command_that_reproduces_a_model_bit_for_bit(
    recipe: str, tiny_dataset: Path, cyclic: Cyclic
) -> None:
    assert cyclic("train", tiny_dataset, *RECIPES[recipe], "--epochs", 2, "--out", "run").code == 0
    command = json.loads(cyclic("info", "run", "--json").out)["checkpoint"]["reproduce"]
    assert json.loads(cyclic("info", "run/model.safetensors", "--json").out)["reproduce"] == command
    assert command in " ".join(cyclic("info", "run").out.split())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    again = f"{command.replace('DATASET', str(tiny_dataset))} --out again --quiet --json"
    subprocess.run(["bash", "-c", again], check=True, env=os.environ | {"PATH": path}, capture_output=True)
    first, second = (read_checkpoint(Path(run) / "model.safetensors") for run in ("run", "again"))
    assert first.provenance == second.provenance
    assert first.fingerprint == second.fingerprint
    for name, weight in first.weights.items():
        np.testing.assert_array_equal(weight, second.weights[name])


def test_the_provenance_in_a_checkpoint_names_no_path_user_or_host(tiny_dataset: Path, cyclic: Cyclic) -> None:
    cyclic("train", tiny_dataset, "--arch", "linear", "--epochs", 1, "--out", "run")
    content = Path("run/model.safetensors").read_bytes()
    said = content[8 : 8 + int.from_bytes(content[:8], "little")].decode()
    assert '\\"seed\\"' in said
    for word in (str(tiny_dataset), str(Path.cwd()), os.uname().nodename, str(Path.home()), getpass.getuser()):
        assert not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", said), word


def test_after_a_signal_before_the_first_step_the_run_can_begin_again(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoencoding, "INITIALISATION_BATCH", 4)

    def stop(event: object) -> None:
        if "images for initialisation" in str(event):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(CyclicError, match="before the first step"):
        train(tiny_dataset, tmp_path / "run", TrainConfig(arch="linear", epochs=1), report=stop)
    assert train(tiny_dataset, tmp_path / "run", TrainConfig(arch="linear", epochs=1), resume="auto").steps > 0
