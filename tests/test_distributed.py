"""Training in several processes gives the weights of one process, and only one of them logs and writes files."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.launchers import SLURM
from helpers.makers import Ran
from helpers.run_files import gradient_difference, rows

from cyclic_cli import distributed
from cyclic_cli.config import TrainConfig
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import UsageError
from cyclic_cli.storage.checkpoint import read_checkpoint

Cyclic = Callable[..., Ran]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node")
EXCHANGE = Path(__file__).parent / "helpers" / "exchanging.py"


def command(*words: object, processes: int | None = None) -> list[str]:
    """The words that start `cyclic` in one process, or in several with torchrun."""
    launcher = (sys.executable,) if processes is None else (*TORCHRUN, str(processes))
    return [*launcher, "-m", "cyclic_cli", *map(str, words)]


def ran(words: list[str], **environment: str) -> Ran:
    result = subprocess.run(words, capture_output=True, text=True, env=os.environ | environment, timeout=240)
    return Ran(result.returncode, result.stdout, result.stderr)


def difference(run: Path, other: Path) -> float:
    """The norm of the difference between the weights of two runs, relative to the norm of the weights."""
    one, two = (read_checkpoint(folder / "model.safetensors").weights for folder in (run, other))
    assert one.keys() == two.keys()
    squares = sum(np.square(one[name] - two[name], dtype=np.float64).sum() for name in one)
    return float(np.sqrt(squares / sum(np.square(value, dtype=np.float64).sum() for value in one.values())))


def train_words(dataset: Path, *words: object) -> list[object]:
    return ["train", dataset, "--precision", 32, "--device", "cpu", "--json", *words]


# Of gradients: rounding gives 1e-6 to 1e-3, the latter where errors are near zero. Parts of 4 and 3 images that count
# alike, instead of 4 to 3, give about 1e-1.
SAME_GRADIENT = 3e-2
ALL = "objectives={reconstruction: 1, absolute: 0.2, similarity: 0.1}"
CASES = {
    # 24 training images in batches of 7: the last batch has 3, so that the two parts are uneven
    "ddp": (["--arch", "conv", "--batch-size", 7, "--epochs", 5, "--lr", 1e-5, "--set", ALL], ["--devices", 2], None),
    # with the divergence objective; batches of 2 on three processes, one of which has no sample
    "torchrun": (
        ["--arch", "vae", "--set", "model={width: 8, latent: 16}", "--set", "augment=1", "--batch-size", 2,
         "--epochs", 2],
        [], 3,
    ),
    "operations": (
        ["--arch", "conv", "--batch-size", 7, "--epochs", 5, "--lr", 1e-5, "--set", ALL, "--set", "micro_batch=2"],
        ["--devices", 3, "--set", "parallel=operations"], None,
    ),
    "fsdp": (
        ["--arch", "deep", "--batch-size", 5, "--epochs", 4, "--lr", 1e-5],
        ["--devices", 2, "--strategy", "fsdp"], None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.slow) if name in ("operations", "fsdp") else name for name in CASES]
)
def test_several_processes_train_the_same_weights_as_one(
    case: str, tiny_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    settings, shared, processes = CASES[case]
    words = train_words(tiny_dataset, *settings)
    one = cyclic(*words, "--out", tmp_path / "one")
    several = ran(command(*words, *shared, "--out", tmp_path / "several", processes=processes))
    assert (one.code, several.code) == (0, 0), several.err
    assert one.json["steps"] >= 20
    assert several.json["steps"] == one.json["steps"]
    assert several.json["val"]["psnr"] == pytest.approx(one.json["val"]["psnr"], rel=1e-5)
    assert gradient_difference(tmp_path / "one", tmp_path / "several") < SAME_GRADIENT
    assert [row["epoch"] for row in rows(tmp_path / "several", "epoch")] == list(range(1, one.json["epochs"] + 1))
    assert several.err.count("initialising ") == several.err.count(f"epoch 1/{one.json['epochs']}  val") == 1
    assert "warning" not in several.err.lower()


def test_a_stopped_run_continues_with_another_number_of_processes(
    tiny_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    words = train_words(tiny_dataset, "--arch", "linear", "--batch-size", 3, "--epochs", 100, "--resume", "auto")
    words += ["--set", "checkpoint_steps=10", "--lr", 1e-5]
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(*words, "--devices", 2, "--out", run), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    wait_for(lambda: list(run.glob("state/step-*")), process)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, log = process.communicate(timeout=60)
    assert process.returncode == 143
    assert time.monotonic() - began < 20
    assert log.count("Stopped by SIGTERM") == 1
    rest = cyclic(*words, "--out", run)
    assert rest.code == 0, rest.err
    assert "processes 2 → 1" in rest.err
    assert [row["processes"] for row in rows(run, "hardware")] == [2, 1]
    whole = cyclic(*words, "--out", tmp_path / "whole")
    for folder, same in ((run, False), (tmp_path / "whole", True)):
        last = max((folder / "state").iterdir()) / "model.safetensors"
        assert cyclic("info", last, "--json").json["reproduces_bit_for_bit"] is same
    assert rest.json["steps_executed"] + rest.json["resumed_from_step"] == whole.json["steps"]
    assert rest.json["val"]["psnr"] == pytest.approx(whole.json["val"]["psnr"], rel=1e-4)
    assert difference(run, tmp_path / "whole") < 1e-4


def test_when_a_process_dies_the_others_end_with_an_error(tiny_dataset: Path, tmp_path: Path) -> None:
    words = train_words(tiny_dataset, "--arch", "conv", "--batch-size", 3, "--epochs", 4000)
    run = tmp_path / "run"
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    # The variables of torchrun, which itself would end both processes.
    environment |= {"TORCHELASTIC_RUN_ID": "test", "LOCAL_WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            command(*words, "--out", run), env=environment | {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": "0"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    wait_for(lambda: (run / "model.safetensors").exists(), ranks[0])
    ranks[1].kill()
    _, log = ranks[0].communicate(timeout=60)
    assert ranks[1].wait() == -signal.SIGKILL
    assert ranks[0].returncode == 1
    assert "Another process of the run has ended." in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_an_error_of_all_processes_is_printed_once(tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("arch: conv\n")
    refused = ran(command(*train_words(tiny_dataset, "--out", tmp_path / "run"), "--devices", 2))
    assert refused.code == 1
    assert refused.err.count("exists.") == 1
    assert "Traceback" not in refused.err


def test_exchanges_between_three_processes() -> None:
    """Runs `helpers/exchanging.py`, which tests gathering, gradients, sums and common decisions."""
    done = ran([*TORCHRUN, "3", str(EXCHANGE)])
    assert done.code == 0, done.err
    assert sorted(done.out.split()) == ["rank0", "rank1", "rank2"]


def test_parts_of_a_batch_are_consecutive_and_contain_every_sample_once() -> None:
    for samples in (1, 2, 5, 6, 7):
        ranks = [Ranks(None, rank, 3) for rank in range(3)]
        parts = [one.part(np.arange(samples)) for one in ranks]
        assert np.concatenate(parts).tolist() == list(range(samples))
        assert max(map(len, parts)) == ranks[0].largest_part(samples)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_several_processes_do_not_draw_synthetic_radiographs(monkeypatch: pytest.MonkeyPatch, cyclic: Cyclic) -> None:
    for name, value in {"PROCID": "0", "STEP_NUM_TASKS": "2", "STEP_NUM_NODES": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    ran = cyclic("train", "--arch", "linear")
    assert ran.code == 1
    assert "several processes do not draw the synthetic radiographs" in ran.err


def test_a_launcher_and_devices_that_disagree_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SLURM, "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="--devices 3, but the launcher started 2"):
        distributed.launch("cpu", "32", devices=3)


@pytest.mark.parametrize("settings", [{"devices": 0}, {"strategy": "dp"}, {"not_finite": "go"}], ids=str)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        TrainConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "setting", ["parallel=samples", pytest.param("memory_format=channels_last", marks=pytest.mark.slow)]
)
def test_sharded_models_refuse_parallel_samples_and_channels_last(
    setting: str, tiny_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    words = train_words(tiny_dataset, "--strategy", "fsdp", "--set", setting, "--out", tmp_path / "run")
    assert cyclic(*words).code == 2


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the process has ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_with_one_process_exchanges_return_their_input() -> None:
    alone = Ranks(None, 0, 1)
    rows = torch.rand(3, 2)
    assert alone.summed(rows) is rows
    assert alone.gathered(rows, 3) is rows
    assert alone.agreed(lambda: 5) == 5
