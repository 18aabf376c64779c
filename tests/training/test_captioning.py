"""`--objective captioning`: a decoder that writes texts from the fixed codes of a finished image–text model."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.makers import SIDES, Ran, disc_image, make_png
from helpers.run_files import gradient_difference, rows, weights
from helpers.several_processes import run_in_processes
from helpers.stopping import stopped_after
from helpers.tiny_encoders import tiny_image_folder, tiny_text_folder

from cyclic_cli.codes.text_codes import DECODER
from cyclic_cli.config import PrepareConfig, Preprocessing, TrainConfig, train_settings
from cyclic_cli.errors import CyclicError
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.models._rebuilding import rebuild
from cyclic_cli.prepare.task import prepare
from cyclic_cli.storage.checkpoint import read_checkpoint
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.text_encoders._vocabulary import Vocabulary, padded
from cyclic_cli.training.task import train

Cyclic = Callable[..., Ran]
SMALL = ("--set", "model.width=32", "--set", "model.layers=1", "--lr", 3e-3)
SECRET = "zarathustra"


def words(dataset: Path, out: object, initial: object, *more: object) -> list[object]:
    named = ["--init-from", initial] if initial else []
    return ["train", dataset, "--objective", "captioning", "--out", out, *named, *SMALL, *more, "--json"]


def trained(dataset: Path, out: Path, values: dict[str, Any], initial: Path | None = None) -> None:
    """Train a run, with a cache of features beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CYCLIC_CACHE", str(out.parent / "cache"))
        train(dataset, out, train_settings(values), init_from=initial)


