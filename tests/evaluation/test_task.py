"""Tests of `cyclic evaluate` against figures computed independently, and of generated texts and images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.makers import SIDES, Ran, disc_image, make_png
from PIL import Image
from torchmetrics.functional import structural_similarity_index_measure

from cyclic_cli.data.mixture import Modality, present_samples, read_index
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.storage.dataset import StoredDataset

Cyclic = Callable[..., Ran]
JOINT = (
    "train", "--objective", "cyclic", "--arch", "linear", "--batch-size", 32, "--quiet", "--json",
    "--set", "embedding=32", "--set", "model.latent=32",
)  # fmt: skip
WRITING = "{contrastive: 1, reconstruction: 1, translation: 1}"


@pytest.fixture(scope="module")
def run(paired_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an image–text model with decoders for images and texts."""
    from typer.testing import CliRunner

    from cyclic_cli.cli import app

    out = tmp_path_factory.mktemp("runs") / "run"
    words = [
        *JOINT, paired_dataset, "--epochs", 80, "--out", out, "--set", f"objectives={WRITING}", "--set", "fitted_lr=1",
        "--set", "precision=32",
        "--set", "modalities={image: {}, text: {arch: transformer, model: {width: 64, layers: 1}, vocabulary: 400}}",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    return out


def test_figures_equal_an_independent_computation(run: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    said = cyclic("evaluate", paired_dataset, "--model", run, "--baselines", "--json")
    assert said.code == 0, said.err
    found = said.json
    stored, model = StoredDataset(paired_dataset), TorchModel(run / "model.safetensors")
    tables = model.checkpoint.architecture["config"]["modalities"]
    modalities = [Modality.of(name, table) for name, table in tables.items()]
    index = read_index(stored, modalities, "val")
    facts = model.checkpoint.architecture["facts"]
    there = {one.name: present_samples(stored, one, index, facts[one.name]) for one in modalities}
    both = np.flatnonzero((there["image"][1] >= 0) & (there["text"][1] >= 0))
    image, text = (
        model.embed(name, values.load(np.arange(len(values))))[numbers[both]]
        for name, (values, numbers) in there.items()
    )
    similarity = image.astype(np.float64) @ text.T
    hits = index["text"][both][:, None] == index["text"][both][None, :]
    best = np.where(hits, similarity, -np.inf).max(1)
    ranks = 1 + (~hits & (similarity > best[:, None] - 1e-6)).sum(1)
    same_text = found["retrieval"]["image_to_text"]["same_text"]
    assert same_text["pool"] == len(both)
    assert found["ties"] == "worst case"  # `ranks` counts the same way
    assert [same_text[f"r{k}"] for k in (1, 5, 10)] == pytest.approx([np.mean(ranks <= k) for k in (1, 5, 10)])
    assert same_text["r1"] > 0.25  # the model has learned where the disc is, in images and in reports
    assert set(found["retrieval"]["text_to_image"]) == {
        "strict",
        "same_text",
        "same_study",
        "same_patient",
        "same_labels",
    }
    assert found["samples"] == len(index["sample"])
    assert found["linear_probe"]["disc"]["image"]["auroc"] > 0.9
    assert found["baselines"]["cca"]["image_to_text"]["same_text"]["r10"] > same_text["random_r10"]
    pixels = there["image"][0].load(np.arange(len(there["image"][0]))).numpy()
    train = present_samples(stored, modalities[0], read_index(stored, modalities, "train"), facts["image"])[0]
    mean = train.load(np.arange(len(train))).numpy().mean(0)
    assert found["baselines"]["mean_image"]["mse"] == pytest.approx(np.square(pixels - mean).mean(), rel=1e-4)


def test_reconstruction_errors_equal_those_of_reconstruct(run: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    found = cyclic("evaluate", paired_dataset, "--model", run, "--json").json["reconstruction"]
    rows = StoredDataset(paired_dataset).rows(["source"], "val")["source"]
    said = cyclic("reconstruct", *[paired_dataset.parent / "files" / path for path in rows], "--model", run, "--json")
    for figure in ("mse", "psnr", "ssim"):
        assert found[figure] == pytest.approx(np.mean([line[figure] for line in said.lines]), rel=1e-4)
    assert found["relative_error"]["image"] < 0.7
    assert found["relative_error"]["text"] < 0.3


def test_an_autoencoder_can_be_evaluated(paired_dataset: Path, cyclic: Cyclic) -> None:
    cyclic("train", paired_dataset, "--arch", "linear", "--epochs", 1, "--out", "plain", "--quiet")
    found = cyclic("evaluate", paired_dataset, "--model", "plain", "--baselines", "--json").json
    assert found["reconstruction"]["mse"] < found["baselines"]["mean_image"]["mse"]
    assert found["retrieval"] == {}
    assert found["knn"]["disc"]["image"] is not None
    shown = cyclic("evaluate", paired_dataset, "--model", "plain")
    assert shown.code == 0
    assert "neighbours" in shown.out


def test_figures_are_shown_even_if_the_file_cannot_be_written(run: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    Path("taken").write_text("a file, not a folder")
    said = cyclic("evaluate", paired_dataset, "--model", run, "--out", "taken/figures.json", "--json", "--quiet")
    assert said.code == 1
    assert said.json["samples"] > 0
    shown = cyclic("evaluate", paired_dataset, "--model", run, "--out", "figures.json")
    assert shown.code == 0
    assert json.loads(Path("figures.json").read_text())["retrieval"] == said.json["retrieval"]
    assert "R@10" in shown.out


def test_zero_shot_from_prompts(run: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    Path("prompts.yaml").write_text(
        "templates: ['{}.']\nprompts:\n  disc:\n    positive: [there is left disc, there is upper disc, "
        "there is right disc, there is lower disc]\n    negative: [there is no disc]\n"
    )
    found = cyclic("evaluate", paired_dataset, "--model", run, "--prompts", "prompts.yaml", "--json").json["zero_shot"]
    assert found["disc"]["auroc"] > 0.8
    Path("wrong.yaml").write_text("prompts:\n  fog:\n    positive: [fog]\n    negative: [no fog]\n")
    refused = cyclic("evaluate", paired_dataset, "--model", run, "--prompts", "wrong.yaml")
    assert refused.code == 2
    assert "not a label" in refused.err
    Path("unread.yaml").write_text("prompts:\n  disc:\n    positive: [left disc, xyzzy]\n    negative: [no disc]\n")
    refused = cyclic("evaluate", paired_dataset, "--model", run, "--prompts", "unread.yaml")
    assert (refused.code, "no word of a positive prompt of 'disc': xyzzy." in refused.err) == (2, True)
    Path("partly.yaml").write_text("prompts:\n  disc:\n    positive: [left xyzzy disc]\n    negative: [no plugh]\n")
    said = cyclic("evaluate", paired_dataset, "--model", run, "--prompts", "partly.yaml", "--json")
    assert (said.code, "these words of the prompts of 'disc': xyzzy, plugh\n" in said.err) == (0, True)


def test_a_copy_that_is_cut_at_the_maximum_length_counts_as_copied(
    run: Path, paired_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = StoredDataset(paired_dataset).rows(["text"], "train")["text"][0]

    def write(encoder: Any, code: Any) -> list[str]:
        encoder.limit = 3
        cut = encoder.vocabulary.decode(encoder.vocabulary.encode([known], 3)[0])
        assert 0 < len(cut) < len(known) - 1
        return [cut] * len(code)

    monkeypatch.setattr("cyclic_cli.modalities.text.TextEncoder.write", write)
    assert (
        cyclic("evaluate", paired_dataset, "--model", run, "--json").json["generated_text"]["copied_from_training"] == 1
    )


def test_prompts_of_a_text_column_are_refused(run: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    files = paired_dataset.parent / "files"
    rows = (files / "reports.csv").read_text().splitlines()
    Path("words.csv").write_text("\n".join([f"{rows[0]},side", *(f"{row},left" for row in rows[1:])]) + "\n")
    words = ("--reports", "words.csv", "--size", 32, "--already-deidentified", "--label-column", "side")
    assert cyclic("prepare", *sorted(files.glob("*.png")), *words, "--split", "70/30/0", "--out", "words").code == 0
    Path("side.yaml").write_text("prompts:\n  side:\n    positive: [left]\n    negative: [right]\n")
    refused = cyclic("evaluate", "words", "--model", run, "--prompts", "side.yaml")
    assert refused.code == 2
    assert "is a text column" in refused.err


def test_a_test_dataset_can_use_the_training_split_of_another_dataset(
    run: Path, paired_dataset: Path, cyclic: Cyclic
) -> None:
    files = paired_dataset.parent / "files"
    prepared = cyclic(
        "prepare", files, "--reports", files / "reports.csv", "--size", 32, "--already-deidentified",
        "--split", "0/0/100", "--label-column", "disc", "--out", "pure",
    )  # fmt: skip
    assert prepared.code == 0, prepared.err
    asked = ("evaluate", "pure", "--split", "test", "--model", run, "--baselines", "--json")
    without, found = cyclic(*asked), cyclic(*asked, "--train", paired_dataset)
    assert "no training split" in without.err
    assert without.json["linear_probe"] == without.json["baselines"] == {}
    assert without.json["generated_text"]["copied_from_training"] is None
    assert found.code == 0, found.err
    assert set(found.json["baselines"]) >= {"mean_image", "pca", "cca", "ridge"}
    assert found.json["linear_probe"]["disc"]["image"]["accuracy"] > 0.5
    assert found.json["generated_text"]["copied_from_training"] > 0.3


@pytest.mark.parametrize("more", [("--sheet", "s.png"), ("--format", "npy")])
@pytest.mark.parametrize("way", [("--text", "Left disc."), ("new.png", "--to", "text")])
def test_image_options_of_reconstruct_are_refused_for_texts(
    more: tuple[str, ...], way: tuple[str, ...], run: Path, cyclic: Cyclic
) -> None:
    said = cyclic("reconstruct", *way, "--model", run, *more)
    assert said.code == 2
    assert "only apply to reconstructed scans" in said.err


def test_generated_texts_name_the_position_of_the_disc(run: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    for side in range(4):
        make_png(Path(f"new/{side}.png"), disc_image(900 + side, side))
    said = cyclic("reconstruct", "new", "--to", "text", "--model", run, "--json")
    assert said.code == 0, said.err
    assert "not a diagnosis" in said.err
    right = [SIDES[int(Path(line["source"]).stem)] in line["text"].lower() for line in said.lines]
    assert sum(right) >= 3
    assert all(line["remark"] == "illustration by a model, not a diagnosis" for line in said.lines)
    beams = cyclic("reconstruct", "new", "--to", "text", "--beams", 4, "--length", 3, "--model", run, "--json").lines
    assert all(len(line["text"].split()) <= 3 for line in beams)
    texts = cyclic("evaluate", paired_dataset, "--model", run, "--json").json["generated_text"]
    assert texts["bleu"] > 20
    assert texts["copied_from_training"] > 0.5  # with so few wordings, most correct texts are training reports


def test_generated_images_show_the_disc_at_the_position_in_the_text(run: Path, cyclic: Cyclic) -> None:
    said = cyclic(
        "reconstruct", "--text", "There is left disc.", "--text", "There is right disc.", "--model", run, "--json"
    )
    assert said.code == 0, said.err
    left, right = (np.asarray(Image.open(line["output"]).convert("L"), float) for line in said.lines)
    height, width = left.shape
    difference = (left - right)[: height * 3 // 4]
    assert difference[:, : width // 2].mean() > 3 > -3 > difference[:, width // 2 :].mean()
    assert cyclic("reconstruct", "--text", "Left disc.", "--model", run).code == 1  # the output exists already
    assert cyclic("reconstruct", "--text", "Left disc.", "--model", run, "--overwrite").code == 0
    refused = cyclic("reconstruct", "--text", "Left disc.", "--text", "xyzzy", "--model", run, "--overwrite")
    assert (refused.code, "no word of text 2: xyzzy." in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["new", "--to", "text"], 1, "no text encoder"),
        (["--text", "Left disc."], 1, "no text encoder"),
        (["new", "--text", "Left disc."], 2, "not both"),
        ([], 2, "not both"),
        (["new", "--to", "sound"], 2, "sound"),
    ],
)
def test_messages_name_what_a_model_cannot_do(words: list[str], code: int, message: str, cyclic: Cyclic) -> None:
    make_png(Path("new/0.png"), disc_image(1, 1))
    ran = cyclic("reconstruct", *words)
    assert ran.code == code
    assert message in ran.err


def test_models_without_decoders_or_generated_text_are_refused(paired_dataset: Path, cyclic: Cyclic) -> None:
    make_png(Path("new/0.png"), disc_image(1, 1))
    cyclic(*JOINT, paired_dataset, "--epochs", 1, "--out", "pairs", "--objective", "contrastive")
    assert "without decoders" in cyclic("reconstruct", "new", "--model", "pairs").err
    cyclic(*JOINT, paired_dataset, "--epochs", 1, "--out", "words", "--set", f"objectives={WRITING}")
    assert "cannot generate text" in cyclic("reconstruct", "new", "--to", "text", "--model", "words").err
    assert cyclic("evaluate", paired_dataset, "--model", "words", "--split", "test").code == 1
    assert cyclic("evaluate", paired_dataset, "--model", "words", "--split", "tests").code == 2


def test_ssim_equals_torchmetrics(run: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    model, stored = TorchModel(run / "model.safetensors"), StoredDataset(paired_dataset)
    rows = stored.rows(["shard", "row", "has_image"], "val")
    pixels = stored.images(rows["shard"].astype(int), rows["row"].astype(int))
    image, output = torch.from_numpy(pixels / 255.0), torch.from_numpy(model.reconstruct(pixels)).double()
    _, full = structural_similarity_index_measure(output, image, data_range=1.0, sigma=1.5, return_full_image=True)
    found = json.loads(cyclic("evaluate", paired_dataset, "--model", run, "--json").out)["reconstruction"]["ssim"]
    assert found == pytest.approx(full[..., 5:-5, 5:-5].mean().item(), abs=1e-4)
