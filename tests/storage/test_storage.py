"""Files on disk: whole or absent, checked before they are believed."""

import io
import json
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.makers import Ran
from pyarrow import parquet

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import CyclicError
from cyclic_cli.privacy.keys import SPLITS
from cyclic_cli.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.files import replacing, write_tensors
from cyclic_cli.storage.run import RunFolder

Cyclic = Callable[..., Ran]


def checkpoint(value: float = 1.0) -> Checkpoint:
    return Checkpoint(
        weights={"w": np.full((2, 3), value, np.float32)},
        architecture={"name": "conv", "config": {}, "image_shape": [1, 32, 32]},
        preprocessing=Preprocessing(size=32),
        provenance={"step": 7},
    )


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    shutil.copytree(tiny_dataset, tmp_path / "copy")
    return tmp_path / "copy"


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


def test_a_checkpoint_is_what_was_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.safetensors", checkpoint())
    back = read_checkpoint(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(back.weights["w"], np.ones((2, 3)))
    assert (back.preprocessing, back.provenance) == (Preprocessing(size=32), {"step": 7})
    write_checkpoint(tmp_path / "other.safetensors", checkpoint(2.0))
    assert read_checkpoint(tmp_path / "other.safetensors").fingerprint != back.fingerprint != ""


def test_outputs_respect_the_umask(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.safetensors", checkpoint())
    (tmp_path / "plain").touch()
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("header", [{}, {"format": "pt"}, {"cyclic": "{"}, {"cyclic": '{"format": 1}'}])
def test_a_safetensors_file_of_others_is_no_checkpoint(tmp_path: Path, header: dict[str, str]) -> None:
    write_tensors(tmp_path / "m.safetensors", {"w": np.ones(3, np.float32)}, header)
    with pytest.raises(CyclicError, match="no checkpoint"):
        read_checkpoint(tmp_path / "m.safetensors")


def test_a_newer_checkpoint_asks_for_an_update(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.safetensors", checkpoint())
    content = (tmp_path / "m.safetensors").read_bytes()
    assert rb"\"format\": 3" in content
    (tmp_path / "m.safetensors").write_bytes(content.replace(rb"\"format\": 3", rb"\"format\": 9"))
    with pytest.raises(CyclicError) as caught:
        read_checkpoint(tmp_path / "m.safetensors")
    assert "Update cyclic" in caught.value.hint


def test_a_checkpoint_of_the_first_version_is_read_where_its_network_is_still_the_same(tmp_path: Path) -> None:
    for name in ("linear", "conv"):
        path = tmp_path / f"{name}.safetensors"
        first = checkpoint()
        write_checkpoint(path, replace(first, architecture={**first.architecture, "name": name}))
        content = path.read_bytes().replace(rb"\"format\": 3", rb"\"format\": 1")
        path.write_bytes(content.replace(b"checksum", b"unheard_"))  # there was none
    assert read_checkpoint(tmp_path / "linear.safetensors").architecture["name"] == "linear"
    with pytest.raises(CyclicError, match=r"of version 0\.1\.0") as caught:
        read_checkpoint(tmp_path / "conv.safetensors")
    assert "Train it again" in caught.value.hint


def test_a_cut_checkpoint_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.safetensors", checkpoint())
    content = (tmp_path / "m.safetensors").read_bytes()
    for length in (0, 4, 50, len(content) - 1):
        (tmp_path / "m.safetensors").write_bytes(content[:length])
        with pytest.raises(CyclicError, match="not a whole safetensors file"):
            read_checkpoint(tmp_path / "m.safetensors")


def lie(path: Path, **changes: object) -> None:
    """Rewrite a shard's header."""
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
def test_a_lying_shard_is_refused_before_it_is_mapped(dataset: Path, changes: dict[str, object]) -> None:
    lie(dataset / "images-00000.safetensors", **changes)
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
    ("changes", "said"),
    [
        ({"format": 4}, "knows up to 3"),
        ({"format": "x"}, "damaged"),
        ({"surprise": 1}, "surprise"),
        ({"shards": "x"}, "shards"),
    ],
    ids=str,
)
def test_facts_that_cannot_be_are_refused(dataset: Path, changes: dict[str, object], said: str) -> None:
    path = dataset / "dataset.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    with pytest.raises(CyclicError, match=said):
        StoredDataset(dataset)


def test_facts_of_the_first_format_are_read(dataset: Path) -> None:
    """As version 0.1.0 wrote them; such a dataset trains, and is not updated."""
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
def test_records_say_what_the_index_says(tiny_files: Path, tmp_path: Path, cyclic: Cyclic, shares: str) -> None:
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


def test_the_index_serves_in_the_place_of_lost_records(dataset: Path) -> None:
    wanted = np.array(StoredDataset(dataset).records("train"))
    (dataset / "records.npy").unlink()
    np.testing.assert_array_equal(StoredDataset(dataset).records("train"), wanted)


def test_an_index_with_a_key_that_is_none_is_refused(dataset: Path) -> None:
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
    """Each map holds its file open: the oldest make room."""
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


def test_states_appear_whole_and_the_last_two_are_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for step in (10, 20, 20, 30):
        run.save_state(step, checkpoint(step), {"0.exp_avg": np.ones(2, np.float32)}, {"step": step})
    assert [state.name for state in run.states()] == ["step-00000020", "step-00000030"]
    (run.folder / "state" / ".step-00000040.1.tmp").mkdir()  # what a kill leaves
    restored, optimizer, progress = run.load_state(run.states()[-1])
    assert progress == {"step": 30}
    assert restored.weights["w"][0, 0] == 30
    assert set(optimizer) == {"0.exp_avg"}


def test_latest_names_the_newest_run_and_spares_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        RunFolder(tmp_path / "runs" / name).point_latest()
        assert (tmp_path / "runs" / "latest").resolve().name == name
    (tmp_path / "elsewhere" / "c").mkdir(parents=True)
    RunFolder(tmp_path / "elsewhere" / "c").point_latest()
    assert not (tmp_path / "elsewhere" / "latest").exists()


def lying(entry: dict[str, object], tail: int = 12) -> bytes:
    """A safetensors file whose header says of its one tensor what it likes, with `tail` bytes behind it."""
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
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},  # bytes that belong to nothing
        {"dtype": "F9000", "shape": [3], "data_offsets": [0, 12]},
        {"dtype": "BF16", "shape": [6], "data_offsets": [0, 12]},  # which numpy lacks
        {"shape": [3], "data_offsets": [0, 12]},
    ],
    ids=["beyond", "shifted", "reversed", "negative", "huge", "spare", "unknown", "bfloat16", "without"],
)
def test_a_file_whose_header_lies_is_refused(entry: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(lying(entry))
    with pytest.raises(CyclicError, match=r"no checkpoint|not a whole"):
        read_checkpoint(path)


def test_a_header_of_a_gibibyte_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write((2**30).to_bytes(8, "little"))
        file.truncate(2**30 + 8 + 12)  # a hole: it takes no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CyclicError, match="not a whole"):
        read_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
    path.write_bytes((2**30).to_bytes(8, "little") + b"{}")
    with pytest.raises(CyclicError, match="not a whole"):
        read_checkpoint(path)


@pytest.mark.parametrize("kind", [np.float64, np.int32, np.float16])
def test_weights_of_another_kind_of_number_do_not_fit(kind: type, tmp_path: Path) -> None:
    from cyclic_cli.inference.torch_model import TorchModel
    from cyclic_cli.models.linear import Config, Model

    weights = {name: value.numpy() for name, value in Model(Config(latent=4), (1, 32, 32)).state_dict().items()}
    architecture = {"name": "linear", "config": {"latent": 4}, "image_shape": [1, 32, 32]}

    def written(weights: dict[str, np.ndarray]) -> Path:
        parts = Checkpoint(
            weights=weights, architecture=architecture, preprocessing=Preprocessing(size=32), provenance={}
        )
        write_checkpoint(tmp_path / "m.safetensors", parts)
        return tmp_path / "m.safetensors"

    assert TorchModel(written(weights)).module is not None
    for changed in ({name: value.astype(kind) for name, value in weights.items()}, dict(list(weights.items())[1:])):
        with pytest.raises(CyclicError, match="does not fit the architecture"):
            TorchModel(written(changed))
