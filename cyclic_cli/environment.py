"""Finds the cores, the rank among other processes, and the cache folder of this process.

Launchers are torchrun and `srun`, the launcher of the batch system Slurm. Both describe a run in environment variables.
"""

import os
import tempfile
from pathlib import Path

import platformdirs

from cyclic_cli.errors import CyclicError


def available_cpus() -> int:
    """The number of cores this process may use, at least 1.

    The smallest of three limits counts: the CPU affinity mask, the quota of the control group (cgroup version 2), and
    the allocation of Slurm.
    """
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    if os.environ.get("SLURM_CPUS_PER_TASK", "").isdigit():
        counts.append(int(os.environ["SLURM_CPUS_PER_TASK"]))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            counts.append(int(quota) // int(period))
    except (OSError, ValueError):
        pass  # without a control group of version 2 there is no quota
    return max(1, min(counts))


def in_slurm_step() -> bool:
    """Whether `srun` started this process together with others.

    Only the variables of a job step tell this: the shell of a batch job sees the variables of the job as well.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    return "SLURM_PROCID" in os.environ and tasks.isdigit() and int(tasks) > 1


def local_processes() -> tuple[int, int]:
    """How many processes a launcher (torchrun, `srun`) started on this node, and on how many nodes it started them.

    Returns:
        (processes on this node, nodes); (0, 1) without a launcher.


    Raises:
        CyclicError: `srun` started different numbers of processes on different nodes.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return here, everywhere // here
    if not in_slurm_step():
        return 0, 1
    tasks, nodes = int(os.environ["SLURM_STEP_NUM_TASKS"]), int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    if tasks % nodes:
        raise CyclicError(f"{tasks} tasks do not spread evenly over {nodes} nodes.", "Use srun --ntasks-per-node.")
    return tasks // nodes, nodes


def threads_each(processes: int) -> int:
    """The cores that each of several processes on this machine may use; Slurm already divides them among its tasks."""
    if in_slurm_step() and os.environ.get("SLURM_CPUS_PER_TASK", "").isdigit():
        return available_cpus()
    return max(1, available_cpus() // processes)


def place_among_processes() -> tuple[int, int]:
    """Rank of this process and number of processes of its launcher (torchrun, `srun`); (0, 1) without a launcher."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if in_slurm_step():
        return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
    return 0, 1


def launch_identifier() -> str:
    """A text that is the same in all processes of one launch, and different in another launch or restart."""
    names = (
        "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
        "MASTER_ADDR", "MASTER_PORT",
    )  # fmt: skip
    return " ".join(os.environ.get(name, "-") for name in names)


def is_main_process() -> bool:
    """Whether this process logs and writes files: it is the first of its run, or the only one."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    if in_slurm_step():
        return os.environ["SLURM_PROCID"] == "0"
    return os.environ.get("LOCAL_RANK", "0") == "0"


def cache_folder() -> Path:
    """The folder for files that can be made again: `$CYCLIC_CACHE`, else the user's cache folder, else a temporary one.

    Raises:
        CyclicError: the temporary folder belongs to another user.
    """
    if os.environ.get("CYCLIC_CACHE"):
        return Path(os.environ["CYCLIC_CACHE"])
    folder = platformdirs.user_cache_path("cyclic")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK)
    except OSError:  # some batch jobs have no home folder, or a read-only one
        usable = False
    if usable:
        return folder
    folder = Path(tempfile.gettempdir()) / f"cyclic-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise CyclicError(f"The cache folder {folder} belongs to another user.", "Name one with $CYCLIC_CACHE.")
    return folder
