"""Image–text models that start at the closed form: what they reach, what they keep, and what they refuse."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.makers import Ran
from helpers.onnx_graphs import network, saved
from helpers.run_files import gradient_difference, rows, weights
from helpers.several_processes import run_in_processes
from helpers.stopping import stopped_after
from helpers.tiny_encoders import tiny_image_folder, tiny_text_folder
from safetensors.torch import load_file, save_file

from cyclic_cli.alignment.choice import MANY_PAIRS
from cyclic_cli.codes import sources
from cyclic_cli.config import PrepareConfig, Preprocessing, read_run_file
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.prepare.task import prepare
from cyclic_cli.pretrained.encoder import PretrainedEncoder
from cyclic_cli.storage.checkpoint import read_checkpoint
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.files import read_tensors
from cyclic_cli.training import fixed_codes, resuming

Cyclic = Callable[..., Ran]
WALKS = ("--set", "objectives={contrastive: 1, walk: 0.1}")
NORMALISED = ("--set", "modalities.image.mean=0.5", "--set", "modalities.image.std=0.5")


@pytest.fixture(scope="module")
def no_val(paired_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of `paired_dataset` without a validation part."""
    files = paired_dataset.parent / "files"
    out = tmp_path_factory.mktemp("no_val") / "dataset"
    config = PrepareConfig(preprocessing=Preprocessing(size=32), already_deidentified=True, split=(1.0, 0, 0))
    prepare([files], out, config, [files / "reports.csv"])
    return out


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The options that name a tiny image encoder and a tiny text encoder."""
    folder = tmp_path_factory.mktemp("encoders")
    image, text = tiny_image_folder("vit", folder / "vit"), tiny_text_folder("bert", folder / "bert")
    return ["--image-encoder", image, "--text-encoder", text]


def words(dataset: Path, out: str, *more: object, objective: str = "aligned") -> list[object]:
    return ["train", dataset, "--objective", objective, "--out", out, "--json", *more]


def pairs(dataset: Path, name: str = "val") -> tuple[np.ndarray, list[str]]:
    """The images (N, C, H, W) and texts of the pairs of a split."""
    stored = StoredDataset(dataset)
    index = stored.rows(["has_image", "has_text", "shard", "row", "text"], name)
    both = index["has_image"] & index["has_text"]
    return stored.images(index["shard"][both], index["row"][both]), index["text"][both].tolist()


def mean_log_rank(run: str, dataset: Path) -> float:
    """Of the nearest report with the same text, for each image of the validation part; counted by hand."""
    model, (images, texts) = TorchModel(Path(run) / "model.safetensors"), pairs(dataset)
    similarity = model.embed_images(images) @ model.embed_texts(texts).T
    same = np.array(texts)[:, None] == np.array(texts)[None, :]
    best = np.where(same, similarity, -np.inf).max(1, keepdims=True)
    return float(np.log1p((np.where(same, -np.inf, similarity) > best).sum(1)).mean())


def test_the_closed_form_finds_reports_and_draws_images(paired_dataset: Path, cyclic: Cyclic) -> None:
    ran = cyclic(*words(paired_dataset, "run"))
    assert ran.code == 0, ran.err
    assert (ran.json["steps"], ran.json["best_epoch"], ran.json["arch"]) == (0, 0, None)
    assert ran.json["images_per_second"] is None
    assert ran.json["alignment"]["parts"]["text"] == ["terms"]
    images, texts = pairs(paired_dataset)
    assert mean_log_rank("run", paired_dataset) < 0.5 * np.log(len(texts) / 2)  # about half of the mean by chance
    train = pairs(paired_dataset, "train")[0] / 255
    assert ran.json["val"]["mse"] < 0.7 * np.square(images / 255 - train.mean(0)).mean()
    scan = paired_dataset.parent / "files" / "001.png"
    assert cyclic("reconstruct", scan, "--model", "run", "--out", "drawn").code == 0
    assert cyclic("embed", paired_dataset, "--model", "run", "--out", "e.parquet").code == 0
    found = cyclic("search", texts[0], "--in", "e.parquet", "--model", "run", "--json")
    assert found.code == 0, found.err
    measured = cyclic("evaluate", paired_dataset, "--model", "run", "--json")
    assert measured.code == 0, measured.err
    assert measured.json["reconstruction"]["mse"] == pytest.approx(ran.json["val"]["mse"], rel=1e-4)


def test_a_run_with_encoders_needs_their_folders_no_more(
    paired_dataset: Path, encoders: list[object], tmp_path: Path, cyclic: Cyclic
) -> None:
    moved = [shutil.copytree(one, tmp_path / one.name) if isinstance(one, Path) else one for one in encoders]
    ran = cyclic(*words(paired_dataset, "run", *moved))
    assert ran.code == 0, ran.err
    before = TorchModel(Path("run/model.safetensors")).embed_images(pairs(paired_dataset)[0])
    for one in moved:
        if isinstance(one, Path):
            shutil.rmtree(one)
    shutil.copytree("run", "elsewhere")
    shutil.rmtree("run")
    model = TorchModel(Path("elsewhere/model.safetensors"))
    assert np.array_equal(model.embed_images(pairs(paired_dataset)[0]), before)
    again = cyclic(*words(paired_dataset, "elsewhere", *moved, "--resume", "must"))
    assert (again.code, again.json["best_epoch"]) == (0, 0), again.err
    stored = [path.stem for path in Path("elsewhere/encoders").glob("*.safetensors")]
    facts = read_checkpoint(Path("elsewhere/model.safetensors")).architecture["facts"]
    assert sorted(stored) == sorted(one["fingerprint"] for name in ("image", "text") for one in facts[name]["encoders"])
    shutil.rmtree("elsewhere/encoders")
    said = cyclic("embed", paired_dataset, "--model", "elsewhere", "--out", "e.parquet")
    assert said.code == 1
    assert "encoders/" in said.err


def test_features_are_computed_once(
    paired_dataset: Path, encoders: list[object], cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    usual = sources._computed

    def counted(function: object, content: torch.Tensor) -> object:
        if isinstance(function, PretrainedEncoder):
            computed.append(len(content))
        return usual(function, content)

    monkeypatch.setattr(sources, "_computed", counted)
    assert cyclic(*words(paired_dataset, "one", *encoders)).code == 0
    assert computed
    computed.clear()
    assert cyclic(*words(paired_dataset, "two", *encoders, "--paired-fraction", 0.5)).code == 0
    assert cyclic(*words(paired_dataset, "three", *encoders, "--epochs", 2, objective="cyclip")).code == 0
    assert not computed
    assert cyclic(*words(paired_dataset, "four", *encoders)).code == 0
    assert weights(Path("one")) == weights(Path("four"))


def test_training_never_loses_the_closed_form(paired_dataset: Path, cyclic: Cyclic) -> None:
    assert cyclic(*words(paired_dataset, "closed")).code == 0
    for out, lr, kept in (("wild", 10, True), ("still", 0, True), ("mild", 1e-3, None)):
        ran = cyclic(*words(paired_dataset, out, "--epochs", 3, "--lr", lr, objective="contrastive"))
        assert ran.code == 0, ran.err
        assert kept is None or (ran.json["best_epoch"] == 0) is kept
        assert ran.json["val"]["rank"] <= rows(Path(out), "epoch")[0]["val"]["rank"]
        if kept:
            assert weights(Path(out)) == weights(Path("closed"))


def test_every_preset_and_mixture_goes_on_from_the_closed_form(paired_dataset: Path, cyclic: Cyclic) -> None:
    mixture = ("--set", "objectives={contrastive: 1, sigmoid: 0.1, data_cycle: 0.1, walk: 0.1}")
    for out, objective, more in (("one", "cyclip", ()), ("two", "contrastive", ()), ("three", "cyclic", mixture)):
        ran = cyclic(*words(paired_dataset, out, "--epochs", 2, "--paired-fraction", 0.5, *more, objective=objective))
        assert ran.code == 0, ran.err
        assert all(np.isfinite(list(row["losses"].values())).all() for row in rows(Path(out), "step"))


def test_without_validation_folds_of_the_known_pairs_decide(no_val: Path, cyclic: Cyclic) -> None:
    for out, lr in (("mild", 1e-3), ("wild", 10), ("still", 0)):
        ran = cyclic(*words(no_val, out, "--epochs", 3, "--lr", lr, objective="contrastive"))
        assert ran.code == 0, ran.err
        assert "folds of the known pairs decide" in ran.err
        ranks = [row["val"]["rank_on_folds"] for row in rows(Path(out), "epoch")]
        assert len(ranks) == 4
        assert ran.json["best_epoch"] == int(np.argmin(ranks))
    assert ran.json["best_epoch"] == 0


def test_folds_whose_pairs_span_fewer_variates_decide_too(no_val: Path, cyclic: Cyclic) -> None:
    few = ("--epochs", 1, "--paired-fraction", 0.5)  # a fold has fewer pairs than the map has variates
    ran = cyclic(*words(no_val, "few", *few, objective="contrastive"))
    assert ran.code == 0, ran.err
    assert [set(row["val"]) for row in rows(Path("few"), "epoch")] == [{"rank_on_folds"}] * 2


def test_a_stopped_run_ends_with_the_bits_of_one_never_stopped(
    paired_dataset: Path, encoders: list[object], cyclic: Cyclic
) -> None:
    every = ("--epochs", 4, "--batch-size", 32, *WALKS, *encoders)
    assert cyclic(*words(paired_dataset, "whole", *every, objective="cyclic")).code == 0
    parts = list(map(str, words(paired_dataset, "parts", *every, objective="cyclic")))
    stopped_after(6, parts)
    ran = cyclic(*parts, "--resume", "must")
    assert ran.code == 0, ran.err
    assert ran.json["resumed_from_step"] == 6
    assert weights(Path("whole")) == weights(Path("parts"))


def test_encoders_that_are_not_frozen_are_trained_and_stored_with_the_model(
    paired_dataset: Path, encoders: list[object], cyclic: Cyclic
) -> None:
    moving = ("--set", "modalities.image.frozen=false", "--set", "modalities.text.frozen=false")
    ran = cyclic(*words(paired_dataset, "run", *encoders, *moving, "--epochs", 2, objective="contrastive"))
    assert ran.code == 0, ran.err
    assert not Path("run/encoders").exists()
    state = max(Path("run/state").iterdir())
    names = [name for name in read_checkpoint(state / "model.safetensors").weights if ".pretrained_" in name]
    assert names
    model = TorchModel(state / "model.safetensors")
    assert model.embed_images(pairs(paired_dataset)[0]).shape[1] == model.module.embedding
    optimizer = read_tensors(state / "optimizer.safetensors")[0]
    moved = sum(float(np.abs(value).max()) > 0 for name, value in optimizer.items() if name.endswith(".exp_avg"))
    assert moved > len(names) / 2  # parameters that had a gradient; the heads and expansions are few
    still = ("--epochs", 1, "--lr", 0)
    assert cyclic(*words(paired_dataset, "still", *encoders, *moving, *still, objective="contrastive")).code == 0
    assert cyclic(*words(paired_dataset, "frozen", *encoders)).code == 0
    images = pairs(paired_dataset)[0]
    one, other = (TorchModel(Path(run) / "model.safetensors").embed_images(images) for run in ("still", "frozen"))
    assert np.abs(one - other).max() < 1e-4


def test_no_file_holds_a_name_that_few_patients_share(paired_dataset: Path, tmp_path: Path, cyclic: Cyclic) -> None:
    files, source, dataset = paired_dataset.parent / "files", tmp_path / "files", tmp_path / "planted"
    table = (files / "reports.csv").read_text().splitlines()
    for number in range(1, 10):  # nine patients
        table[number] = table[number].replace("disc", "disc of Zarathustra", 1)
    shutil.copytree(files, source)
    (source / "reports.csv").write_text("\n".join(table) + "\n")
    config = PrepareConfig(preprocessing=Preprocessing(size=32), already_deidentified=True, split=(1.0, 0, 0))
    prepare([source], dataset, config, [source / "reports.csv"])
    assert cyclic(*words(dataset, "run")).code == 0
    assert cyclic("export", "--model", "run", "--part", "all", "--out", "exported").code == 0
    for folder in (Path("run"), Path("exported"), tmp_path / "cache"):
        for path in folder.rglob("*"):
            assert not path.is_file() or b"zarathustra" not in path.read_bytes().lower()


@pytest.mark.parametrize(
    ("more", "objective", "message"),
    [
        (("--paired-fraction", 0), "aligned", "needs paired samples"),
        (("--arch", "linear"), "aligned", "closed form itself"),
        (("--image-encoder", "nowhere"), "aligned", "nowhere"),
        (("--image-encoder", "nowhere", "--arch", "linear"), "contrastive", "Leave out --arch"),
        (("--image-encoder", "nowhere"), "autoencode", "image–text"),
        (("--set", "start=nowhere"), "aligned", "start"),
        (("--epochs", 30), "cyclic", "has no epochs"),
        (("--epochs", 30), "aligned", "has no epochs"),
        (("--set", "cycle_rule=always"), "aligned", "cycle_rule is for --objective cyclic"),
        (("--set", "cycle_rule=always"), "views", "cycle_rule is for image–text models"),
        (("--set", "paired_seed=3"), "autoencode", "paired_seed is for image–text models"),
    ],
)
def test_what_does_not_fit_is_refused(
    more: tuple[object, ...], objective: str, message: str, paired_dataset: Path, cyclic: Cyclic
) -> None:
    said = cyclic(*words(paired_dataset, "run", *more, objective=objective))
    assert said.code in (1, 2)
    assert message in said.err


def test_a_graph_cannot_be_trained(paired_dataset: Path, tmp_path: Path, cyclic: Cyclic) -> None:
    path = saved(network(side=32), tmp_path / "network.onnx")
    options = ("--image-encoder", path, *NORMALISED)
    said = cyclic(*words(paired_dataset, "run", *options, "--set", "modalities.image.frozen=false", objective="cyclip"))
    assert said.code == 2
    assert "frozen" in said.err
    assert cyclic(*words(paired_dataset, "run", *options)).code == 0


def test_heads_on_a_graph_are_trained_for_as_long_as_folds_say(no_val: Path, tmp_path: Path, cyclic: Cyclic) -> None:
    path = saved(network(side=32), tmp_path / "network.onnx")
    ran = cyclic(*words(no_val, "run", "--image-encoder", path, *NORMALISED, "--epochs", 1, objective="contrastive"))
    assert ran.code == 0, ran.err
    assert [set(row["val"]) for row in rows(Path("run"), "epoch")] == [{"rank_on_folds"}] * 2


def test_the_cache_does_not_hold_the_name_of_a_file(paired_dataset: Path, tmp_path: Path, cyclic: Cyclic) -> None:
    path = saved(network(side=32), tmp_path / "mueller_hans.onnx")
    assert cyclic(*words(paired_dataset, "run", "--image-encoder", path, *NORMALISED)).code == 0
    named = {one["encoder"] for one in cyclic("info", "--cache", "--json").json["by_encoder"].values()}
    assert named == {"onnx", "gradients", "levels"}
    for file in (tmp_path / "cache").rglob("*"):
        assert not file.is_file() or b"mueller" not in file.read_bytes()


@pytest.mark.slow
def test_two_processes_find_the_closed_form_of_one(
    paired_dataset: Path, encoders: list[object], tmp_path: Path, cyclic: Cyclic
) -> None:
    more = (*encoders, "--epochs", 2, "--lr", 1e-5, "--precision", 32)
    assert cyclic(*words(paired_dataset, str(tmp_path / "one"), *more, objective="cyclip")).code == 0
    several = words(paired_dataset, str(tmp_path / "two"), *more, "--devices", 2, objective="cyclip")
    run_in_processes(several, tmp_path / "another cache")
    first, second = (rows(tmp_path / name, "epoch") for name in ("one", "two"))
    assert [row["val"] for row in first] == [pytest.approx(row["val"], rel=1e-3) for row in second]
    assert gradient_difference(tmp_path / "one", tmp_path / "two") < 1e-2


def test_two_encoders_of_one_family_are_told_apart(paired_dataset: Path, tmp_path: Path, cyclic: Cyclic) -> None:
    folders = [tiny_text_folder("bert", tmp_path / name) for name in ("one", "two")]
    values = load_file(folders[1] / "model.safetensors")
    changed = {name: value + 0.1 * torch.randn_like(value) for name, value in values.items()}
    save_file(changed, folders[1] / "model.safetensors", {"format": "pt"})
    several = [word for folder in folders for word in ("--text-encoder", folder)]
    ran = cyclic(*words(paired_dataset, "run", *several))
    assert ran.code == 0, ran.err
    parts = ran.json["alignment"]["parts"]["text"]
    assert len(set(parts)) == len(parts) == 3
    assert len(list(Path("run/encoders").glob("*.safetensors"))) == 2


def test_the_command_that_reproduces_a_run_names_its_encoders(
    paired_dataset: Path, encoders: list[object], cyclic: Cyclic
) -> None:
    assert cyclic(*words(paired_dataset, "run", *encoders)).code == 0
    said = cyclic("info", "run", "--json").json["checkpoint"]
    command = said["reproduce"].replace("DATASET", str(paired_dataset))
    paths = [str(word) for word in encoders if str(word).startswith("/")]
    for one, path in zip(said["encoders"], paths, strict=True):
        command = command.replace(f"ENCODER_{one['fingerprint'][:8]}", path)
    program = [sys.executable, "-m", *shlex.split(command.partition(" ")[2].replace("cyclic", "cyclic_cli", 1))]
    done = subprocess.run([*program, "--out", "again"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert weights(Path("run")) == weights(Path("again"))


def test_cheap_features_stay_beside_an_encoder_of_the_same_images(paired_dataset: Path, cyclic: Cyclic) -> None:
    own = cyclic("train", paired_dataset, "--objective", "views", "--arch", "conv", "--epochs", 1, "--out", "views")
    assert own.code == 0, own.err
    ran = cyclic(*words(paired_dataset, "run", "--image-encoder", "views"))
    assert ran.code == 0, ran.err
    parts = ran.json["alignment"]["parts"]["image"]
    assert {"pixels", "gradients", "levels"} < set(parts)


def test_an_encoder_with_other_weights_is_another_run(paired_dataset: Path, tmp_path: Path, cyclic: Cyclic) -> None:
    folder = tiny_text_folder("bert", tmp_path / "bert")
    copied = shutil.copytree(folder, tmp_path / "copied")

    def resume(*more: object) -> list[object]:
        return words(paired_dataset, "run", *more, "--resume", "auto")

    command = resume("--text-encoder", folder)
    assert cyclic(*command).code == 0
    (fingerprint,) = read_run_file(Path("run/config.yaml"))["encoders"]["text"]
    assert "finished already" in cyclic(*command).err
    for same in (
        ("--text-encoder", copied),
        ("--set", f"modalities.text.encoder={copied}"),
        ("--text-encoder", folder, "--text-encoder", copied),  # twice the same
    ):
        assert "finished already" in cyclic(*resume(*same)).err
    for other in ((), ("--text-encoder", folder, "--image-encoder", tiny_image_folder("vit", tmp_path / "vit"))):
        assert "another run (encoders: " in cyclic(*resume(*other)).err
    assert "no encoder nowhere" in cyclic(*resume("--text-encoder", "nowhere")).err
    (copied / "model.safetensors").write_bytes((copied / "model.safetensors").read_bytes()[:-100])
    damaged = cyclic(*resume("--text-encoder", copied))
    assert damaged.code == 1
    assert "copied" in damaged.err
    assert "another run" not in damaged.err
    values = load_file(folder / "model.safetensors")
    changed = {name: value + 0.1 * torch.randn_like(value) for name, value in values.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    refused = cyclic(*command)
    assert refused.code == 1
    assert f"another run (encoders: text {fingerprint[:8]} there, text " in " ".join(refused.err.split())
    assert "{" not in refused.err
    shutil.rmtree(folder)  # the run has its own copy
    assert "finished already" in cyclic(*command).err


def test_a_run_without_encoders_is_another_run_than_one_with(
    paired_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    assert cyclic(*words(paired_dataset, "run")).code == 0
    folder = tiny_text_folder("bert", tmp_path / "bert")
    refused = cyclic(*words(paired_dataset, "run", "--text-encoder", folder, "--resume", "auto"))
    assert refused.code == 1
    assert "another run (modalities.text.encoder: " in " ".join(refused.err.split())


def test_encoders_are_read_once_to_compare_them(
    paired_dataset: Path, encoders: list[object], cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    usual = resuming.open_encoders

    def counted(name: str, config: Any, image_shape: tuple[int, int, int]) -> list[PretrainedEncoder]:
        read.append(name)
        return usual(name, config, image_shape)

    monkeypatch.setattr(resuming, "open_encoders", counted)
    command = words(paired_dataset, "run", *encoders, "--resume", "auto")
    assert cyclic(*command).code == 0
    assert read == []
    Path("run/summary.json").unlink()  # the settings are then compared again, under the lock
    assert cyclic(*command).code == 0
    assert sorted(read) == ["image", "text"]


def test_more_components_are_kept_with_many_pairs() -> None:
    cheap, encoder = SimpleNamespace(is_cheap=True), SimpleNamespace(is_cheap=False)
    few, many = SimpleNamespace(dims=768), SimpleNamespace(dims=3072)
    below = MANY_PAIRS - 1
    found = [fixed_codes._dims(source, rows, below) for source in (cheap, encoder) for rows in (few, many)]  # type: ignore[arg-type]
    assert found == [128, 128, 128, 192]
    for source in (cheap, encoder):
        assert fixed_codes._dims(source, few, below + 1) == 256  # type: ignore[arg-type]


def test_reports_without_frequent_words_need_an_encoder(tiny_dataset: Path, cyclic: Cyclic) -> None:
    said = cyclic(*words(tiny_dataset, "run"))  # every word is used by fewer than ten patients, or by all of them
    assert said.code == 1, said.out
    assert "--text-encoder" in said.err
    assert not Path("run").exists()


def test_folds_that_were_measured_are_not_measured_again_after_a_stop(no_val: Path, cyclic: Cyclic) -> None:
    more = ("--epochs", 3, "--lr", 1e-3, *WALKS)
    assert cyclic(*words(no_val, "whole", *more, objective="cyclic")).code == 0
    parts = list(map(str, words(no_val, "parts", *more, objective="cyclic")))
    stopped_after(5, parts)
    ran = cyclic(*parts, "--resume", "must")
    assert ran.code == 0, ran.err
    assert "folds of the known pairs" not in ran.err
    first, second = ([row["val"] for row in rows(Path(name), "epoch")] for name in ("whole", "parts"))
    assert first == second
