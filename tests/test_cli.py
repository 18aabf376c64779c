"""Tests of the command line: wrong usage, output streams, signals, and defaults without any input."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.makers import Ran, make_dicom, smooth_image

from cyclic_cli import registry

Cyclic = Callable[..., Ran]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trian",), "Did you mean 'train'?"),
        (("train", "--fractoin", "0.4"), "--fraction"),
        (("train", "--epochs", "many"), "--epochs"),
        (("prepare", "x", "--split", "80/20"), "80/10/10"),
        (("prepare", "x", "--patient-pattern", "("), "regular expression"),
        (("reconstruct", "x", "--format", "jpg"), "png, npy"),
        (("reconstruct", "x", "--device", "gpu"), "cuda"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_exits_with_2_and_a_suggestion(words: tuple[str, ...], message: str, cyclic: Cyclic) -> None:
    ran = cyclic(*words)
    assert ran.code == 2
    assert message in ran.err
    assert ran.out == ""


def test_help_documents_the_exit_codes(cyclic: Cyclic) -> None:
    out = " ".join(cyclic("--help").out.split())
    for code in ("0 success", "1 failure", "2 wrong", "8 with --strict", "130 after Ctrl-C", "143 after SIGTERM"):
        assert code in out


def test_quiet_leaves_stderr_empty(tiny_files: Path, cyclic: Cyclic) -> None:
    ran = cyclic(
        "prepare", tiny_files, "--out", "ds", "--already-deidentified", "--patient-pattern", r"p\d+", "-q", "--json"
    )
    assert ran.err == ""
    assert ran.json["used"] == 40


def test_messages_go_to_stderr_and_the_table_to_stdout(tiny_files: Path, cyclic: Cyclic) -> None:
    ran = cyclic("prepare", tiny_files, "--out", "ds", "--already-deidentified")
    assert "images: 40 of 40" in ran.err
    assert "Next: cyclic train ds" in ran.err
    assert "patients" in ran.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    variables = {"_CYCLIC_COMPLETE": f"complete_{shell}", "COMP_WORDS": "cyclic train --arch ", "COMP_CWORD": "3",
                 "_TYPER_COMPLETE_ARGS": "cyclic train --arch ", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-m", "cyclic_cli"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    for name in registry.names("models"):
        assert name in ran.stdout


def test_a_signal_ends_prepare_with_its_exit_code() -> None:
    image = make_dicom(Path("images/0.dcm"), smooth_image(0, 2000, 2000).astype(np.uint16), bits=8)
    for number in range(1, 400):  # many seconds of work: one image under many names
        os.link(image, f"images/{number}.dcm")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        out = f"ds{code}"
        process = subprocess.Popen(
            [sys.executable, "-m", "cyclic_cli", "prepare", "images", "--out", out, "--workers", "2"],
            stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs inherit SIG_IGN
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not Path(out, ".unfinished", "request.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(number)
        err = process.communicate(timeout=60)[1]
        assert process.returncode == code
        assert "Traceback" not in err


def test_closed_output_streams_cause_no_error() -> None:
    """A shell closes them with `>&-` and `2>&-`."""
    make_dicom(Path("a.dcm"), smooth_image(0), bits=8)
    for closed, code in (("1", 0), ("2", 0)):
        command = f'"{sys.executable}" -m cyclic_cli prepare a.dcm --out ds{closed} --already-deidentified {closed}>&-'
        ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == code, ran.stderr
        assert "Traceback" not in ran.stderr
        assert Path(f"ds{closed}/dataset.yaml").exists()


def test_train_and_reconstruct_work_without_a_dataset_or_a_model(
    cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train` draws the demo dataset once, into the cache. `reconstruct` takes the model of the package."""
    from cyclic_cli.phantom import dataset as phantom

    write_demo = phantom.write_demo
    monkeypatch.setattr(phantom, "write_demo", lambda folder, **options: write_demo(folder, 40, **options))
    first = cyclic("train", "--arch", "conv", "--fraction", "0.4", "--epochs", 1, "--json")
    assert first.code == 0
    assert "drawing the synthetic radiographs" in first.err
    again = cyclic("train", "--arch", "linear", "--fraction", "0.4", "--epochs", 1)
    assert "drawing" not in again.err
    assert "demo dataset" in again.err
    make_dicom(Path("scan.dcm"), smooth_image(1), bits=8)
    monkeypatch.chdir(Path("..").resolve())
    ran = cyclic("reconstruct", "work/scan.dcm")
    assert ran.code == 0
    assert "the packaged model" in ran.err
    assert Path("reconstructions/scan.png").is_file()
