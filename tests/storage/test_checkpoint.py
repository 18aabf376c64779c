"""Checkpoints: read as written, and refused when damaged, too new, or made by another program."""

import json
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.makers import tiny_checkpoint

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.checkpoint import CHECKPOINT_FORMAT, read_checkpoint, write_checkpoint
from cyclic_cli.storage.files import write_tensors


def change_format(path: Path, version: int) -> None:
    """Write another format number into a checkpoint."""
    content, present = path.read_bytes(), rb"\"format\": %d" % CHECKPOINT_FORMAT
    assert present in content
    path.write_bytes(content.replace(present, rb"\"format\": %d" % version))


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.safetensors", tiny_checkpoint())
    back = read_checkpoint(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(back.weights["w"], np.ones((2, 3)))
    assert (back.preprocessing, back.provenance) == (Preprocessing(size=32), {"step": 7})
    write_checkpoint(tmp_path / "other.safetensors", tiny_checkpoint(2.0))
    assert read_checkpoint(tmp_path / "other.safetensors").fingerprint != back.fingerprint != ""


@pytest.mark.parametrize("header", [{}, {"format": "pt"}, {"cyclic": "{"}, {"cyclic": '{"format": 1}'}])
def test_a_safetensors_file_without_our_metadata_is_refused(tmp_path: Path, header: dict[str, str]) -> None:
    write_tensors(tmp_path / "m.safetensors", {"w": np.ones(3, np.float32)}, header)
    with pytest.raises(CyclicError, match="not a checkpoint"):
        read_checkpoint(tmp_path / "m.safetensors")


def test_a_newer_checkpoint_asks_for_an_update(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.safetensors", tiny_checkpoint())
    change_format(tmp_path / "m.safetensors", 9)
    with pytest.raises(CyclicError) as caught:
        read_checkpoint(tmp_path / "m.safetensors")
    assert "Update cyclic" in caught.value.hint


def test_checkpoints_of_version_0_1_0_are_read_if_their_network_has_not_changed(tmp_path: Path) -> None:
    for name in ("linear", "conv"):
        path = tmp_path / f"{name}.safetensors"
        first = tiny_checkpoint()
        write_checkpoint(path, replace(first, architecture={**first.architecture, "name": name}))
        change_format(path, 1)
        path.write_bytes(path.read_bytes().replace(b"checksum", b"unheard_"))  # that version had none
    assert read_checkpoint(tmp_path / "linear.safetensors").architecture["name"] == "linear"
    with pytest.raises(CyclicError, match=r"of version 0\.1\.0") as caught:
        read_checkpoint(tmp_path / "conv.safetensors")
    assert "Train it again" in caught.value.hint


def test_a_cut_checkpoint_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.safetensors", tiny_checkpoint())
    content = (tmp_path / "m.safetensors").read_bytes()
    for length in (0, 4, 50, len(content) - 1):
        (tmp_path / "m.safetensors").write_bytes(content[:length])
        with pytest.raises(CyclicError, match="not a complete safetensors file"):
            read_checkpoint(tmp_path / "m.safetensors")


def with_entry(entry: dict[str, object], tail: int = 12) -> bytes:
    """A safetensors file with any header entry for its one tensor, followed by `tail` zero bytes."""
    header = json.dumps({"__metadata__": {"cyclic": "{}"}, "w": entry}).encode()
    return len(header).to_bytes(8, "little") + header + b"\0" * tail


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 2**40]},
        {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]},
        {"dtype": "F32", "shape": [3], "data_offsets": [12, 0]},
        {"dtype": "F32", "shape": [3], "data_offsets": [-12, 0]},
        {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 12]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},  # bytes that belong to no tensor
        {"dtype": "F9000", "shape": [3], "data_offsets": [0, 12]},
        {"dtype": "BF16", "shape": [6], "data_offsets": [0, 12]},  # a type that numpy lacks
        {"shape": [3], "data_offsets": [0, 12]},
    ],
    ids=["beyond", "shifted", "reversed", "negative", "huge", "spare", "unknown", "bfloat16", "without"],
)
def test_a_file_with_a_false_header_is_refused(entry: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(with_entry(entry))
    with pytest.raises(CyclicError, match=r"not a checkpoint|not a complete"):
        read_checkpoint(path)


def test_a_header_of_a_gibibyte_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write((2**30).to_bytes(8, "little"))
        file.truncate(2**30 + 8 + 12)  # a sparse file, which takes no space on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CyclicError, match="not a complete"):
        read_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
    path.write_bytes((2**30).to_bytes(8, "little") + b"{}")
    with pytest.raises(CyclicError, match="not a complete"):
        read_checkpoint(path)