@pytest.fixture(scope="module")
def aligned(paired_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image–text model with tiny pretrained encoders, which knows half of the pairs."""
    folder = tmp_path_factory.mktemp("aligned")
    encoders = {
        "image": {"encoder": str(tiny_image_folder("vit", folder / "vit"))},
        "text": {"encoder": str(tiny_text_folder("bert", folder / "bert"))},
    }
    values = {"objective": "aligned", "modalities": encoders, "paired_fraction": 0.5}
    trained(paired_dataset, folder / "run", values)
    return folder / "run"


@pytest.fixture(scope="module")
def captioned(paired_dataset: Path, aligned: Path) -> Path:
    """A decoder for `aligned`."""
    values = {"objective": "captioning", "model": {"width": 32, "layers": 1}, "lr": 1e-2, "epochs": 30}
    trained(paired_dataset, aligned.parent / "captioned", values, aligned)
    return aligned.parent / "captioned"


def test_a_model_on_fixed_codes_learns_to_write_what_its_images_show(
    paired_dataset: Path, aligned: Path, captioned: Path, cyclic: Cyclic
) -> None:
    files = paired_dataset.parent / "files"
    said = cyclic("reconstruct", files / "001.png", "--to", "text", "--model", aligned)
    assert said.code == 1
    assert "cyclic train DATASET --objective captioning --init-from RUN" in " ".join(said.err.split())
    ran = cyclic("reconstruct", files / "001.png", files / "002.png", "--to", "text", "--model", captioned)
    assert ran.code == 0, ran.err
    assert ran.out.lower().count("disc") >= 2
    measured = cyclic("evaluate", paired_dataset, "--split", "val", "--model", captioned, "--json")
    assert measured.code == 0, measured.err
    generated = measured.json["generated_text"]
    assert generated["samples"] > 20
    assert generated["bleu"] > 5  # of 100; the wording of a report is random
    index = StoredDataset(paired_dataset).rows(["has_image", "has_text", "shard", "row", "text"], "val")
    both = index["has_image"] & index["has_text"]
    model = TorchModel(captioned / "model.safetensors")
    pixels = StoredDataset(paired_dataset).images(index["shard"][both], index["row"][both])
    with torch.no_grad():
        codes = model.module.code("text", torch.from_numpy(model.embed_images(pixels)))
        written = model.module.encoders["text"].write(codes)
    right = [
        [side.lower() in one.lower() for side in SIDES] == [side.lower() in true.lower() for side in SIDES]
        for one, true in zip(written, index["text"][both].tolist(), strict=True)
    ]
    assert np.mean(right) > 0.5  # one of five places by chance
    without = cyclic("evaluate", paired_dataset, "--split", "val", "--model", aligned, "--json")
    assert not without.json["generated_text"]
    found = [row["val"] for row in rows(captioned, "epoch")]
    assert {*found[0]} == {"cross_entropy_from_images", "cross_entropy_from_texts"}
    images = [one["cross_entropy_from_images"] for one in found]
    assert min(images) < 0.6  # of the error of the mean predictor
    summary = json.loads((captioned / "summary.json").read_text())
    assert summary["best_epoch"] == 1 + int(np.argmin(images))
    assert (summary["arch"], summary["objective"], summary["paired_fraction"]) == (None, "captioning", 0.5)
    assert summary["val"] == found[summary["best_epoch"] - 1]
    has_text = StoredDataset(paired_dataset).rows(["has_text"], "train")["has_text"]
    assert summary["train_samples"] == int(has_text.sum())


def test_all_but_the_decoder_keeps_its_bits(
    paired_dataset: Path, aligned: Path, captioned: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    before, after = weights(aligned), weights(captioned)
    new = {name for name in after if name.startswith(f"encoders.text.{DECODER}.")}
    assert new
    assert {name: value for name, value in after.items() if name not in new} == before
    for run, out in ((aligned, "one"), (captioned, "two")):
        assert cyclic("embed", paired_dataset, "--model", run, "--out", f"{out}.parquet").code == 0
    images = StoredDataset(paired_dataset).images(np.zeros(4, int), np.arange(4))
    one, two = (TorchModel(run / "model.safetensors") for run in (aligned, captioned))
    assert np.array_equal(one.embed_images(images), two.embed_images(images))
    assert np.array_equal(one.embed_texts(["A disc."]), two.embed_texts(["A disc."]))
    assert np.array_equal(one.reconstruct(images), two.reconstruct(images))
    said = [
        cyclic("evaluate", paired_dataset, "--split", "val", "--model", run, "--json") for run in (aligned, captioned)
    ]
    assert said[0].json["retrieval"] == said[1].json["retrieval"]


def test_the_model_needs_the_initial_run_no_more(
    paired_dataset: Path, aligned: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    initial = shutil.copytree(aligned, tmp_path / "initial")
    assert cyclic(*words(paired_dataset, "run", initial, "--epochs", 1)).code == 0
    shutil.rmtree(initial)
    shutil.copytree("run", "elsewhere")
    shutil.rmtree("run")
    scan = paired_dataset.parent / "files" / "001.png"
    assert cyclic("reconstruct", scan, "--to", "text", "--model", "elsewhere").code == 0
    assert cyclic("embed", paired_dataset, "--model", "elsewhere", "--out", "e.parquet").code == 0
    found = cyclic("search", "disc on the left", "--in", "e.parquet", "--model", "elsewhere", "--json")
    assert found.code == 0, found.err
    exported = cyclic("export", "--model", "elsewhere", "--part", "text-encoder", "--out", "text.onnx", "--json")
    assert exported.code == 0, exported.err


def test_a_stopped_run_ends_with_the_bits_of_one_never_stopped(
    paired_dataset: Path, aligned: Path, cyclic: Cyclic
) -> None:
    assert cyclic(*words(paired_dataset, "whole", aligned, "--epochs", 3)).code == 0
    parts = list(map(str, words(paired_dataset, "parts", aligned, "--epochs", 3)))
    stopped_after(9, parts)
    ran = cyclic(*parts, "--resume", "must")
    assert ran.code == 0, ran.err
    assert ran.json["resumed_from_step"] == 9
    assert weights(Path("whole")) == weights(Path("parts"))
    assert [row["val"] for row in rows(Path("whole"), "epoch")] == [row["val"] for row in rows(Path("parts"), "epoch")]


def test_the_command_that_reproduces_a_decoder_gives_its_bits(
    paired_dataset: Path, aligned: Path, cyclic: Cyclic
) -> None:
    more = ("--epochs", 1, "--set", "modalities.text.vocabulary=300", "--set", "modalities.text.length=6")
    assert cyclic(*words(paired_dataset, "run", aligned, *more)).code == 0
    facts = read_checkpoint(Path("run/model.safetensors")).architecture["facts"]["text"][DECODER]
    assert (facts["limit"], len(facts["frequencies"]) <= 300) == (6, True)
    command = cyclic("info", "run", "--json").json["checkpoint"]["reproduce"]
    again = command.replace("DATASET", str(paired_dataset)).replace("MODEL", str(aligned))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = ["bash", "-c", f"{again} --out again --quiet --json"]
    subprocess.run(ran, check=True, env=os.environ | {"PATH": path}, capture_output=True, timeout=200)
    assert weights(Path("run")) == weights(Path("again"))


def test_a_decoder_of_trained_encoders_reads_their_codes(paired_dataset: Path, tmp_path: Path, cyclic: Cyclic) -> None:
    encoders = ["--image-encoder", tiny_image_folder("vit", tmp_path / "vit"), "--epochs", 1, "--lr", 0.01]
    moving = ("--set", "modalities.image.frozen=false", "--set", "checkpoint_steps=1")
    ran = cyclic("train", paired_dataset, "--objective", "contrastive", "--out", "moved", *encoders, *moving)
    assert ran.code == 0, ran.err
    state = max(Path("moved/state").iterdir()) / "model.safetensors"  # the best model may be the closed form
    assert cyclic(*words(paired_dataset, "run", state, "--epochs", 1)).code == 0
    model = TorchModel(Path("run/model.safetensors"))
    stored = StoredDataset(paired_dataset)
    index = stored.rows(["has_image", "has_text", "shard", "row", "text"], "val")
    both = index["has_image"] & index["has_text"]
    images = torch.from_numpy(model.embed_images(stored.images(index["shard"][both], index["row"][both])))
    decoder = model.module.encoders["text"].decoder
    encoded = decoder.vocabulary.encode(index["text"][both].tolist(), decoder.limit)
    with torch.no_grad():
        codes = model.module.code("text", images)
        errors = [
            float(decoder.errors(codes[place : place + 1], torch.from_numpy(one[None].astype(np.int64))))
            for place, one in enumerate(encoded)
        ]
    found = rows(Path("run"), "epoch")[0]["val"]["cross_entropy_from_images"]
    assert found == pytest.approx(float(np.mean(errors)), rel=1e-4)
    assert not Path("run/encoders").exists()


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Reports without a validation part: a name in those of nine patients, and a sentence of one patient alone."""
    folder = tmp_path / "files"
    table = ["path,patient,text"]
    for number in range(40):
        make_png(folder / f"{number:02d}.png", disc_image(number, number % 5))
        side = ("left", "right", "top", "bottom", "none")[number % 5]
        name = f" seen by {SECRET}" if number < 9 else ""
        single = " The quixotic gizmo wobbles." if number == 20 else ""
        table.append(f"{number:02d}.png,p{number:02d},A disc on the {side}{name}.{single}")
    (folder / "reports.csv").write_text("\n".join(table) + "\n")
    config = PrepareConfig(preprocessing=Preprocessing(size=32), already_deidentified=True, split=(1.0, 0, 0))
    prepare([folder], tmp_path / "planted", config, [folder / "reports.csv"])
    return tmp_path / "planted"


def test_no_file_holds_a_sentence_or_a_name_that_few_patients_share(planted: Path, cyclic: Cyclic) -> None:
    assert cyclic("train", planted, "--objective", "aligned", "--out", "aligned").code == 0
    ran = cyclic(*words(planted, "run", "aligned", "--epochs", 4))
    assert ran.code == 0, ran.err
    assert (ran.json["val"], ran.json["best_epoch"]) == ({}, 4)  # without validation the last epoch is kept
    for path in Path("run").rglob("*"):
        content = path.read_bytes().lower() if path.is_file() else b""
        for secret in (SECRET, "zarath", "quixotic", "gizmo", "wobbl", "disc on the"):
            assert secret.encode() not in content, path
    facts = read_checkpoint(Path("run/model.safetensors")).architecture["facts"]["text"][DECODER]
    tokens = Vocabulary.from_json(facts["tokenizer"])
    pieces = {tokens.decode([token]) for token in range(tokens.size)}
    assert "disc" in {piece.strip() for piece in pieces}
    assert not [
        piece for piece in pieces if len(piece) > 1 and piece.strip() in SECRET and piece not in "a disc on the"
    ]


def test_a_name_that_few_patients_share_is_no_likelier_than_other_letters(planted: Path, cyclic: Cyclic) -> None:
    assert cyclic("train", planted, "--objective", "aligned", "--out", "aligned").code == 0
    ran = cyclic(*words(planted, "run", "aligned", "--epochs", 20))
    assert ran.code == 0, ran.err
    decoder = TorchModel(Path("run/model.safetensors")).module.encoders["text"].decoder
    letters, generator = list(SECRET), np.random.default_rng(0)
    shuffled = ["".join(generator.permutation(letters)) for _ in range(20)]
    written = [f"A disc on the right seen by {name}." for name in (SECRET, *shuffled)]
    tokens = torch.from_numpy(padded(decoder.vocabulary.encode(written, 128), 128))
    with torch.no_grad():
        errors = decoder.errors(decoder.mean.expand(len(tokens), -1), tokens).numpy()
    assert errors[0] > 0.95 * errors[1:].min()  # trained on the name, it is below all others


def test_what_does_not_fit_is_refused(
    paired_dataset: Path, tiny_dataset: Path, joint_run: Path, aligned: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    assert cyclic("train", tiny_dataset, "--arch", "linear", "--epochs", 1, "--out", "autoencoder").code == 0
    for initial, more, message in (
        (None, (), "Name its run with --init-from"),
        ("autoencoder", (), "one of images alone"),
        (joint_run, (), "modalities.text.arch=transformer"),
        (aligned, ("--also", tiny_dataset), "--also"),
        (aligned, ("--arch", "linear"), "no architecture can be named"),
        (aligned, ("--image-encoder", tmp_path), "encoders are those of --init-from"),
        (aligned, ("--set", "modalities.text.dropout=0.5"), "modalities.text.dropout"),
        (aligned, ("--set", "modalities.text.vocabulary=9"), "too small"),
        (aligned, ("--set", "objectives={contrastive: 1}"), "has one loss"),
        (aligned, ("--set", "model.wide=9"), "wid"),
        (aligned, ("--set", "model.heads=5"), "heads"),
        (aligned, ("--set", "model.heads=0"), "heads cannot be 0"),
        (aligned, ("--set", "model.width=-4"), "width cannot be -4"),
        (aligned, ("--set", "model.prefix=0"), "prefix cannot be 0"),
        (aligned, ("--set", "model.layers=10000000"), "layers cannot be"),
        (aligned, ("--strategy", "fsdp"), "FSDP"),
    ):
        said = cyclic(*words(paired_dataset, "run", initial, *more))
        assert said.code == 2, (message, said.err)
        assert message in " ".join(said.err.split())
        assert not Path("run").exists()
    said = cyclic(*words(tiny_dataset, "run", aligned))
    assert said.code == 1
    assert "another dataset" in said.err


def test_a_damaged_decoder_is_refused(captioned: Path) -> None:
    architecture = read_checkpoint(captioned / "model.safetensors").architecture
    whole = architecture["facts"]["text"][DECODER]
    for change in (
        {"settings": {"width": "wide"}}, {"tokenizer": "{}"}, {"frequencies": whole["frequencies"][1:]}, {"nats": 0},
        {"limit": 0}, {"limit": 2**40},
    ):  # fmt: skip
        facts = architecture["facts"] | {"text": architecture["facts"]["text"] | {DECODER: whole | change}}
        with pytest.raises(CyclicError):
            rebuild({**architecture, "facts": facts}, "here")


def test_the_last_settings_are_those_of_the_decoder() -> None:
    assert train_settings({"objective": "captioning", "model": {"width": 8}}).start == "closed_form"
    assert train_settings({"objective": "captioning"}).epochs > TrainConfig.epochs
    assert train_settings({"objective": "captioning", "epochs": 2}).epochs == 2


@pytest.mark.slow
def test_two_processes_train_the_decoder_of_one(
    paired_dataset: Path, aligned: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    more = ("--epochs", 2, "--lr", 1e-5, "--precision", 32)
    assert cyclic(*words(paired_dataset, tmp_path / "one", aligned, *more)).code == 0
    several = words(paired_dataset, tmp_path / "two", aligned, *more, "--devices", 2)
    run_in_processes(several, tmp_path / "another cache")
    first, second = (rows(tmp_path / name, "epoch") for name in ("one", "two"))
    assert [row["val"] for row in first] == [pytest.approx(row["val"], rel=1e-3) for row in second]
    assert gradient_difference(tmp_path / "one", tmp_path / "two") < 1e-2
