"""Settings: how they are read, and the error messages for wrong ones."""

from pathlib import Path
from typing import Any

import pytest

from cyclic_cli.config import TrainConfig, assign, build, read_run_file, train_command
from cyclic_cli.errors import CyclicError, UsageError


def test_the_command_that_reproduces_a_run_has_all_settings_that_change_the_result() -> None:
    values = {"arch": "vae", "lr": 1e-05, "batch_size": None, "model": {"latent": 8}, "fuse": False, "objectives": {}}
    assert train_command(values, 2, 1, "ddp") == (
        "OMP_NUM_THREADS=2 cyclic train DATASET --arch vae --lr 1e-05 --set 'model={latent: 8}' --set fuse=false"
    )
    assert train_command({"arch": "conv"}, 1, 4, "fsdp") == (
        "OMP_NUM_THREADS=1 cyclic train DATASET --arch conv --devices 4 --strategy fsdp"
    )


def test_a_run_file_and_assignments_become_settings(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("arch: vae\nepochs: 3\nmodel: {latent: 64}\n")
    values = assign(read_run_file(path), ["epochs=5", "model.width=8", "lr=1e-4", "precision=32"])
    config = build(TrainConfig, values, "run.yaml")
    assert (config.arch, config.epochs, config.model, config.lr) == ("vae", 5, {"latent": 64, "width": 8}, 1e-4)
    assert config.precision == "32"


@pytest.mark.parametrize(
    ("assignments", "text"),
    [
        (["modalities.text.arch=hub", "modalities.text.encoder=bag"], {"arch": "bag"}),
        (["modalities.text={encoder: hub, length: 8}"], {"arch": "hub", "length": 8}),
        (["modalities.text={tower: bag}"], {"arch": "bag"}),
        (["modalities.text.encoder=./bag"], {"encoder": "./bag"}),
        (["modalities.text.encoder=[bag]"], {"encoder": ["bag"]}),
        (["modalities.text.arch=hub", "modalities.text.encoder=minilm"], {"arch": "hub", "encoder": "minilm"}),
    ],
)
def test_encoders_of_earlier_versions_are_architectures_today(assignments: list[str], text: dict[str, Any]) -> None:
    assert assign({}, assignments)["modalities"]["text"] == text
    assert assign({}, ["modalities.image.encoder=bag"])["modalities"]["image"] == {"encoder": "bag"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fration": 0.4}, "fraction"),
        ({"epochs": "many"}, "epochs"),
        ({"fraction": 0}, "fraction"),
        ({"fraction": 1.5}, "fraction"),
        ({"batch_size": 0}, "batch_size"),
        ({"objective": "autoencod"}, "autoencode"),
        ({"precision": "bf8"}, "bf16"),
    ],
)
def test_the_error_for_a_wrong_setting_names_it_or_the_right_one(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(TrainConfig, values, "run.yaml")
    assert message in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "just words"])
def test_a_run_file_that_is_not_a_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageError):
        read_run_file(path)


def test_a_run_file_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"arch: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(CyclicError):
        read_run_file(path)
    assert not (tmp_path / "made").exists()
