"""The folder of a training run: its states and the link `latest`."""

from pathlib import Path

import numpy as np
from helpers.makers import tiny_checkpoint

from cyclic_cli.storage.run import RunFolder


def test_the_last_two_states_are_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for step in (10, 20, 20, 30):
        run.save_state(step, tiny_checkpoint(step), {"0.exp_avg": np.ones(2, np.float32)}, {"step": step})
    assert [state.name for state in run.states()] == ["step-00000020", "step-00000030"]
    (run.folder / "state" / ".step-00000040.1.tmp").mkdir()  # as a killed process leaves it
    restored, optimizer, progress = run.load_state(run.states()[-1])
    assert progress == {"step": 30}
    assert restored.weights["w"][0, 0] == 30
    assert set(optimizer) == {"0.exp_avg"}


def test_latest_links_to_the_newest_run_in_a_folder_named_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        RunFolder(tmp_path / "runs" / name).point_latest()
        assert (tmp_path / "runs" / "latest").resolve().name == name
    (tmp_path / "elsewhere" / "c").mkdir(parents=True)
    RunFolder(tmp_path / "elsewhere" / "c").point_latest()
    assert not (tmp_path / "elsewhere" / "latest").exists()
