"""Starts Slurm on this machine for tests: munge, slurmctld and slurmd run in a temporary folder until the test ends.

    with slurm.cluster() as cluster:
        job = cluster.submit("examples/slurm/prepare.sbatch", SOURCE="scans", OUT="dataset")
        assert cluster.wait(job) == {"COMPLETED"}

It neither reads nor writes /etc, starts no system service, and the daemons listen on the loopback interface only. It
needs Debian's package `slurm-wlm` and the user root, as which slurmd starts jobs. `missing()` tells what is missing.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
STARTED_WITHIN = 30.0  # seconds
NOT_ENDED = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"}
# Where loopback is the only interface, Slurm resolves no address without EnableIPv6, not even 127.0.0.1.
# cred_expire: seconds that a requeued job waits. MinJobAge: seconds for which an ended job is still shown.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny,EnableIPv6
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1
KillWait=5
MinJobAge=3600
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory}
PartitionName=all Nodes={host} Default=YES
"""


def missing() -> str:
    """The reason why Slurm cannot run here; empty if it can."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=_search_path())]
    if absent:
        return f"Slurm is not installed: no {', '.join(absent)}"
    return "" if os.geteuid() == 0 else "slurmd needs root"


@dataclass(frozen=True)
class Cluster:
    """A running Slurm of one node."""

    folder: Path  # logs and state of the daemons
    environment: dict[str, str]  # with which the commands of Slurm find this cluster

    def run(self, *words: str | Path, **environment: str | Path) -> str:
        """Stdout of a command, run with more environment variables. Raises CalledProcessError when it fails."""
        own = self.environment | {name: str(value) for name, value in environment.items()}
        ran = subprocess.run(words, env=own, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
        return ran.stdout.strip()

    def submit(self, *words: str | Path, **environment: str | Path) -> str:
        """Submit a job with `sbatch`. Returns the job number."""
        return self.run("sbatch", "--parsable", *words, **environment)

    def show(self, job: str, name: str) -> list[str]:
        """A field of `scontrol show job`, such as JobState: of a job, or of each task of a job array."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return [word.removeprefix(f"{name}=") for word in words if word.startswith(f"{name}=")]

    def wait(self, job: str, seconds: float = 120.0) -> set[str]:
        """Wait until a job, or every task of a job array, has ended. Returns the final states, such as COMPLETED.

        Raises:
            TimeoutError: it has not ended after `seconds`.
        """
        _until(lambda: not NOT_ENDED & set(self.show(job, "JobState")), f"job {job} has not ended", seconds)
        return set(self.show(job, "JobState"))


@contextmanager
def cluster(cpus: int = 2) -> Iterator[Cluster]:
    """Start Slurm with one node of `cpus` processors and all of the machine's memory; stop it when the block ends."""
    host = socket.gethostname().split(".")[0]
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, ExitStack() as daemons:  # paths of sockets must be short
        folder = Path(name)
        _configure(folder, host, cpus)
        environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _search_path()}
        started = Cluster(folder, environment)
        socket_file = folder / "munge.socket"
        munged = ["munged", "--foreground", "--force", f"--socket={socket_file}", f"--key-file={folder}/munge.key"]
        # --force: munged would refuse the socket because other users cannot reach its folder
        munged += [f"--{kind}-file={folder}/munge.{kind}" for kind in ("pid", "log", "seed")]
        daemons.enter_context(_daemon(munged, started))
        _until(socket_file.exists, "munged does not start")
        daemons.enter_context(_daemon(["slurmctld", "-D"], started))
        daemons.enter_context(_daemon(["slurmd", "-D", "-N", host], started))
        _until(lambda: _node_state(started) == "idle", "slurmd does not start")
        try:
            yield started
        finally:
            _cancel_all(started)


def _configure(folder: Path, host: str, cpus: int) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20  # MiB
    with socket.socket() as first, socket.socket() as second:  # two free ports
        for found in (first, second):
            found.bind(("127.0.0.1", 0))
        ports = {"controller_port": first.getsockname()[1], "node_port": second.getsockname()[1]}
    text = CONFIGURATION.format(host=host, folder=folder, cpus=cpus, memory=memory, **ports)
    (folder / "slurm.conf").write_text(text)
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)


@contextmanager
def _daemon(command: list[str], cluster: Cluster) -> Iterator[None]:
    with (cluster.folder / f"{command[0]}.out").open("wb") as output:
        process = subprocess.Popen(command, env=cluster.environment, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _node_state(cluster: Cluster) -> str:
    ran = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"], env=cluster.environment, capture_output=True, text=True, timeout=60
    )
    return ran.stdout.strip()


def _cancel_all(cluster: Cluster) -> None:
    """End all jobs. After a failed test, slurmd would leave their processes running."""
    cluster.run("scancel", "--user=root", "--full", "--signal=KILL")
    cluster.run("scancel", "--user=root")
    _until(lambda: not cluster.run("squeue", "--noheader"), "jobs do not end")


def _until(condition: Callable[[], bool], what: str, seconds: float = STARTED_WITHIN) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} after {seconds:.0f} seconds")
        time.sleep(0.2)


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # where Debian installs daemons
