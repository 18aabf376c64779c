"""The examples run as they are documented. Slow: on request."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cyclic_cli.phantom import write_demo

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", *words], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )


@pytest.mark.slow
def test_the_quickstart_leaves_three_pictures(tmp_path: Path) -> None:
    ran = run(EXAMPLES / "quickstart.sh", tmp_path / "quickstart")
    assert len(list((tmp_path / "quickstart" / "pictures").glob("*.png"))) == 3
    assert str(tmp_path / "quickstart" / "pictures") in ran.stdout


@pytest.mark.slow
def test_the_origins_table_is_printed_and_drawn_and_not_made_twice(tmp_path: Path) -> None:
    write_demo(tmp_path / "phantoms", 120)
    command = (EXAMPLES / "origin.sh", tmp_path / "phantoms", "", tmp_path / "origin")
    first = run(*command)
    drawn = (tmp_path / "origin" / "sheet.png").stat()
    figures = json.loads((tmp_path / "origin" / "figures.json").read_text())["models"]
    assert list(figures) == ["linear-3", "linear-40", "conv-15"]
    assert figures["conv-15"]["mse"] < figures["linear-40"]["mse"] < figures["linear-3"]["mse"]
    assert all(f"{of['mse']:.5f}" in first.stdout for of in figures.values())
    again = run(*command)
    assert again.stdout == first.stdout
    assert (tmp_path / "origin" / "sheet.png").stat().st_mtime_ns == drawn.st_mtime_ns
