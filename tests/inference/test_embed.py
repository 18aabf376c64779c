"""`cyclic embed`: pixels as `prepare` reads them, vectors of the model, one file whatever the processes and stops."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.makers import Ran, make_dicom, make_png, smooth_image
from safetensors.numpy import load_file

from cyclic_cli.config import TrainConfig
from cyclic_cli.inference import embed, embed_inputs, embed_parts
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.storage import embeddings_writing
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training.task import train

Cyclic = Callable[..., Ran]


@pytest.fixture(scope="module")
def model(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "linear"
    train(tiny_dataset, folder, TrainConfig(arch="linear", model={"latent": 16}, epochs=1))
    return folder


def vectors(path: Path) -> dict[tuple[str, str], np.ndarray]:
    """The vectors of a Parquet file, by key and kind."""
    rows = pq.read_table(path).to_pylist()
    return {(row["key"], row["kind"]): np.array(row["vector"], np.float32) for row in rows}


def test_vectors_of_a_dataset_are_those_of_the_model(joint_run: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    ran = cyclic("embed", paired_dataset, "--model", joint_run, "--out", "e.parquet", "--with-text", "--json")
    assert ran.code == 0, ran.err
    stored, module = StoredDataset(paired_dataset), TorchModel(joint_run / "model.safetensors")
    index = stored.index().to_pylist()
    found = pq.read_table("e.parquet")
    facts = json.loads(found.schema.metadata[b"cyclic"])
    assert (facts["model"], facts["dataset"]) == (module.fingerprint, stored.facts.fingerprint)
    assert found.schema.field("vector").type.list_size == facts["dimensions"] == 16
    rows = found.to_pylist()
    with_image = [row for row in index if row["has_image"]]
    assert len(rows) == ran.json["vectors"] == len(with_image) + sum(row["has_text"] for row in index)
    pixels = stored.images(*(np.array([row[name] for row in with_image]) for name in ("shard", "row")))
    wanted = dict(zip((row["sample"] for row in with_image), module.embed_images(pixels), strict=True))
    for row in rows:
        assert np.linalg.norm(row["vector"]) == pytest.approx(1, abs=1e-5)
        if row["kind"] == "image":
            np.testing.assert_allclose(row["vector"], wanted[row["key"]], atol=1e-5)
    known = {row["sample"]: row for row in index}
    for row in rows:
        for name in ("patient", "study", "split", "text", *stored.facts.labels):
            assert (row[name] or "") == (known[row["key"]][name] or "")
    texts = [row for row in rows if row["kind"] == "text"]
    embedded = module.embed_texts([row["text"] for row in texts])
    np.testing.assert_allclose(np.array([row["vector"] for row in texts]), embedded, atol=1e-5)


def test_files_have_the_pixels_and_keys_of_prepare(
    model: Path, tiny_files: Path, tiny_dataset: Path, cyclic: Cyclic
) -> None:
    assert cyclic("embed", tiny_dataset, "--model", model, "--out", "a.parquet", "-q").code == 0
    ran = cyclic("embed", tiny_files, "--model", model, "--out", "b.parquet", "--already-deidentified", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["inputs"], ran.json["used"], ran.json["images"]) == (40, 40, 40)
    prepared, unprepared = vectors(Path("a.parquet")), vectors(Path("b.parquet"))
    assert prepared.keys() == unprepared.keys()
    for key, vector in prepared.items():
        np.testing.assert_allclose(unprepared[key], vector, atol=1e-5)
    assert cyclic("embed", tiny_files, "--model", model, "--out", "c.parquet", "-q").code == 0
    assert not vectors(Path("c.parquet")).keys() & unprepared.keys()  # keys made with the secret of this user


def test_results_come_while_the_list_is_still_being_written(model: Path, tiny_files: Path) -> None:
    files = sorted(tiny_files.rglob("*.png"))
    command = [sys.executable, "-m", "cyclic_cli", "embed", "-", "--model", str(model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"".join(os.fsencode(file) + b"\n" for file in files[: embed_inputs.CHUNK_SIZE]))
        process.stdin.flush()
        assert select.select([process.stdout], [], [], 60)[0], "nothing came"
        first = json.loads(process.stdout.readline())
        assert first["source"] == str(files[0])
        assert set(first) >= {"source", "key", "kind", "vector"}
        process.stdin.close()
        rest = process.stdout.read().splitlines()
        assert len(rest) == embed_inputs.CHUNK_SIZE - 1
    assert process.returncode == 0


def test_a_slow_list_is_embedded_without_waiting_for_whole_chunks(model: Path, tiny_files: Path) -> None:
    command = [sys.executable, "-m", "cyclic_cli", "embed", "-", "--model", str(model), "--no-paths"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        for number, file in enumerate(sorted(tiny_files.rglob("*.png"))[:3], 1):
            process.stdin.write(os.fsencode(file) + b"\n")
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 60)[0], "nothing came"
            assert json.loads(process.stdout.readline())["source"] == str(number)
        process.stdin.close()
    assert process.returncode == 0


def test_a_closed_pipe_is_not_an_error(model: Path, tiny_files: Path) -> None:
    command = f"find {tiny_files} -name '*.png' | {sys.executable} -m cyclic_cli embed - --model {model} | head -n 3"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 3
    assert "Traceback" not in done.stderr


def test_a_summary_does_not_replace_another_kind_of_file(model: Path, tiny_files: Path, cyclic: Cyclic) -> None:
    words = ("embed", tiny_files, "--model", model, "-q", "--out", "e.jsonl")
    assert cyclic(*words, "--summary", "s.json").code == 0
    assert cyclic(*words, "--overwrite", "--summary", "s.json").code == 0
    ran = cyclic(*words, "--overwrite", "--summary", "e.jsonl")
    assert (ran.code, "is not a summary" in ran.err) == (1, True)
    assert len(Path("e.jsonl").read_text().splitlines()) == 40


def test_a_folder_without_read_permission_does_not_stop_the_others(
    model: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_png(Path("good.png"), smooth_image(1))
    Path("closed").mkdir()
    is_file = Path.is_file

    def refused(self: Path) -> bool:
        if self.parent.name == "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", refused)  # root, who may run the tests, can read everything
    ran = cyclic("embed", "closed", "good.png", "--model", model)
    assert ran.code == 0, ran.err
    assert [line["source"] for line in ran.lines] == ["good.png"]


def test_images_with_burned_in_text_are_used_on_request(model: Path, cyclic: Cyclic) -> None:
    make_dicom(Path("scan.dcm"), smooth_image(2), bits=8, BurnedInAnnotation="YES")
    ran = cyclic("embed", "scan.dcm", "--model", model)
    assert (ran.code, "--allow-burned-in" in ran.err) == (1, True)
    assert len(cyclic("embed", "scan.dcm", "--model", model, "--allow-burned-in").lines) == 1


def test_samples_of_a_modality_without_encoder_are_not_used(model: Path, tmp_path: Path, cyclic: Cyclic) -> None:
    Path("in").mkdir()
    Path("in/reports.csv").write_text("patient,text\np1,Lungs clear.\np2,Left effusion.\n")
    assert cyclic("prepare", "in", "--out", "texts", "--size", 32, "--already-deidentified", "-q").code == 0
    ran = cyclic("embed", "texts", "--model", model, "--out", "e.parquet", "--json")
    assert (ran.code, "None of 2 inputs" in ran.err) == (1, True)
    assert not Path("e.parquet").exists()


def test_bad_files_are_named_and_left_out(model: Path, cyclic: Cyclic) -> None:
    make_png(Path("in/good.png"), smooth_image(1))
    make_dicom(Path("in/scan.dcm"), smooth_image(2), bits=8)
    make_png(Path("in/cut.png"), smooth_image(3))
    Path("in/cut.png").write_bytes(Path("in/cut.png").read_bytes()[:300])
    Path("in/notes.doc").write_text("nothing to see")
    words = ("embed", "in", "in/gone.png", "--model", model)
    ran = cyclic(*words, "--summary", "s.json")
    assert ran.code == 0
    assert [line["source"] for line in ran.lines] == ["in/good.png", "in/scan.dcm"]
    for name in ("in/cut.png", "in/notes.doc", "in/gone.png"):
        assert f"{name}: " in ran.err
    summary = json.loads(Path("s.json").read_text())
    assert (summary["inputs"], summary["used"], summary["rejected"]) == (5, 2, 3)
    assert summary["rejected_by_reason"] == {"broken_pixels": 1, "missing": 1, "unknown_format": 1}
    assert cyclic(*words, "--strict", "-q").code == 8
    assert cyclic(*words, "--out", "e.parquet", "-q").code == 0
    left_out = [json.loads(line) for line in Path("e.parquet.rejected.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in left_out} == set(summary["rejected_by_reason"])
    ran = cyclic("embed", "in/notes.doc", "--model", model)
    assert (ran.code, "None of 1 inputs" in ran.err) == (1, True)
    numbered = cyclic(*words, "--no-paths")
    assert [line["source"] for line in numbered.lines] == ["2", "4"]
    assert "notes" not in numbered.err


def test_all_file_formats_hold_the_same_rows(model: Path, tiny_dataset: Path, cyclic: Cyclic) -> None:
    for form in ("parquet", "safetensors", "npy", "jsonl"):
        assert cyclic("embed", tiny_dataset, "--model", model, "--out", f"e.{form}", "-q").code == 0
    table = pq.read_table("e.parquet").to_pylist()
    wanted = np.array([row["vector"] for row in table], np.float32)
    tensors = load_file("e.safetensors")
    np.testing.assert_array_equal(np.load("e.npy", allow_pickle=False), wanted)
    np.testing.assert_array_equal(tensors["vector"], wanted)
    lines = [json.loads(line) for line in Path("e.jsonl").read_text().splitlines()]
    keys = [row["key"] for row in table]
    assert [line["key"] for line in lines] == keys
    assert [bytes(row).decode() for row in tensors["key"]] == keys
    assert [line.split(",")[0] for line in Path("e.csv").read_text().splitlines()[1:]] == keys
    ran = cyclic("embed", tiny_dataset, "--model", model, "--out", "e.npy")
    assert (ran.code, "--overwrite" in ran.err) == (1, True)
    Path("notes.csv").write_text("mine")
    ran = cyclic("embed", tiny_dataset, "--model", model, "--out", "notes.npy")
    assert (ran.code, "notes.csv exists" in ran.err, Path("notes.csv").read_text()) == (1, True, "mine")
    ran = cyclic("embed", tiny_dataset, "--model", model, "--out", "e.xlsx")
    assert (ran.code, ".parquet" in ran.err) == (2, True)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_inputs, "CHUNK_SIZE", 4)
    monkeypatch.setattr(embed_parts, "CHUNKS_PER_PART", 2)


def test_a_stopped_command_is_continued(
    small_parts: None, model: Path, tiny_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("embed", tiny_dataset, "--model", model, "-q", "--batch-size", 4)
    assert cyclic(*words, "--out", "whole.parquet").code == 0
    embed, calls = TorchModel.embed_images, []

    def counted(self: TorchModel, fitted: np.ndarray) -> np.ndarray:
        calls.append(len(fitted))
        if len(calls) == 8:
            raise KeyboardInterrupt
        return embed(self, fitted)

    monkeypatch.setattr(TorchModel, "embed_images", counted)
    assert cyclic(*words, "--out", "stopped.parquet").code == 130
    assert not Path("stopped.parquet").exists()
    assert cyclic(*words, "--out", "stopped.parquet").code == 0
    assert len(calls) == 8 + 10 - 6  # three parts of two chunks were complete
    assert Path("stopped.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert not list(Path().glob(".*unfinished"))


def test_a_batch_that_does_not_fit_into_memory_is_halved(
    model: Path, tiny_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("embed", tiny_dataset, "--model", model, "-q")
    assert cyclic(*words, "--out", "whole.parquet").code == 0
    embed, sizes = TorchModel.embed_images, []

    class OutOfMemoryError(RuntimeError):
        """Has the name of the error that torch raises."""

    def small(self: TorchModel, fitted: np.ndarray) -> np.ndarray:
        sizes.append(len(fitted))
        if len(fitted) > 5:
            raise OutOfMemoryError
        return embed(self, fitted)

    monkeypatch.setattr(TorchModel, "embed_images", small)
    assert cyclic(*words, "--out", "small.parquet").code == 0
    assert sizes[:3] == [16, 8, 4]
    assert max(sizes[2:]) == 4
    small_ones, whole = vectors(Path("small.parquet")), vectors(Path("whole.parquet"))
    assert small_ones.keys() == whole.keys()
    for key, vector in whole.items():
        np.testing.assert_allclose(small_ones[key], vector, atol=1e-5)
    with pytest.raises(OutOfMemoryError):
        cyclic(*words, "--out", "named.parquet", "--batch-size", 8)


def stopped(patch: pytest.MonkeyPatch, cyclic: Cyclic, *words: str | Path) -> None:
    """Run a command that is interrupted after it wrote all its parts."""
    with patch.context() as context:
        context.setattr(embed, "merge_parts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert cyclic(*words).code == 130


@pytest.mark.parametrize(
    ("more", "setting"),
    [
        (["--already-deidentified"], "secret"),
        (["--no-paths"], "paths"),
        (["--allow-burned-in"], "burned_in"),
    ],
)
def test_parts_of_another_request_are_refused(
    more: list[str], setting: str, small_parts: None, model: Path, tiny_files: Path, cyclic: Cyclic,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = ("embed", tiny_files, "--model", model, "--out", "e.parquet", "-q")
    stopped(monkeypatch, cyclic, *words)
    ran = cyclic(*words, *more)
    assert (ran.code, f"is unfinished, and was begun with another {setting}" in ran.err) == (1, True)


def test_with_text_is_part_of_the_request(
    small_parts: None, model: Path, tiny_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("embed", tiny_dataset, "--model", model, "--out", "e.parquet", "-q")
    stopped(monkeypatch, cyclic, *words)
    ran = cyclic(*words, "--with-text")
    assert (ran.code, "is unfinished, and was begun with another text" in ran.err) == (1, True)


def test_parts_of_changed_files_are_written_again(
    small_parts: None, model: Path, tiny_files: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        make_png(Path(f"in/{number:02d}.png"), smooth_image(number))
    words = ("embed", "in", "--model", model, "-q")
    stopped(monkeypatch, cyclic, *words, "--out", "e.parquet")
    make_png(Path("in/03.png"), smooth_image(90))
    os.utime("in/03.png", (1, 1))
    assert cyclic(*words, "--out", "e.parquet").code == 0
    assert cyclic(*words, "--out", "whole.parquet").code == 0
    assert Path("e.parquet").read_bytes() == Path("whole.parquet").read_bytes()


def test_parts_of_another_model_are_never_reused(
    small_parts: None,
    model: Path,
    joint_run: Path,
    paired_dataset: Path,
    cyclic: Cyclic,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("embed", paired_dataset, "--model", joint_run, "-q", "--out", "e.parquet")
    stopped(monkeypatch, cyclic, *words)
    Path(".e.parquet.unfinished/request.json").unlink()  # a process that started late would leave the folder like this
    assert cyclic("embed", paired_dataset, "--model", model, "-q", "--out", "e.parquet").code == 0
    assert cyclic("embed", paired_dataset, "--model", model, "-q", "--out", "whole.parquet").code == 0
    assert Path("e.parquet").read_bytes() == Path("whole.parquet").read_bytes()


def test_a_kill_while_the_file_is_written_loses_nothing(
    small_parts: None, model: Path, tiny_files: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("embed", tiny_files, "no-such.png", "--model", model, "-q", "--out", "e.npy")
    with monkeypatch.context() as context:
        context.setattr(embeddings_writing, "_append_vectors", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert cyclic(*words).code == 130
    assert Path("e.csv").exists()  # the table beside it is written first
    assert Path("e.npy.rejected.jsonl").exists()
    Path(".e.npy.1.abcd.tmp").write_bytes(b"half")  # what SIGKILL leaves behind
    assert cyclic(*words).code == 0
    assert np.load("e.npy").shape == (40, 16)
    assert {path.name for path in Path().iterdir()} == {"e.npy", "e.csv", "e.npy.rejected.jsonl"}


def test_several_processes_write_the_same_file_as_one(
    small_parts: None, model: Path, tiny_files: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("embed", tiny_files, "--model", model, "-q", "--already-deidentified")
    assert cyclic(*words, "--out", "one.parquet").code == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert cyclic(*words, "--out", "two.parquet").code == 0
        assert Path("two.parquet").exists() == (rank == "0")
    assert Path("two.parquet").read_bytes() == Path("one.parquet").read_bytes()
    monkeypatch.setattr(embed_parts, "PATIENCE", 0.2)
    ran = cyclic(*words, "--out", "three.parquet")
    assert (ran.code, "Process 2 does not finish" in ran.err) == (1, True)
    assert cyclic("embed", tiny_files, "--model", model).code == 2
    assert "stdin" in cyclic("embed", "-", "--model", model, "--out", "four.parquet").err


def test_texts_from_options_and_files(joint_run: Path, model: Path, cyclic: Cyclic) -> None:
    Path("texts.txt").write_text("Left disc.\n\nNo disc is seen.\n")
    ran = cyclic("embed", "--text", "Left disc.", "--texts", "texts.txt", "--model", joint_run)
    assert ran.code == 0, ran.err
    assert [line["source"] for line in ran.lines] == ["text 1", "texts.txt:1", "texts.txt:3"]
    wanted = TorchModel(joint_run / "model.safetensors").embed_texts(["Left disc.", "No disc is seen."])
    found = np.array([line["vector"] for line in ran.lines])
    np.testing.assert_allclose(found, wanted[[0, 0, 1]], atol=1e-6)
    assert ran.lines[0]["key"] == ran.lines[1]["key"] != ran.lines[2]["key"]
    ran = cyclic("embed", "--text", "Left disc.", "--model", model)
    assert (ran.code, "has no text encoder" in ran.err) == (1, True)
    assert cyclic("embed", "--model", joint_run).code == 2


def test_texts_of_which_no_word_is_known_are_counted(
    small_parts: None, joint_run: Path, paired_dataset: Path, cyclic: Cyclic
) -> None:
    Path("texts.txt").write_text("Left disc.\n" * 40 + "xyzzy\nNo plugh.\n12\n")
    ran = cyclic("embed", "--texts", "texts.txt", "--model", joint_run, "--out", "e.parquet", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["texts"], ran.json["unread_texts"]) == (43, 2)
    assert "no word of 2 of 43 texts" in ran.err
    assert "xyzzy" not in ran.err  # lines of a file may be reports
    ran = cyclic("embed", "--texts", "texts.txt", "--model", joint_run)
    assert (len(ran.lines), "no word of 2 of 43 texts" in ran.err) == (43, True)
    ran = cyclic("embed", "--text", "Left disc.", "--text", "xyzzy", "--model", joint_run)
    assert (ran.code, "no word of text 2: xyzzy" in ran.err, ran.out) == (2, True, "")
    ran = cyclic("embed", "--text", "Left xyzzy.", "--model", joint_run)
    assert (ran.code, "these words of text 1: xyzzy\n" in ran.err) == (0, True)
    ran = cyclic("embed", paired_dataset, "--model", joint_run, "--out", "d.parquet", "--json")
    assert (ran.json["unread_texts"], "no word" in ran.err) == (0, False)


def test_a_dataset_of_another_image_size_is_refused(
    model: Path, paired_dataset: Path, tiny_files: Path, cyclic: Cyclic
) -> None:
    assert cyclic("prepare", tiny_files, "--size", 48, "--out", "other", "--already-deidentified", "-q").code == 0
    ran = cyclic("embed", "other", "--model", model)
    assert (ran.code, "--size 32" in ran.err) == (2, True)
    ran = cyclic("embed", "other", "x.png", "--model", model)
    assert (ran.code, "cannot be combined with other sources" in ran.err) == (2, True)
