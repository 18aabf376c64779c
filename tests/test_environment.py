"""Cores and processes that the machine, Slurm or torchrun give a process."""

import pytest
from helpers.launchers import SLURM

from cyclic_cli import environment
from cyclic_cli.environment import available_cpus, is_main_process, local_processes
from cyclic_cli.errors import CyclicError


def test_slurm_bounds_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert available_cpus() == 1


def test_cores_are_shared_by_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "available_cpus", lambda: 8)
    assert [environment.threads_each(processes) for processes in (1, 2, 3, 16)] == [8, 4, 2, 1]
    for name, value in {**SLURM, "SLURM_PROCID": "0", "SLURM_CPUS_PER_TASK": "8"}.items():
        monkeypatch.setenv(name, value)
    assert environment.threads_each(2) == 8  # Slurm gives each task its own cores


@pytest.mark.parametrize(
    ("variables", "here", "is_main"),
    [
        ({}, (0, 1), True),
        ({"LOCAL_RANK": "1"}, (0, 1), False),  # started by the first process of the run
        ({**SLURM, "SLURM_PROCID": "0"}, (2, 2), True),
        ({**SLURM, "SLURM_PROCID": "3", "SLURM_LOCALID": "0"}, (2, 2), False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, (0, 1), True),  # the shell of a batch job
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (0, 1), True),
        ({"TORCHELASTIC_RUN_ID": "a", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6", "RANK": "5"}, (2, 3), False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_processes_of_a_launcher_are_found_in_the_environment(
    variables: dict[str, str], here: tuple[int, int], is_main: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert local_processes() == here
    assert is_main_process() == is_main


def test_uneven_tasks_of_slurm_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SLURM, "SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CyclicError, match="5 tasks"):
        local_processes()
