"""Finished datasets: what their files contain, and that damaged ones are refused."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.makers import Ran
from pyarrow import parquet

from cyclic_cli.errors import CyclicError
from cyclic_cli.privacy.keys import SPLITS
from cyclic_cli.storage.dataset import DATASET_FORMAT, StoredDataset

Cyclic = Callable[..., Ran]


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_dataset` that a test may damage."""
    shutil.copytree(tiny_dataset, tmp_path / "copy")
    return tmp_path / "copy"


def change_header(path: Path, **changes: object) -> None:
    """Change entries of the header of a shard."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["images"] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


@pytest.mark.parametrize(
    "changes",
    [
        {"data_offsets": [0, 10**9]},
        {"shape": [40, 1, 64, 64]},
        {"dtype": "F32"},
        {"data_offsets": [-8, 40952]},
        {"shape": "x"},
    ],
    ids=str,
)
def test_a_shard_with_a_false_header_is_refused(dataset: Path, changes: dict[str, object]) -> None:
    change_header(dataset / "images-00000.safetensors", **changes)
    with pytest.raises(CyclicError, match="missing or damaged"):
        StoredDataset(dataset).images(np.array([0]), np.array([0]))


def test_a_cut_or_missing_shard_is_refused(dataset: Path) -> None:
    shard = dataset / "images-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CyclicError, match="missing or damaged"):
        StoredDataset(dataset).images(np.array([0]), np.array([0]))
    shard.unlink()
    with pytest.raises(CyclicError, match="missing or damaged"):
        StoredDataset(dataset).images(np.array([0]), np.array([0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": DATASET_FORMAT + 1}, f"formats up to {DATASET_FORMAT}"),
        ({"format": "x"}, "damaged"),
        ({"surprise": 1}, "surprise"),
        ({"shards": "x"}, "shards"),
    ],
    ids=str,
)
def test_invalid_metadata_are_refused(dataset: Path, changes: dict[str, object], message: str) -> None:
    path = dataset / "dataset.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    with pytest.raises(CyclicError, match=message):
        StoredDataset(dataset)


def test_metadata_of_the_first_format_are_read(dataset: Path) -> None:
    """Version 0.1.0 wrote them like this. Such a dataset can be trained on, but not updated."""
    path = dataset / "dataset.yaml"
    now = yaml.safe_load(path.read_text())
    path.write_text(
        yaml.safe_dump(
            {
                "format": 1, "tool": "cyclic 0.1.0", "preprocessing": {"size": 32, "bits": 8, "window": "auto"},
                "channels": 1, "split": now["split"], "labels": [], "counts": now["counts"], "shards": now["shards"],
                "request": "0123456789abcdef", "fingerprint": now["fingerprint"],
            }
        )
    )  # fmt: skip
    wanted = {split: np.array(StoredDataset(dataset).records(split)) for split in SPLITS}
    for name in ("inputs.parquet", "reports.parquet", "duplicates.jsonl", "records.npy"):
        (dataset / name).unlink()
    stored = StoredDataset(dataset)
    assert stored.facts.request == {"fingerprint": "0123456789abcdef"}
    assert stored.facts.preprocessing.frames == "middle"
    assert not stored.can_be_updated
    for split, records in wanted.items():
        np.testing.assert_array_equal(stored.records(split), records)


@pytest.mark.parametrize("shares", ["80/10/10", "50/0/50"])
def test_records_agree_with_the_index(tiny_files: Path, tmp_path: Path, cyclic: Cyclic, shares: str) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("patient,text\nsomebody else,No finding.\n")
    words = ("--reports", texts, "--already-deidentified", "--size", 32, "--split", shares)
    cyclic("prepare", tiny_files, *words, "--out", tmp_path / "dataset")
    stored = StoredDataset(tmp_path / "dataset")
    rows = stored.index().to_pylist()
    assert sum(not row["has_image"] for row in rows) == 1
    for split in SPLITS:
        for fraction in (1e-9, 0.3, 0.7, 1.0):
            records = stored.records(split, fraction)
            wanted = [row for row in rows if row["split"] == split and row["has_image"] and row["position"] < fraction]
            for name in ("position", "shard", "row", "height", "width"):
                assert records[name].tolist() == [row[name] for row in wanted]
            assert [f"{key:016x}" for key in records["key"].tolist()] == [row["sample"][:16] for row in wanted]
            patients = list(dict.fromkeys(row["patient"] for row in wanted))
            assert records["patient"].tolist() == [patients.index(row["patient"]) for row in wanted]


@pytest.mark.parametrize("damage", ["short", "other", "pickle"])
def test_damaged_records_are_refused(dataset: Path, damage: str) -> None:
    path = dataset / "records.npy"
    content = path.read_bytes()
    path.unlink()
    if damage == "short":
        path.write_bytes(content[:-10])
    elif damage == "other":
        np.save(path, np.load(io.BytesIO(content))[:-1])
    elif damage == "pickle":
        np.save(path, np.array([{}] * 40), allow_pickle=True)
    with pytest.raises(CyclicError, match="is damaged"):
        StoredDataset(dataset).records("train")


def test_missing_records_are_rebuilt_from_the_index(dataset: Path) -> None:
    wanted = np.array(StoredDataset(dataset).records("train"))
    (dataset / "records.npy").unlink()
    np.testing.assert_array_equal(StoredDataset(dataset).records("train"), wanted)


def test_an_index_with_an_invalid_key_is_refused(dataset: Path) -> None:
    (dataset / "records.npy").unlink()
    table = StoredDataset(dataset).index()
    at = table.schema.get_field_index("sample")
    parquet.write_table(table.set_column(at, "sample", [["not a key"] * len(table)]), dataset / "index.parquet")
    with pytest.raises(CyclicError, match=r"index\.parquet is damaged"):
        StoredDataset(dataset).records("train")


def test_a_record_past_the_end_of_its_shard_is_refused(dataset: Path) -> None:
    records = np.load(dataset / "records.npy")
    records["row"][0] = 4_000_000_000
    np.save(dataset / "records.npy", records)
    stored = StoredDataset(dataset)
    first = stored.records("train")[:1]
    with pytest.raises(CyclicError, match="too short"):
        stored.images(first["shard"], first["row"])


def test_more_shards_than_files_may_be_open(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each memory map keeps its file open. When too many are open, the oldest are closed."""
    stored = StoredDataset(dataset)
    content = (dataset / "images-00000.safetensors").read_bytes()
    for shard in range(1, 6):
        (dataset / f"images-{shard:05d}.safetensors").write_bytes(content)
    monkeypatch.setattr(stored, "_most_maps", 3)
    wanted = stored.images(np.zeros(12, int), np.zeros(12, int))
    np.testing.assert_array_equal(stored.images(np.arange(12) % 6, np.zeros(12, int)), wanted)
    assert len(stored._maps) == 3


def test_a_damaged_index_is_refused(dataset: Path) -> None:
    path = dataset / "index.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CyclicError, match="damaged"):
        StoredDataset(dataset).index()
