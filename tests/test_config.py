"""Settings: where they come from, and what is said of a wrong one."""

from pathlib import Path

import pytest

from cyclic_cli import registry
from cyclic_cli.config import TrainConfig, assign, available_cpus, build, read_run_file, train_command
from cyclic_cli.errors import CyclicError, UsageError


def test_a_command_that_trains_again_names_what_the_bits_depend_on() -> None:
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
    ("values", "said"),
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
def test_a_wrong_setting_is_named_with_the_way_out(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(TrainConfig, values, "run.yaml")
    assert said in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "just words"])
def test_a_run_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageError):
        read_run_file(path)


def test_a_run_file_executes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"arch: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(CyclicError):
        read_run_file(path)
    assert not (tmp_path / "made").exists()


def test_names_are_files_and_a_wrong_one_gets_the_nearest() -> None:
    assert {"linear", "conv", "deep", "vae"} <= set(registry.names("models"))
    assert {"reconstruction", "divergence"} <= set(registry.names("objectives"))
    with pytest.raises(UsageError) as caught:
        registry.load("models", "vea", "architecture")
    assert "Did you mean 'vae'?" in caught.value.hint


def test_slurm_bounds_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert available_cpus() == 1
