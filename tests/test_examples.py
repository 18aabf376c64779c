"""The examples run as they are documented. Slow: on request."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_the_quickstart_leaves_three_pictures(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", EXAMPLES / "quickstart.sh", tmp_path / "quickstart"]
    ran = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True)
    assert len(list((tmp_path / "quickstart" / "pictures").glob("*.png"))) == 3
    assert str(tmp_path / "quickstart" / "pictures") in ran.stdout
