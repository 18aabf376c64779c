"""Training of image–text models: alignment, isolation of unpaired samples, stops, processes, further modalities."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.makers import Ran
from helpers.run_files import gradient_difference, rows, weights
from helpers.several_processes import run_in_processes
from helpers.stopping import stopped_after

import cyclic_cli.modalities
from cyclic_cli.config import PRESETS, TrainConfig, train_settings
from cyclic_cli.data.mixture import UNPAIRED
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import silent
from cyclic_cli.models._rebuilding import rebuild
from cyclic_cli.privacy.keys import paired_place
from cyclic_cli.privacy.keys import place as subset_place
from cyclic_cli.storage.checkpoint import read_checkpoint
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training.alignment import Alignment
from cyclic_cli.training.task import train
from cyclic_cli.training.validation import joined

Cyclic = Callable[..., Ran]
SMALL = (
    "--arch",
    "linear",
    "--batch-size",
    32,
    "--set",
    "embedding=16",
    "--set",
    "private=4",
    "--set",
    "model.latent=32",
)
MIXED = "{contrastive: 1, geometry: 0.5, visit: 1, walk: {weight: 0.5, start: 0.2, full: 0.5}}"
EVERY = (
    "{contrastive: 1, sigmoid: 0.1, geometry: 0.1, reconstruction: 1, translation: 1, data_cycle: 0.1, walk: 0.1, "
    "visit: 0.1}"
)


def words(dataset: Path, *more: object, objective: str = "cyclic", paired: float = 0.4) -> list[object]:
    return ["train", dataset, "--objective", objective, "--paired-fraction", paired, *SMALL, "--json", *more]


def learner(dataset: Path, **settings: Any) -> Alignment:
    from cyclic_cli.training import alignment

    values = {"objective": "cyclic", "arch": "linear", "batch_size": 32, "precision": "32", **settings}
    config = alignment.filled_in(train_settings(values), 100)
    return Alignment(Ranks(None, 0, 1), [StoredDataset(dataset)], config)


def changed(dataset: Path, out: Path, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    """A copy of a dataset whose index was changed by hand."""
    shutil.copytree(dataset, out)
    table = pq.read_table(out / "index.parquet")
    samples = table.to_pylist()
    change(samples)
    pq.write_table(pa.Table.from_pylist(samples, table.schema), out / "index.parquet")
    return out


@pytest.mark.parametrize("objective", ["contrastive", "cyclip", "cyclic"])
def test_presets_learn_which_report_an_image_has(objective: str, paired_dataset: Path, cyclic: Cyclic) -> None:
    ran = cyclic(*words(paired_dataset, "--epochs", 15, "--out", "run", objective=objective, paired=1))
    assert ran.code == 0, ran.err
    assert ran.json["objective"] == objective
    assert ran.json["paired_fraction"] == 1
    found = cyclic("evaluate", paired_dataset, "--model", "run", "--json").json["retrieval"]["image_to_text"][
        "same_text"
    ]
    assert found["r5"] > found["random_r10"] > 0.4  # five answers do better than ten by chance
    terms = {name for row in rows(Path("run"), "step") for name in row["losses"]}
    assert terms == {*PRESETS[objective], "total"}


def test_paired_samples_are_nested_and_independent_of_the_split(paired_dataset: Path) -> None:
    keys = [learner(paired_dataset, paired_fraction=share).data.mixture.paired for share in (0.2, 0.5, 1.0)]
    assert set(keys[0]) < set(keys[1]) < set(keys[2])
    assert len(keys[2]) == len(StoredDataset(paired_dataset).rows(["sample"], "train")["sample"]) - lacking(
        paired_dataset
    )
    patients = [f"{number:032x}" for number in range(2000)]
    places = np.array([[paired_place(patient), subset_place(patient)] for patient in patients])
    assert places.mean(0) == pytest.approx([0.5, 0.5], abs=0.03)
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.07  # three standard deviations


def lacking(dataset: Path) -> int:
    """Training samples without a report."""
    return int((~StoredDataset(dataset).rows(["has_text"], "train")["has_text"].astype(bool)).sum())


def test_batches_mix_paired_and_unpaired_samples(paired_dataset: Path) -> None:
    one = learner(paired_dataset, paired_fraction=0.3)
    seen: dict[str, set[int]] = {"image": set(), "text": set()}
    for step in range(40):
        chosen = one.batch(step)
        together = [samples[samples != UNPAIRED] for samples in chosen.samples.values()]
        assert sorted(together[0]) == sorted(together[1])
        assert set(together[0]) <= set(one.data.mixture.paired)
        for name, numbers in chosen.numbers.items():
            assert len(set(numbers.tolist())) == len(numbers) <= 32
            seen[name] |= set(numbers.tolist())
            unpaired = numbers[chosen.samples[name] == UNPAIRED]
            assert not set(unpaired) & set(one.data.mixture.rows[name].tolist())
    assert all(len(seen[name]) == len(pool) for name, pool in one.data.mixture.pools.items())


def test_paired_samples_fill_a_batch_where_unpaired_ones_are_too_few(paired_dataset: Path) -> None:
    missing = lacking(paired_dataset)
    one = learner(paired_dataset, paired_fraction=1.0, batch_size=64)
    assert one.data.mixture.sizes(64, 1 / 3)[0] >= 64 - missing
    few = learner(paired_dataset, paired_fraction=0.1, batch_size=64)
    known = len(few.data.mixture.paired)
    assert known < 64 / 3
    assert few.data.mixture.sizes(64, 1 / 3) == (known, {"image": 64 - known, "text": 64 - known})
    some = learner(paired_dataset, paired_fraction=0.8, batch_size=30)
    share = len(some.data.mixture.paired) / len(some.data.mixture.pools["image"])
    assert some.data.mixture.sizes(30, 1 / 3)[0] == pytest.approx(30 * share, abs=1)
    pairs_only = learner(paired_dataset, paired_fraction=0.8, batch_size=30, objective="cyclip")
    assert {len(of) for of in pairs_only.batch(0).numbers.values()} == {30}
    assert all((of != UNPAIRED).all() for of in pairs_only.batch(0).samples.values())
    few_unpaired = learner(paired_dataset, paired_fraction=0.1, batch_size=64, objective="cyclip")
    assert {len(of) for of in few_unpaired.batch(0).numbers.values()} == {known}


def test_only_a_random_share_of_a_batch_is_decoded(paired_dataset: Path) -> None:
    one = learner(paired_dataset, batch_size=96, paired_fraction=1.0)
    one.initialise(lambda *_: None, silent)
    model, pool = one.module, one.data.mixture.pools["image"]
    assert model.decoded_share == 0.5
    keep = torch.rand(90, generator=torch.Generator().manual_seed(0))
    batch = ({"image": pool.load(np.arange(90))}, {"image": torch.arange(90)})
    errors = model(*batch, ["reconstruction"], {"image": keep})["reconstruction"]["image"]
    chosen = (keep - 0.5).abs() <= 0.25
    assert 30 < int(chosen.sum()) < 60
    model.decoded_share = 1.0
    every = model(*batch, ["reconstruction"], {"image": keep})["reconstruction"]["image"]
    torch.testing.assert_close(errors, every[chosen])


def test_samples_with_an_equal_image_or_report_are_grouped() -> None:
    groups = joined(np.array([1, 1, 2, 3, 4, 4]), np.array([5, 6, 6, 7, 8, 8]))
    assert len(set(groups[:3])) == 1
    assert len(set(groups)) == 3
    assert groups[4] == groups[5]


def test_a_model_that_only_reconstructs_is_validated_by_its_errors(paired_dataset: Path, tmp_path: Path) -> None:
    settings = {"objective": "cyclic", "objectives": {"reconstruction": 1.0}, "arch": "linear", "epochs": 1}
    assert set(train(paired_dataset, tmp_path / "run", train_settings(settings)).val) == {"mse", "psnr"}


def test_texts_of_unpaired_samples_may_be_permuted_without_changing_a_bit(
    paired_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    def permute(samples: list[dict[str, Any]]) -> None:
        unpaired = [
            row for row in samples
            if row["split"] == "train" and row["has_text"] and paired_place(row["patient"]) >= 0.4
        ]  # fmt: skip
        texts = [row["text"] for row in unpaired]
        order = np.random.default_rng(0).permutation(len(texts))
        assert sum(texts[place] != text for place, text in zip(order, texts, strict=True)) > 20
        for row, place in zip(unpaired, order, strict=True):
            row["text"] = texts[place]

    other = changed(paired_dataset, tmp_path / "other", permute)
    mixture = ("--set", f"objectives={EVERY}")
    for dataset, out in ((paired_dataset, "one"), (other, "two")):
        assert cyclic(*words(dataset, "--epochs", 2, "--out", out, *mixture)).code == 0
    assert weights(Path("one")) == weights(Path("two"))
    third = changed(paired_dataset, tmp_path / "third", lambda samples: permute_paired(samples))
    assert cyclic(*words(third, "--epochs", 2, "--out", "three", *mixture)).code == 0
    assert weights(Path("one")) != weights(Path("three"))


def test_images_of_unpaired_samples_may_be_permuted_where_patients_have_several_samples(
    paired_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    patients = [key for key in (f"{number:032x}" for number in range(100)) if paired_place(key) >= 0.4]

    def of_few_patients(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        unpaired = [row for row in samples if row["split"] == "train" and paired_place(row["patient"]) >= 0.4]
        for number, row in enumerate(unpaired):
            row["patient"] = patients[number // 3]
        return [row for row in unpaired if row["has_text"]]

    def permute(samples: list[dict[str, Any]]) -> None:
        unpaired = of_few_patients(samples)
        belonging = [(row["text"], row["patient"]) for row in unpaired]
        order = np.random.default_rng(0).permutation(len(belonging))
        for row, place in zip(unpaired, order, strict=True):
            row["text"], row["patient"] = belonging[place]

    for out, change in (("one", of_few_patients), ("two", permute)):
        dataset = changed(paired_dataset, tmp_path / out, change)
        ran = cyclic(*words(dataset, "--epochs", 2, "--out", out, "--set", f"objectives={EVERY}"))
        assert ran.code == 0, ran.err
    assert weights(Path("one")) == weights(Path("two"))


def permute_paired(samples: list[dict[str, Any]]) -> None:
    paired = [row for row in samples if row["split"] == "train" and row["has_text"]]
    texts = [row["text"] for row in paired]
    for row, text in zip(paired, texts[1:] + texts[:1], strict=True):
        row["text"] = text


def test_facts_do_not_depend_on_validation_texts(paired_dataset: Path, tmp_path: Path) -> None:
    def rewrite(samples: list[dict[str, Any]]) -> None:
        for row in samples:
            if row["split"] == "val" and row["has_text"]:
                row["text"] = "Entirely other words: zygomatic xylophone."

    other = changed(paired_dataset, tmp_path / "other", rewrite)
    assert learner(paired_dataset).data.facts == learner(other).data.facts


def test_a_stopped_run_ends_with_the_bits_of_one_never_stopped(paired_dataset: Path, cyclic: Cyclic) -> None:
    every = ("--epochs", 3, "--set", f"objectives={EVERY}", "--set", "checkpoint_steps=1")
    assert cyclic(*words(paired_dataset, *every, "--out", "whole")).code == 0
    stopped_after(7, words(paired_dataset, *every, "--out", "parts"))
    ran = cyclic(*words(paired_dataset, *every, "--out", "parts", "--resume", "must"))
    assert ran.code == 0, ran.err
    assert ran.json["resumed_from_step"] == 7
    assert weights(Path("whole")) == weights(Path("parts"))
    last = [row["losses"] for row in (rows(Path(name), "step")[-1] for name in ("whole", "parts"))]
    assert last[0] == last[1]


def test_two_processes_learn_what_one_does(paired_dataset: Path, tmp_path: Path, cyclic: Cyclic) -> None:
    every = ("--batch-size", 96, "--epochs", 25, "--lr", 1e-5, "--precision", 32, "--set", f"objectives={EVERY}")
    assert cyclic(*words(paired_dataset, *every, "--out", tmp_path / "one")).code == 0
    several = words(paired_dataset, *every, "--out", tmp_path / "two", "--devices", 2)
    run_in_processes(several, tmp_path / "cache")
    assert gradient_difference(tmp_path / "one", tmp_path / "two") < 1e-2  # rounding is a thousandth of that
    steps = [rows(tmp_path / name, "step") for name in ("one", "two")]
    for first, second in zip(*steps, strict=True):
        assert first["losses"] == pytest.approx(second["losses"], rel=1e-4)
    assert steps[0][-1]["step"] == 50  # when norms are measured
    assert len(steps[0][-1]["gradient_norms"]) == 8
    assert steps[0][-1]["gradient_norms"] == pytest.approx(steps[1][-1]["gradient_norms"], rel=1e-4)


def test_the_settings_of_the_image_modality_override_arch(paired_dataset: Path, cyclic: Cyclic) -> None:
    ran = cyclic(*words(paired_dataset, "--out", "run", "--set", "modalities.image={arch: conv, model: {}}"))
    assert ran.code == 0, ran.err
    kept = read_checkpoint(Path("run/model.safetensors"))
    assert ran.json["arch"] == kept.provenance["settings"]["arch"] == "conv"
    assert kept.architecture["config"]["modalities"]["image"]["arch"] == "conv"


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_schedules_delay_objectives_and_gradient_norms_are_logged(
    precision: str, paired_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cyclic_cli.training.alignment.NORMS_EVERY", 5)
    monkeypatch.setattr("cyclic_cli.training.run_log.LOG_EVERY", 5)
    settings = (f"objectives={MIXED}", f"precision={precision}")
    ran = cyclic(
        *words(paired_dataset, "--epochs", 5, "--out", "run", *(word for one in settings for word in ("--set", one)))
    )
    assert ran.code == 0, ran.err
    logged = rows(Path("run"), "step")
    assert logged[0]["losses"]["walk"] == 0
    assert logged[-1]["losses"]["walk"] > 0
    assert "walk" not in logged[0]["gradient_norms"]
    norms = logged[-1]["gradient_norms"]
    assert set(norms) == {"contrastive", "geometry", "visit", "walk"}
    assert all(norm > 0 for norm in norms.values())


def test_the_weight_of_a_schedule_rises_linearly() -> None:
    term = TrainConfig(objectives={"walk": {"weight": 2, "start": 0.2, "full": 0.6}}).terms[0]
    assert [term.at(place) for place in (0, 0.19, 0.2, 0.4, 0.6, 1)] == pytest.approx([0, 0, 0, 1, 2, 2])
    assert TrainConfig(objectives={"walk": 0.5}).terms[0].at(0) == 0.5


def test_scarce_objectives_are_weighted_by_the_share_of_unpaired_items(paired_dataset: Path) -> None:
    for paired_fraction in (0.4, 1.0):
        one = learner(paired_dataset, paired_fraction=paired_fraction)
        chosen = len(one.data.mixture.paired)
        images, texts = len(one.data.mixture.pools["image"]), len(one.data.mixture.pools["text"])
        share = 1 - 2 * chosen / (images + texts)
        weights = one.weights(one.steps - 1)
        assert weights["geometry"] == pytest.approx(PRESETS["cyclic"]["geometry"]["weight"] * share)
        assert weights["contrastive"] == 1
    assert 0 < share < 0.1  # some have no report


def test_nothing_is_learned_while_no_objective_has_a_weight(paired_dataset: Path, tmp_path: Path) -> None:
    late = {"walk": {"weight": 1.0, "start": 1.0}}
    settings = {"objective": "cyclic", "objectives": late, "arch": "linear", "epochs": 1, "weight_decay": 0.0}
    for name, rate in (("run", 0.003), ("still", 0.0)):
        train(paired_dataset, tmp_path / name, train_settings(settings | {"lr": rate}))
    assert weights(tmp_path / "run") == weights(tmp_path / "still")


def test_data_without_pairs_and_further_sources_train(
    paired_dataset: Path, tiny_dataset: Path, cyclic: Cyclic, tmp_path: Path
) -> None:
    ran = cyclic(*words(paired_dataset, "--epochs", 1, "--out", "none", paired=0))
    assert ran.code == 0, ran.err
    alone = ("--also", tiny_dataset, "--epochs", 1)
    assert cyclic(*words(paired_dataset, *alone, "--out", "also")).code == 0
    said = read_checkpoint(Path("also/model.safetensors")).provenance
    assert said["also"] == [StoredDataset(tiny_dataset).facts.fingerprint]
    assert str(tiny_dataset) not in json.dumps(said)
    other = cyclic(*words(paired_dataset, "--epochs", 1, "--out", "also", "--resume", "auto"))
    assert other.code == 1
    assert "another" in other.err


def test_inactive_objectives_are_named_and_runs_with_no_other_are_refused(paired_dataset: Path, cyclic: Cyclic) -> None:
    data = ("--set", "start=data")
    said = cyclic("train", paired_dataset, "--objective", "cyclip", "--paired-fraction", 0, *data, "--out", "none")
    assert said.code == 2
    assert "contrastive, geometry" in said.err
    small = ("--arch", "linear", "--epochs", 1, "--set", "model.latent=32")
    said = cyclic("train", paired_dataset, "--objective", "cyclic", "--paired-fraction", 0, *small, "--out", "some")
    assert said.code == 0, said.err
    assert "0 samples are paired; inactive objectives, which need pairs: translation, contrastive, geometry" in said.err
    assert "Next: cyclic evaluate" in said.err
    assert json.loads(Path("some/summary.json").read_text())["steps"] >= 4


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (("--objective", "contrastive", "--batch-size", 1), "two samples per batch"),
        (("--objective", "cyclic", "--also", "DATASET"), "dataset itself"),
        (("--paired-fraction", 0.5), "--paired-fraction is for image–text models"),
        (("--objective", "cyclic", "--set", "objectives={contrastive: true}"), "contrastive is not a number"),
    ],
)
def test_settings_without_a_use_are_refused(
    asked: tuple[Any, ...], error: str, paired_dataset: Path, cyclic: Cyclic
) -> None:
    given = [str(paired_dataset) if word == "DATASET" else word for word in asked]
    said = cyclic("train", paired_dataset, "--arch", "linear", *given, "--out", "none")
    assert said.code == 2
    assert error in said.err


def test_a_run_may_be_initialised_from_the_weights_of_another(paired_dataset: Path, cyclic: Cyclic) -> None:
    first = ("--set", "objectives={reconstruction: 1}")
    assert cyclic(*words(paired_dataset, "--epochs", 2, "--out", "first", *first, paired=0)).code == 0
    still = ("--lr", 0, "--epochs", 1, "--out", "still", "--init-from", "first")
    assert cyclic(*words(paired_dataset, *still, objective="contrastive")).code == 0
    assert weights(Path("first")) == weights(Path("still"))
    wrong = cyclic(*words(paired_dataset, "--out", "wrong", "--init-from", "first", "--set", "embedding=8"))
    assert wrong.code == 1
    assert "holds another model" in wrong.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "objectives={similarity: 1}"], "no image–text model gives"),
        (["--set", "objectives={walk: {weight: 1, sharpnes: 3}}"], "sharpness"),
        (["--set", "objectives={walk: {weight: heavy}}"], "number"),
        (["--set", "objectives={walk: {sharpness: .nan}}"], "above 0"),
        (["--set", "objectives={walk: {scarce: maybe}}"], "true or false"),
        (["--set", "objectives={walk: {start: 0.5, full: 0.2}}"], "start ≤ full"),
        (["--set", "objectives={latent_cycle: 1}"], "Unknown objective: 'latent_cycle'"),
        (["--set", "strategy=fsdp"], "ddp"),
        (["--set", "modalities={image: {}}"], "two modalities"),
        (["--set", "modalities={image: {}, sound: {}}"], "sound"),
        (["--set", "modalities={image: {}, text: {arch: bags}}"], "bag"),
        (["--paired-fraction", 2], "paired_fraction"),
        (["--arch", "nothing"], "nothing"),
    ],
)
def test_impossible_settings_are_refused_with_a_way_out(
    more: list[object], said: str, paired_dataset: Path, cyclic: Cyclic
) -> None:
    ran = cyclic(*words(paired_dataset, "--out", "run", *more))
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert not Path("run/model.safetensors").exists()


def test_settings_of_a_modality_are_set_by_their_path(paired_dataset: Path, cyclic: Cyclic) -> None:
    paths = ("--set", "modalities.text.arch=transformer", "--set", "modalities.text.model.width=32")
    assert cyclic(*words(paired_dataset, "--epochs", 1, "--out", "run", *paths)).code == 0
    config = read_checkpoint(Path("run/model.safetensors")).architecture["config"]["modalities"]
    assert set(config) == {"image", "text"}
    assert config["text"]["arch"] == "transformer"
    assert config["text"]["model"] == {"width": 32}
    assert config["image"]["arch"] == "linear"
    assert "not a table" in cyclic(*words(paired_dataset, "--set", "embedding.width=8")).err


def test_a_dataset_without_reports_is_refused(tiny_files: Path, tmp_path: Path, cyclic: Cyclic) -> None:
    images = sorted(tiny_files.rglob("*.png"))[1::2]  # those without a report beside them
    cyclic("prepare", *images, "--out", "images", "--size", 32, "--already-deidentified")
    ran = cyclic(*words(Path("images"), "--out", "run"))
    assert ran.code == 1
    assert "modality 'text'" in ran.err
    assert "--also" in ran.err
    assert cyclic("train", "images", "--also", "images", "--out", "plain").code == 2


TABULAR = '''
"""Age, sex and labels beside an image as a third modality. Any of them may be unknown."""
from dataclasses import dataclass
import numpy as np
import torch
from torch import nn

COLUMNS = ("label_age", "label_sex", "label_view", "disc")
WORDS = {"label_sex": "F", "label_view": "PA"}

@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 8

def numbers(index):
    columns = [
        [np.nan if not value else float(value == WORDS[name]) for value in index[name].tolist()]
        if name in WORDS else index[name] for name in COLUMNS
    ]
    return np.stack(columns, 1).astype(np.float32)

def present(index):
    return ~np.isnan(numbers(index)).all(1)

def fit(dataset, index, config):
    values = numbers(index)
    return {"mean": np.nanmean(values, 0).tolist(), "spread": np.nanstd(values, 0).tolist()}

class Samples:
    def __init__(self, dataset, index, config, facts):
        self.values = numbers(index)
        self.keys = np.array([int(sample[:16], 16) for sample in index["sample"]], np.uint64)
    def __len__(self):
        return len(self.keys)
    def load(self, chosen):
        return torch.from_numpy(self.values[chosen])
    def augmented(self, value, keys, seed, epoch):
        return value

class Encoder(nn.Module):
    fitted = False
    def __init__(self, config, facts):
        super().__init__()
        self.code = config.width
        self.register_buffer("mean", torch.tensor(facts["mean"]))
        self.register_buffer("spread", torch.tensor(facts["spread"]))
        self.into, self.out = nn.Linear(2 * len(COLUMNS), config.width), nn.Linear(config.width, len(COLUMNS))
    def initialise(self, values):
        for _ in values: pass
    def encode(self, value):
        known = ~value.isnan()
        return self.into(torch.cat([torch.where(known, (value - self.mean) / self.spread, 0.0), known.float()], 1))
    def decode(self, code):
        return self.out(code) * self.spread + self.mean
    def errors(self, code, value):
        known = ~value.isnan()
        apart = torch.where(known, (self.decode(code) - value) / self.spread, 0.0)
        return apart.square().sum(1) / known.sum(1)
    def soft_decode(self, code):
        return self.decode(code)
'''


def test_a_third_modality_joins_by_a_file(
    paired_dataset: Path, tmp_path: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/tabular.py").write_text(TABULAR)
    monkeypatch.setattr(cyclic_cli.modalities, "__path__", [*cyclic_cli.modalities.__path__, str(tmp_path / "more")])
    files = paired_dataset.parent / "files"
    header, *lines = (files / "reports.csv").read_text().splitlines()
    table = [f"{header},age,sex,view"]
    for number, line in enumerate(lines):  # two thirds have the label disc; some of the others lack all labels
        line = line if number % 3 else line.rpartition(",")[0] + ","
        age, sex, view = 20 + number % 60, "FM"[number % 2], ("PA", "AP")[number % 7 == 0]
        table.append(line + (",,," if number % 9 == 0 else f",{age if number % 4 else ''},{sex},{view}"))
    Path("table.csv").write_text("\n".join(table) + "\n")
    labels = [word for name in ("disc", "age", "sex", "view") for word in ("--label-column", name)]
    prepared = cyclic(
        "prepare", *sorted(files.glob("*.png")), "--reports", "table.csv", "--size", 32, "--already-deidentified",
        "--split", "70/30/0", *labels, "--out", "three",
    )  # fmt: skip
    assert prepared.code == 0, prepared.err
    three = ("--set", "modalities={image: {}, text: {}, tabular: {width: 4}}", "--set", f"objectives={EVERY}")
    ran = cyclic(*words(Path("three"), "--epochs", 2, "--out", "run", *three))
    assert ran.code == 0, ran.err
    found = cyclic("evaluate", "three", "--model", "run", "--json").json
    ways = {f"{a}_to_{b}" for a in ("image", "text", "tabular") for b in ("image", "text", "tabular") if a != b}
    assert set(found["retrieval"]) == ways == set(found["consistency"])
    pools = {way: found["retrieval"][way]["strict"]["pool"] for way in ways}
    assert pools["image_to_tabular"] < pools["image_to_text"]  # some samples have an image and a report, but no labels
    assert set(found["reconstruction"]["relative_error"]) == {"image", "text", "tabular"}
    assert set(found["linear_probe"]["disc"]) == {"image", "text", "tabular"}
    exported = cyclic("export", "--model", "run", "--part", "all", "--dataset", "three", "--json")
    assert exported.code == 0, exported.err
    assert any("tabular" in part for part in exported.json["parts"])
    sys.modules.pop("cyclic_cli.modalities.tabular", None)


def test_a_checkpoint_rebuilds_its_model_and_a_tampered_one_is_refused(paired_dataset: Path, tmp_path: Path) -> None:
    train(paired_dataset, tmp_path / "run", train_settings({"objective": "cyclic", "arch": "linear", "epochs": 1}))
    checkpoint = read_checkpoint(tmp_path / "run/model.safetensors")
    model = rebuild(checkpoint.architecture, "here")
    model.load_state_dict({name: torch.from_numpy(value) for name, value in checkpoint.weights.items()})
    for change in ({"config": {}}, {"facts": {}}, {"facts": {"image": {"image_shape": [1, 32, 32]}, "text": {}}}):
        with pytest.raises((CyclicError, UsageError)):
            rebuild({**checkpoint.architecture, **change}, "here")


@pytest.mark.slow
def test_info_gives_the_command_that_reproduces_a_model_and_omits_the_vocabulary(
    paired_dataset: Path, cyclic: Cyclic
) -> None:
    mixture = ("--set", f"objectives={MIXED}", "--set", "modalities={image: {}, text: {vocabulary: 300}}")
    assert cyclic(*words(paired_dataset, "--epochs", 1, "--out", "run", *mixture)).code == 0
    said = cyclic("info", "run", "--json")
    assert "merges" not in said.out
    command = said.json["checkpoint"]["reproduce"].replace("DATASET", str(paired_dataset))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    again = ["bash", "-c", f"{command} --out again --quiet --json"]
    subprocess.run(again, check=True, env=os.environ | {"PATH": path}, capture_output=True, timeout=200)
    assert weights(Path("run")) == weights(Path("again"))


def test_cycle_outputs_equal_their_computation_part_by_part(paired_dataset: Path) -> None:
    """Each output of an image–text model against the same composition of encoders, heads and expansions."""
    one = learner(paired_dataset, private=4, embedding=8)
    model, numbers = one.module.eval(), np.arange(5)
    one.initialise(lambda *_: None, silent)
    values = {name: pool.load(numbers) for name, pool in one.data.mixture.pools.items()}
    samples = {name: torch.arange(5) for name in values}
    needs = ["data_cycle", "reconstruction", "translation"]
    outputs = model(values, samples, needs, {name: torch.ones(5) for name in values})
    for a, b in (("image", "text"), ("text", "image")):
        encoders, heads, expansions = model.encoders, model.heads, model.expansions
        code = encoders[a].encode(values[a])
        shared, private = heads[a](code)[:, :8], heads[a](code)[:, 8:]
        shared = shared / shared.norm(dim=1, keepdim=True)
        there = expansions[b](torch.cat([shared, torch.zeros(5, 4)], 1))
        drawn = heads[b](encoders[b].encode(encoders[b].soft_decode(there)))[:, :8]
        drawn = drawn / drawn.norm(dim=1, keepdim=True)
        back = expansions[a](torch.cat([drawn, private], 1))
        torch.testing.assert_close(outputs["data_cycle"][a, b], encoders[a].errors(back, values[a]))
        own = expansions[a](torch.cat([shared, private], 1))
        torch.testing.assert_close(outputs["reconstruction"][a], encoders[a].errors(own, values[a]))
        torch.testing.assert_close(outputs["translation"][a, b], encoders[b].errors(there, values[b]))
    decoder = list(model.expansions["text"].parameters())
    total = outputs["data_cycle"]["image", "text"].sum()
    gradients = torch.autograd.grad(total, decoder)
    assert any(gradient.any() for gradient in gradients)  # the decoded content passes gradients on


@pytest.mark.parametrize(("arch", "fitted"), [("bag", True), ("transformer", False)])
def test_unpaired_samples_do_not_train_a_fitted_encoder(arch: str, fitted: bool, paired_dataset: Path) -> None:
    one = learner(
        paired_dataset,
        paired_fraction=0.0,
        objectives={"walk": 1.0},
        modalities={"image": {}, "text": {"arch": arch}},
    )
    one.initialise(lambda *_: None, silent)
    model, chosen = one.module, one.batch(0)
    values = {name: one.data.mixture.pools[name].load(numbers) for name, numbers in chosen.numbers.items()}
    samples = {name: torch.from_numpy(of) for name, of in chosen.samples.items()}
    outputs = model(values, samples, one.objectives.needs, {})
    one.objectives.files["walk"].loss(outputs, {"sample": samples}).backward()
    moved = {
        name: any(part.grad is not None and bool(part.grad.any()) for part in of.parameters())
        for name, of in (("image", model.encoders["image"]), ("text", model.encoders["text"]), ("heads", model.heads))
    }
    assert moved == {"image": False, "text": not fitted, "heads": True}
    rates = {group["share"] for group in one.parameter_groups() if group["params"]}
    assert rates == {1.0, one.config.fitted_lr}


def test_the_contrastive_scale_is_limited_and_may_fall_again(paired_dataset: Path) -> None:
    model = learner(paired_dataset).module
    with torch.no_grad():
        model.log_scale.fill_(7.0)
    values = {"image": torch.rand(2, 1, 32, 32), "text": torch.ones(2, 4, dtype=torch.long)}
    samples = {name: torch.arange(2) for name in values}
    scale = model(values, samples, ["scale"], {})["scale"]
    assert scale.item() == pytest.approx(100)
    scale.backward()
    assert model.log_scale.grad.item() == pytest.approx(100)


def test_codes_of_unpaired_samples_are_those_of_the_encoder(paired_dataset: Path) -> None:
    """In any order of paired and unpaired samples in a batch, and without pairs."""
    one = learner(paired_dataset)
    one.initialise(lambda *_: None, silent)
    model, pool = one.module, one.data.mixture.pools["image"]
    value = pool.load(np.arange(6))
    for samples in ([0, UNPAIRED, 2, UNPAIRED, UNPAIRED, 5], [UNPAIRED] * 6, list(range(6))):
        outputs = model({"image": value}, {"image": torch.tensor(samples)}, [], {})
        torch.testing.assert_close(outputs["embedding"]["image"], model.embed("image", value))
