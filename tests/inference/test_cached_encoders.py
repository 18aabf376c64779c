"""`embed` and `evaluate` of a dataset run frozen encoders only for what training did not encode."""

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.counting_encoder import files
from helpers.makers import Ran
from helpers.tiny_encoders import tiny_image_folder, tiny_text_folder

from cyclic_cli.codes import cache_lock, cache_size, segments
from cyclic_cli.codes.coded import CodedEncoder
from cyclic_cli.errors import CyclicError
from cyclic_cli.inference import embed_inputs, embed_parts
from cyclic_cli.pretrained.encoder import PretrainedEncoder
from cyclic_cli.storage.dataset import StoredDataset

Cyclic = Callable[..., Ran]
Vectors = dict[tuple[str, str], np.ndarray]
CHANGE = 5e-3
"""The largest difference of vectors with features from the cache: float16 changes features by 5e-4 at most (11 bits).
Centering and principal components make this larger where a component is smaller than the mean of the features."""


@pytest.fixture(scope="module")
def trained(paired_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with a tiny image encoder and a tiny text encoder, and the cache that its training filled."""
    from typer.testing import CliRunner

    from cyclic_cli.cli import app

    folder = tmp_path_factory.mktemp("trained")
    words: list[object] = [
        "train", paired_dataset, "--objective", "aligned", "--out", folder / "run", "-q",
        "--image-encoder", tiny_image_folder("vit", folder / "vit"),
        "--text-encoder", tiny_text_folder("bert", folder / "bert"),
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(word) for word in words], env={"CYCLIC_CACHE": str(folder / "cache")})
    assert result.exit_code == 0, result.stderr
    return folder / "run", folder / "cache"


@pytest.fixture
def run(trained: tuple[Path, Path]) -> Path:
    return trained[0]


@pytest.fixture
def filled(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    """The cache holds what training encoded. Returns its folder of features."""
    shutil.copytree(trained[1], tmp_path / "cache")
    return cache_size.default_folder()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of images and texts that pretrained encoders were asked for."""
    found: list[int] = []
    usual = PretrainedEncoder.__call__

    def counted(self: PretrainedEncoder, content: object) -> object:
        found.append(len(content))  # type: ignore[arg-type]
        return usual(self, content)

    monkeypatch.setattr(PretrainedEncoder, "__call__", counted)
    return found


def vectors(path: str) -> Vectors:
    return {(row["key"], row["kind"]): np.array(row["vector"], np.float32) for row in pq.read_table(path).to_pylist()}


def assert_close(found: Vectors, wanted: Vectors, atol: float) -> None:
    assert found.keys() == wanted.keys()
    for key, vector in wanted.items():
        np.testing.assert_allclose(found[key], vector, atol=atol)


def embedded(cyclic: Cyclic, dataset: Path, run: Path, out: str, *more: object) -> Ran:
    ran = cyclic("embed", dataset, "--model", run, "--out", out, "--json", *more)
    assert ran.code == 0, ran.err
    return ran


def without_cache(cyclic: Cyclic, dataset: Path, run: Path, patch: pytest.MonkeyPatch) -> Vectors:
    """Vectors of the model on its own."""
    with patch.context() as context:
        context.setattr("cyclic_cli.inference.torch_model.TorchModel._frozen_encoders", lambda self: {})
        embedded(cyclic, dataset, run, "alone.parquet")
    return vectors("alone.parquet")


def test_what_training_encoded_is_not_encoded_again(
    run: Path, filled: Path, paired_dataset: Path, encoded: list[int], cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training encodes its own part and the validation part. `evaluate` measures reconstructions and labels too."""
    before = files(filled)
    ran = cyclic("evaluate", paired_dataset, "--model", run, "--json")
    assert ran.code == 0, ran.err
    assert encoded == []
    embedded(cyclic, paired_dataset, run, "e.parquet")
    assert encoded == []
    assert files(filled) == before
    wanted = without_cache(cyclic, paired_dataset, run, monkeypatch)
    assert sum(encoded) == len(wanted)
    assert_close(vectors("e.parquet"), wanted, CHANGE)
    lines = cyclic("embed", paired_dataset, "--model", run).lines
    assert sum(encoded) == len(wanted)
    assert_close({(one["key"], one["kind"]): np.array(one["vector"]) for one in lines}, vectors("e.parquet"), 1e-5)


def test_the_first_use_gives_the_results_of_later_ones(
    run: Path, paired_dataset: Path, encoded: list[int], cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Images are encoded once, and equal reports too. Features are rounded before they are used, as the cache does."""
    embedded(cyclic, paired_dataset, run, "cold.parquet")
    rows = StoredDataset(paired_dataset).index().to_pylist()
    texts = {row["text"] for row in rows if row["has_text"]}
    assert sum(encoded) == len({row["content"] for row in rows}) + len(texts)
    kept = files(cache_size.default_folder())
    assert len(kept) == len(cache_size.encoder_folders(cache_size.default_folder()))  # a segment each
    encoded.clear()
    embedded(cyclic, paired_dataset, run, "warm.parquet")
    assert encoded == []
    assert Path("warm.parquet").read_bytes() == Path("cold.parquet").read_bytes()
    first = cyclic("evaluate", paired_dataset, "--model", run, "--json").json
    assert encoded == []
    monkeypatch.setenv("CYCLIC_CACHE", str(tmp_path / "another"))
    assert cyclic("evaluate", paired_dataset, "--model", run, "--json").json["retrieval"] == first["retrieval"]
    assert encoded


def test_figures_are_those_without_the_cache(
    run: Path, filled: Path, paired_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cyclic("evaluate", paired_dataset, "--model", run, "--json").json["reconstruction"]
    monkeypatch.setattr("cyclic_cli.inference.torch_model.TorchModel._frozen_encoders", lambda self: {})
    wanted = cyclic("evaluate", paired_dataset, "--model", run, "--json").json["reconstruction"]
    assert found["mse"] == pytest.approx(wanted["mse"], rel=CHANGE)
    assert found["relative_error"] == pytest.approx(wanted["relative_error"], rel=CHANGE)


def test_files_and_typed_texts_do_not_touch_the_cache(
    run: Path, paired_dataset: Path, encoded: list[int], cyclic: Cyclic
) -> None:
    scan = paired_dataset.parent / "files" / "001.png"
    embedded(cyclic, scan, run, "e.parquet", "--already-deidentified")
    assert cyclic("embed", "--text", "left disc", "--model", run).code == 0
    assert len(encoded) == 2
    assert not cache_size.default_folder().exists()


def test_processes_of_a_launcher_encode_their_own_parts(
    run: Path, paired_dataset: Path, encoded: list[int], cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_inputs, "CHUNK_SIZE", 8)
    monkeypatch.setattr(embed_parts, "CHUNKS_PER_PART", 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    images = StoredDataset(paired_dataset).facts.images
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert cyclic("embed", paired_dataset, "--model", run, "--out", "two.parquet", "-q").code == 0
        assert (sum(encoded) > images) == (rank == "0")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name)
    embedded(cyclic, paired_dataset, run, "one.parquet")
    assert Path("one.parquet").read_bytes() == Path("two.parquet").read_bytes()


@pytest.mark.parametrize("why", ["cannot be made", "cannot be looked at", "full", "fails later"])
def test_a_cache_that_cannot_be_used_costs_one_warning(
    why: str, run: Path, paired_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = without_cache(cyclic, paired_dataset, run, monkeypatch)
    if why == "cannot be made":
        (tmp_path / "file").touch()
        monkeypatch.setenv("CYCLIC_CACHE", str(tmp_path / "file" / "cache"))
    elif why == "cannot be looked at":
        monkeypatch.setenv("CYCLIC_CACHE", str(tmp_path / "closed" / "cache"))
        for name in ("stat", "mkdir"):
            monkeypatch.setattr(Path, name, closed(getattr(Path, name), tmp_path / "closed"))
    elif why == "full":
        monkeypatch.setenv("CYCLIC_CACHE_LIMIT", "1K")
    else:
        monkeypatch.setattr(segments, "write_features", failing)
    for items in (32, 512):  # it is seen while features are computed, or at the end
        monkeypatch.setattr("cyclic_cli.codes.cache.ITEMS", items)
        embed = embedded(cyclic, paired_dataset, run, "e.parquet", "--overwrite")
        assert_close(vectors("e.parquet"), wanted, CHANGE)
        evaluate = cyclic("evaluate", paired_dataset, "--model", run, "--json")
        assert evaluate.code == 0, evaluate.err
        for ran in (embed, evaluate):
            assert ran.err.count("Features are computed and not kept.") == 1
            assert "CYCLIC_CACHE" in ran.err


def closed(usual: Callable[..., object], folder: Path) -> Callable[..., object]:
    """A function of a path that another user's folder does not allow; tests may run as root, whom nothing stops."""

    def function(path: Path, *more: object, **others: object) -> object:
        if path.is_relative_to(folder):
            raise PermissionError(errno.EACCES, "Permission denied")
        return usual(path, *more, **others)

    return function


def failing(*_: object) -> Path:
    raise CyclicError("The disk is full.", cache_lock.ANOTHER)


def test_a_limit_that_is_no_size_is_wrong_usage(
    run: Path, paired_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CYCLIC_CACHE_LIMIT", "plenty")
    assert cyclic("evaluate", paired_dataset, "--model", run).code == 2


def test_damaged_and_foreign_files_of_the_cache_are_not_believed(
    run: Path, filled: Path, paired_dataset: Path, encoded: list[int], cyclic: Cyclic
) -> None:
    embedded(cyclic, paired_dataset, run, "before.parquet")
    assert encoded == []
    one, two, *_ = sorted(files(filled), key=lambda path: path.stat().st_size)
    content = bytearray(two.read_bytes())
    content[len(content) // 2] ^= 1
    two.write_bytes(content)
    one.rename(two.parent / one.name)  # of another encoder
    for folder in filled.iterdir():
        (folder / "notes.txt").write_text("mine")
        (folder / "about.json").write_text("[damaged")
    embedded(cyclic, paired_dataset, run, "after.parquet")
    assert_close(vectors("after.parquet"), vectors("before.parquet"), CHANGE)
    assert cyclic("evaluate", paired_dataset, "--model", run, "--json").code == 0
    assert all((folder / "notes.txt").exists() for folder in filled.iterdir())
    assert cyclic("info", "--cache").code == 0


def test_encoders_that_training_moved_do_not_use_the_cache(
    run: Path, filled: Path, paired_dataset: Path, cyclic: Cyclic
) -> None:
    """Their weights are no longer those of the fingerprint."""
    from cyclic_cli.inference.torch_model import TorchModel

    model = TorchModel(run / "model.safetensors")
    assert set(model._frozen_encoders()) == {"image", "text"}
    model.checkpoint.architecture["config"]["modalities"]["image"]["frozen"] = False
    with model.using_cache() as reader:
        assert ("image" in reader, "text" in reader) == (False, True)
    assert isinstance(model.module.encoders["image"], CodedEncoder)


def test_info_says_what_the_cache_holds(run: Path, filled: Path, cyclic: Cyclic) -> None:
    said = cyclic("info", "--cache", "--json").json["by_encoder"]
    named = {one["encoder"]: one for one in said.values()}
    assert set(named) == {"vit (transformers)", "bert (transformers)", "gradients", "levels"}
    assert (named["bert (transformers)"]["modality"], named["bert (transformers)"]["device"]) == ("text", "cpu")
    shown = cyclic("info", "--cache").out
    (key,) = (key for key, one in said.items() if one["encoder"] == "vit (transformers)")
    assert f"vit (transformers) {key[:8]}" in shown
    assert key not in shown
    about = filled / key / "about.json"
    assert about.stat().st_mode & 0o777 == 0o600
    assert set(json.loads(about.read_text())) == {"encoder", "modality", "device", "torch"}
    about.unlink()
    assert f"  {key[:8]}" in cyclic("info", "--cache").out
    assert cyclic("info", "--cache", "--remove").code == 0
    assert not filled.exists()
