"""Files are written atomically, with the permissions that the umask asks for."""

from pathlib import Path

import numpy as np
import pytest

from cyclic_cli.storage.files import replacing, write_tensors


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as draft:
            draft.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.glob("*x*")) == [path]


def test_outputs_respect_the_umask(tmp_path: Path) -> None:
    write_tensors(tmp_path / "m.safetensors", {"w": np.ones(3, np.float32)}, {})
    (tmp_path / "plain").touch()
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
