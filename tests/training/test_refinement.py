"""Residual heads that are held to the closed form: where they start, what training moves, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.makers import Ran
from helpers.run_files import gradient_difference, rows, weights
from helpers.several_processes import run_in_processes
from helpers.stopping import stopped_after

from cyclic_cli.config import REFINEMENT, PrepareConfig, Preprocessing
from cyclic_cli.errors import CyclicError
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.models._rebuilding import rebuild
from cyclic_cli.prepare.task import prepare
from cyclic_cli.storage.checkpoint import read_checkpoint
from cyclic_cli.storage.dataset import StoredDataset

Cyclic = Callable[..., Ran]
REFINED = ("--set", "refine=true", "--paired-fraction", 0.5)


def words(dataset: Path, out: object, *more: object, objective: str = "cyclic") -> list[object]:
    return ["train", dataset, "--objective", objective, "--out", out, "--json", *more]


def contents(dataset: Path) -> tuple[np.ndarray, list[str]]:
    """The images (N, C, H, W) and texts of the validation pairs."""
    stored = StoredDataset(dataset)
    index = stored.rows(["has_image", "has_text", "shard", "row", "text"], "val")
    both = index["has_image"] & index["has_text"]
    return stored.images(index["shard"][both], index["row"][both]), index["text"][both].tolist()


def test_residual_heads_start_at_the_closed_form_bit_for_bit(paired_dataset: Path, cyclic: Cyclic) -> None:
    closed = cyclic(*words(paired_dataset, "closed", "--paired-fraction", 0.5))
    still = cyclic(*words(paired_dataset, "still", *REFINED, "--epochs", 1, "--lr", 0))
    assert (closed.code, still.code) == (0, 0), closed.err + still.err
    assert still.json["best_epoch"] == 0
    one, other = weights(Path("closed")), weights(Path("still"))
    added = {name for name in other if name.startswith("residuals.")}
    assert other.keys() - added == one.keys()
    assert all(other[name] == one[name] for name in one)
    assert not any(
        np.frombuffer(other[f"residuals.{name}.outer.weight"], np.float32).any() for name in ("image", "text")
    )
    models = [TorchModel(Path(run) / "model.safetensors") for run in ("closed", "still")]
    images, texts = contents(paired_dataset)
    for first, second in (
        [model.embed_images(images) for model in models],
        [model.embed_texts(texts) for model in models],
    ):
        assert first.tobytes() == second.tobytes()


def test_training_moves_the_residual_heads_alone_and_never_loses_the_closed_form(
    paired_dataset: Path, cyclic: Cyclic
) -> None:
    assert cyclic(*words(paired_dataset, "closed", "--paired-fraction", 0.5)).code == 0
    ran = cyclic(*words(paired_dataset, "run", *REFINED, "--epochs", 2))
    assert ran.code == 0, ran.err
    epochs, steps = rows(Path("run"), "epoch"), rows(Path("run"), "step")
    assert ran.json["val"]["rank"] <= epochs[0]["val"]["rank"]
    assert set(steps[0]["losses"]) == {*REFINEMENT, "total"}
    assert all(np.isfinite(list(row["losses"].values())).all() for row in steps)
    assert steps[-1]["losses"]["anchor"] > 0
    last = read_checkpoint(max(Path("run/state").iterdir()) / "model.safetensors").weights
    closed = weights(Path("closed"))
    changed = {name for name in closed if last[name].tobytes() != closed[name]}
    assert changed == {"log_scale"}
    assert all(last[f"residuals.{name}.outer.weight"].any() for name in ("image", "text"))


def test_without_validation_folds_decide_how_long_residual_heads_are_trained(
    paired_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    files, dataset = paired_dataset.parent / "files", tmp_path / "dataset"
    config = PrepareConfig(preprocessing=Preprocessing(size=32), already_deidentified=True, split=(1.0, 0, 0))
    prepare([files], dataset, config, [files / "reports.csv"])
    ran = cyclic(*words(dataset, "run", *REFINED, "--epochs", 2))
    assert ran.code == 0, ran.err
    assert "folds of the known pairs decide" in ran.err
    ranks = [row["val"]["rank_on_folds"] for row in rows(Path("run"), "epoch")]
    assert len(ranks) == 3
    assert len(set(ranks)) > 1
    assert ran.json["best_epoch"] == int(np.argmin(ranks))


def test_a_stopped_run_ends_with_the_bits_of_one_never_stopped(paired_dataset: Path, cyclic: Cyclic) -> None:
    more = (*REFINED, "--epochs", 2)
    assert cyclic(*words(paired_dataset, "whole", *more)).code == 0
    parts = list(map(str, words(paired_dataset, "parts", *more)))
    stopped_after(5, parts)
    ran = cyclic(*parts, "--resume", "must")
    assert ran.code == 0, ran.err
    assert ran.json["resumed_from_step"] == 5
    states = [max((Path(run) / "state").iterdir()) / "model.safetensors" for run in ("whole", "parts")]
    one, other = (read_checkpoint(state).weights for state in states)
    assert one.keys() == other.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    assert weights(Path("whole")) == weights(Path("parts"))


def test_a_trained_model_is_used_and_measured_like_others(paired_dataset: Path, cyclic: Cyclic) -> None:
    assert cyclic(*words(paired_dataset, "run", *REFINED, "--epochs", 2)).code == 0
    state = max(Path("run/state").iterdir()) / "model.safetensors"
    shutil.copy(state, "run/model.safetensors")  # the last epoch, whether it is the best or not
    model, (images, texts) = TorchModel(Path("run/model.safetensors")), contents(paired_dataset)
    held = read_checkpoint(Path("run/model.safetensors")).architecture["config"]["residual"]
    assert model.module.residuals["image"].inner.out_features == held
    for name, found in (("image", model.embed_images(images)), ("text", model.embed_texts(texts))):
        given = model.images(images) if name == "image" else model.texts(texts)
        fixed = model.module.closed_form(name, model.module.latent(name, given)).numpy()
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
        assert 0 < np.square(found - fixed).sum(1).mean() < 1
    assert cyclic("evaluate", paired_dataset, "--model", "run", "--json").code == 0
    scan = paired_dataset.parent / "files" / "001.png"
    assert cyclic("reconstruct", scan, "--model", "run", "--out", "drawn").code == 0
    captioned = cyclic(*words(paired_dataset, "words", "--init-from", "run", "--epochs", 1, objective="captioning"))
    assert captioned.code == 0, captioned.err
    writer = TorchModel(Path("words/model.safetensors"))
    assert writer.embed_images(images).tobytes() == model.embed_images(images).tobytes()


def test_damaged_residual_heads_are_refused(paired_dataset: Path, cyclic: Cyclic) -> None:
    assert cyclic(*words(paired_dataset, "run", *REFINED, "--epochs", 1)).code == 0
    architecture = read_checkpoint(Path("run/model.safetensors")).architecture
    assert rebuild(architecture, "here").state_dict().keys() == weights(Path("run")).keys()
    for residual in (0, -1, 2.5, "wide", [8], 2**40):
        with pytest.raises(CyclicError, match="cannot be built"):
            rebuild({**architecture, "config": architecture["config"] | {"residual": residual}}, "here")


@pytest.mark.parametrize(
    ("more", "objective", "message"),
    [
        (("--set", "refine=true"), "aligned", "the closed form itself"),
        (("--set", "refine=true"), "autoencode", "for image–text models"),
        (("--set", "refine=true", "--arch", "linear"), "cyclic", "Leave out --arch"),
        (("--set", "refine=true", "--set", "modalities.image.frozen=false"), "cyclic", "fixed codes"),
        (("--set", "objectives={contrastive: 1, anchor: 1}"), "cyclic", "Add --set refine=true"),
        (("--set", "objectives={contrastive: 1, structure: 1}", "--arch", "linear"), "cyclic", "residual heads"),
        (("--set", "refine=true", "--set", "objectives={transport: {weight: 1, epsilon: 0}}"), "cyclic", "above 0"),
    ],
)
def test_what_does_not_fit_is_refused(
    more: tuple[object, ...], objective: str, message: str, paired_dataset: Path, cyclic: Cyclic
) -> None:
    said = cyclic(*words(paired_dataset, "run", *more, objective=objective))
    assert said.code == 2
    assert message in " ".join(said.err.split())
    assert not Path("run").exists()


@pytest.mark.slow
def test_two_processes_train_the_residual_heads_of_one(paired_dataset: Path, tmp_path: Path, cyclic: Cyclic) -> None:
    more = (*REFINED, "--epochs", 2, "--lr", 1e-5, "--precision", 32)
    assert cyclic(*words(paired_dataset, tmp_path / "one", *more)).code == 0
    run_in_processes(words(paired_dataset, tmp_path / "two", *more, "--devices", 2), tmp_path / "another cache")
    first, second = (rows(tmp_path / name, "epoch") for name in ("one", "two"))
    assert [row["val"] for row in first] == [pytest.approx(row["val"], rel=1e-3) for row in second]
    assert gradient_difference(tmp_path / "one", tmp_path / "two") < 1e-2
