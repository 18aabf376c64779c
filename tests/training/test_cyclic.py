"""`--objective cyclic` as a user runs it: what it keeps, what it says, and which patients are paired."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.makers import Ran
from helpers.run_files import weights

from cyclic_cli.commands import _closed_form
from cyclic_cli.config import read_run_file
from cyclic_cli.data.mixture import may_be_paired
from cyclic_cli.evaluation import measure_baselines
from cyclic_cli.privacy.keys import paired_place
from cyclic_cli.storage.checkpoint import read_checkpoint
from cyclic_cli.storage.dataset import StoredDataset

Cyclic = Callable[..., Ran]
FEW = ("--paired-fraction", 0.4)


def trained(cyclic: Cyclic, dataset: Path, out: str, *more: object, objective: str = "cyclic") -> Ran:
    ran = cyclic("train", dataset, "--objective", objective, "--out", out, "--json", *more)
    assert ran.code == 0, ran.err
    return ran


def same_weights(one: str, other: str) -> bool:
    return weights(Path(one)) == weights(Path(other))


def test_a_run_says_what_it_kept(paired_dataset: Path, cyclic: Cyclic) -> None:
    ran = trained(cyclic, paired_dataset, "run", *FEW)
    found = ran.json["alignment"]["cycle"]
    assert (found["rounds"], found["partners"], found["entropy"]) == (1, 0.5, 0.15)
    assert found["rule"] == "mean log rank in folds over patients"
    index = StoredDataset(paired_dataset).rows(["patient", "has_image", "has_text"], "train")
    paired = may_be_paired(index["patient"], 0.4) & index["has_image"] & index["has_text"]
    texts = index["has_text"].sum() - paired.sum()  # fewer than the images
    assert ran.json["alignment"]["pairs"] == paired.sum()
    assert found["weight"] == pytest.approx(texts / (texts + paired.sum()))
    ratio = np.exp(ran.json["alignment"]["mean_log_rank"] - found["mean_log_rank"])
    assert found["gain_on_folds"] == pytest.approx(ratio - 1)
    kept = "return accepted, " if found["kept"] == "return" else "closed form kept: the return gives "
    assert f"{kept}{100 * found['gain_on_folds']:+.1f} % on folds" in ran.err
    assert (ran.json["steps"], ran.json["epochs"]) == (0, 0)
    stored = read_checkpoint(Path("run/model.safetensors")).architecture
    assert stored["alignment"]["cycle"] == found
    assert sum(one["dims"] for one in stored["config"]["blocks"]) == embedding_of(Path("run"))
    trained(cyclic, paired_dataset, "again", *FEW)
    assert same_weights("run", "again")


def embedding_of(run: Path) -> int:
    """The dimensions of the embedding."""
    return len(read_checkpoint(run / "model.safetensors").weights["heads.image.weight"])


def test_the_rule_decides(paired_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(cyclic, paired_dataset, "closed", *FEW, objective="aligned")
    ran = trained(cyclic, paired_dataset, "always", *FEW, "--set", "cycle_rule=always")
    assert (ran.json["alignment"]["cycle"]["kept"], ran.json["alignment"]["cycle"]["rule"]) == ("return", "always")
    assert "return accepted" in ran.err
    assert not same_weights("always", "closed")
    monkeypatch.setattr("cyclic_cli.alignment.cycle.passes", lambda scores, closed: False)
    ran = trained(cyclic, paired_dataset, "refused", *FEW)
    assert ran.json["alignment"]["cycle"]["kept"] == "closed form"
    assert "closed form kept: the return gives " in ran.err
    assert same_weights("refused", "closed")
    refused = cyclic("train", paired_dataset, "--objective", "cyclic", "--set", "cycle_rule=sometimes")
    assert refused.code == 2
    assert "Unknown cycle rule: 'sometimes'." in refused.err
    assert "folds, always" in refused.err


def test_without_unpaired_texts_the_closed_form_is_kept(paired_dataset: Path, cyclic: Cyclic) -> None:
    trained(cyclic, paired_dataset, "closed", objective="aligned")
    ran = trained(cyclic, paired_dataset, "run", "--set", "cycle_rule=always")
    assert ran.json["alignment"]["cycle"]["kept"] == "closed form"
    assert "closed form kept: no unpaired samples of both modalities" in ran.err
    assert same_weights("run", "closed")


def test_other_datasets_join_the_unpaired_samples(paired_dataset: Path, tiny_dataset: Path, cyclic: Cyclic) -> None:
    alone = trained(cyclic, paired_dataset, "alone", *FEW).json["alignment"]
    both = trained(cyclic, paired_dataset, "both", *FEW, "--also", tiny_dataset).json["alignment"]
    assert both["pairs"] == alone["pairs"]
    texts = [
        pairs * weight / (1 - weight)
        for pairs, weight in ((one["pairs"], one["cycle"]["weight"]) for one in (alone, both))
    ]
    more = StoredDataset(tiny_dataset).rows(["has_text"], "train")["has_text"].sum()
    assert texts[1] - texts[0] == pytest.approx(more)
    assert not same_weights("alone", "both")


# ------------------------------------------------------------------------------------------ as people read it

FOUND: dict[str, Any] = {
    "map": "both", "regularisation": {"cca": 0.3, "ridge": 3.0}, "dims": 323,
    "parts": {"image": ["pixels", "levels"], "text": ["terms"]}, "rule": "mean log rank in folds over patients",
    "mean_log_rank": 0.58812, "standard_error": 0.1224, "pairs": 1042, "patients": 42, "folds": 15,
}  # fmt: skip
CYCLE: dict[str, Any] = {
    "kept": "return", "rule": "mean log rank in folds over patients", "gain_on_folds": 0.0312, "weight": 0.75,
    "partners": 0.5, "entropy": 0.15, "rounds": 1,
}  # fmt: skip


def test_the_closed_form_is_shown_in_a_few_lines() -> None:
    assert _closed_form.shown(FOUND) == {
        "map": "both, regularised by cca 0.3, ridge 3; 323 dimensions",
        "image code": "pixels, levels",
        "text code": "terms",
        "pairs": "1,042 of 42 patients",
        "chosen by": "mean log rank 0.588 ± 0.122 in 15 folds",
    }
    few = FOUND | {"mean_log_rank": None, "standard_error": None, "folds": 0, "rule": "default, for few"}
    assert _closed_form.shown(few)["chosen by"] == "default, for few"
    assert _closed_form.shown({}) == {}
    assert _closed_form.shown({"map": "cca"}) == {"map": "cca"}  # of another version


@pytest.mark.parametrize(
    ("cycle", "said"),
    [
        ({}, "accepted, +3.1 % on folds"),
        ({"rule": "always", "gain_on_folds": None}, "accepted, as cycle_rule=always asks"),
        ({"rule": "always"}, "accepted, as cycle_rule=always asks, +3.1 % on folds"),
        ({"kept": "closed form", "gain_on_folds": -0.021}, "closed form kept: it gives -2.1 % on folds"),
        (
            {"kept": "closed form", "gain_on_folds": None, "rule": "no unpaired samples of both modalities"},
            "closed form kept: no unpaired samples of both modalities",
        ),
    ],
)
def test_the_return_is_shown_in_a_line(cycle: dict[str, Any], said: str) -> None:
    lines = _closed_form.shown(FOUND | {"cycle": CYCLE | cycle})
    assert lines["return"] == said
    settings = "plan entropy 0.15, partners 0.5, weight 0.75, 1 round"
    assert lines.get("completed by") == (settings if said.startswith("accepted") else None)


def test_train_and_info_show_these_lines(paired_dataset: Path, cyclic: Cyclic) -> None:
    always = ("--set", "cycle_rule=always")
    ran = cyclic("train", paired_dataset, "--objective", "cyclic", "--out", "run", *FEW, *always)
    for said in (ran, cyclic("info", "run"), cyclic("info", "run/model.safetensors")):
        assert said.code == 0, said.err
        lines = [" ".join(line.split()) for line in said.out.splitlines()]
        assert any(line.startswith("return accepted, as cycle_rule=always asks, ") for line in lines)
        assert "completed by plan entropy 0.15, partners 0.5, weight 0.55, 1 round" in lines
        assert any(line.startswith("pairs 42 of 42 patients") for line in lines)
        assert "{'" not in said.out
        start = next(place for place, line in enumerate(lines) if line == "alignment")
        assert max(map(len, said.out.splitlines()[start : start + 8])) <= 80
    found = cyclic("info", "run", "--json").json["checkpoint"]["architecture"]["alignment"]
    assert found["cycle"]["kept"] == "return"
    assert found["parts"]["text"] == ["terms"]


# ------------------------------------------------------------------------------------------ which are paired

PATIENTS = np.array([f"{number:032x}" for number in range(3000)])


def test_each_seed_draws_other_patients() -> None:
    first = may_be_paired(PATIENTS, 0.3)
    assert first.tolist() == [paired_place(key) < 0.3 for key in PATIENTS.tolist()]  # that of earlier versions
    assert may_be_paired(PATIENTS, 0.3, 0).tolist() == first.tolist()
    several = np.stack([may_be_paired(PATIENTS, 0.3, seed) for seed in range(6)])
    assert several.mean(axis=1) == pytest.approx(np.full(6, 0.3), abs=0.03)  # 3.6 standard deviations
    for one, other in ((0, 1), (1, 2), (4, 5)):
        assert (several[one] & several[other]).mean() == pytest.approx(0.09, abs=0.02)
    assert not (may_be_paired(PATIENTS, 0.3, 4) & ~may_be_paired(PATIENTS, 0.5, 4)).any()  # nested
    assert paired_place("00") == pytest.approx(0.012975652993288067)


def test_the_seed_of_a_run_is_that_of_its_baselines_and_of_its_captions(
    paired_dataset: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[np.ndarray] = []
    usual = may_be_paired

    def spied(*given: Any) -> np.ndarray:
        drawn.append(usual(*given))
        return drawn[-1]

    numbers = {}
    for seed in (0, 3):
        ran = trained(cyclic, paired_dataset, f"seed{seed}", *FEW, "--set", f"paired_seed={seed}", objective="aligned")
        numbers[seed] = ran.json["alignment"]["pairs"]
    assert not same_weights("seed0", "seed3")
    trained(cyclic, paired_dataset, "default", *FEW, objective="aligned")
    assert same_weights("default", "seed0")
    monkeypatch.setattr(measure_baselines, "may_be_paired", spied)
    said = cyclic("evaluate", paired_dataset, "--model", "seed3", "--baselines", "--json")
    assert said.code == 0, said.err
    patients = StoredDataset(paired_dataset).rows(["patient"], "train")["patient"]
    wanted = usual(patients, 0.4, 3)
    assert [one.tolist() for one in drawn] == [wanted.tolist()]
    assert wanted.tolist() != usual(patients, 0.4).tolist()
    small = ("--init-from", "seed3", "--epochs", 1, "--set", "model.width=16", "--set", "model.layers=1")
    trained(cyclic, paired_dataset, "captions", *small, objective="captioning")
    settings = read_run_file(Path("captions/config.yaml"))
    assert (settings["paired_seed"], settings["paired_fraction"]) == (3, 0.4)
    again = cyclic(
        "train", paired_dataset, "--objective", "captioning", "--init-from", "seed3", "--set", "paired_seed=4"
    )
    assert again.code == 2
    assert "paired_seed=3" in again.err


@pytest.mark.parametrize("value", ["-1", "0.5"])
def test_seeds_are_whole_numbers(value: str, paired_dataset: Path, cyclic: Cyclic) -> None:
    said = cyclic("train", paired_dataset, "--objective", "aligned", "--set", f"paired_seed={value}")
    assert said.code == 2
    assert "paired_seed" in said.err
