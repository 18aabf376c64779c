"""Settings: frozen dataclasses with their defaults, how a run file and `--set` become one, and what a process may use.

A default lives once, in its dataclass; the command line shows it from there. This module knows no architecture: each
has a `Config` of its own, which checks the `model:` table of a run file.
"""

import copy
import dataclasses
import math
import os
import re
import shlex
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import platformdirs
import yaml

from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.registry import check

PRESETS: dict[str, dict[str, Any]] = {
    "autoencode": {},
    "contrastive": {"contrastive": 1.0},
    "cyclip": {"contrastive": 1.0, "geometry": 0.25},
    "cyclic": {
        "reconstruction": 0.1,
        "translation": 0.1,
        "contrastive": 1.0,
        "geometry": {"weight": 0.25, "scarce": True},
        "visit": {"weight": 0.5, "start": 0.2, "full": 0.5, "scarce": True},
        "walk": {"weight": 1.0, "start": 0.2, "full": 0.5, "scarce": True},
    },
}
"""Mixtures of objectives that `--objective` names; what `autoencode` weighs is said by each architecture."""
JOINT_ARCH = "deep"
"""Architecture of the images of a joint model, where none is named."""
JOINT_RECIPE = {
    "lr": 3e-3, "batch_size": 384, "weight_decay": 0.1, "warmup": 0.1, "augment": 1.0, "fitted_lr": 0.1,
}  # fmt: skip
"""Training defaults of joint models, as `RECIPE` is of an architecture."""
UNIT = 0.02  # by which the norm of an embedding may differ from 1, where few bits made it
DIVERSITY = 0.3
"""λ of a search: how much the difference of reports counts beside the nearness to the query."""
FLAGS = (
    "arch", "fraction", "paired_fraction", "epochs", "batch_size", "lr", "seed", "objective", "device", "precision",
)  # fmt: skip
"""Settings of a training that have an option of their own."""
WINDOWS = ("auto", "full", "percentile", "lung", "bone", "brain", "mediastinum")
FRAMES = ("middle", "first", "all")

Settings = TypeVar("Settings")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes a tensor; travels with every dataset and every checkpoint."""

    size: int = 224  # pixels of a side, after the letterbox
    bits: int = 8  # stored per pixel: 8 or 16
    window: str = "auto"  # auto (what the file states, else percentile), full, percentile, CENTER/WIDTH, or a name
    frames: str = "middle"  # middle, first, all, or a number from 1
    exact: bool = False  # decode whole and resize, even where a codec can reduce while decoding

    def __post_init__(self) -> None:
        if self.bits not in (8, 16):
            raise UsageError(f"bits: {self.bits} is not possible.", "Give 8 or 16.")
        check_window(self.window)
        check_frames(self.frames)


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What decides the content of a dataset."""

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)  # shares of the patients: train, val, test
    image_column: str | None = None  # None: recognised by its usual names
    text_column: str | None = None
    patient_column: str | None = None
    label_columns: tuple[str, ...] = ()  # beside the known sets
    layout: str = "auto"  # of `layouts.LAYOUTS`, or told by the sources
    patient_pattern: str | None = None  # regular expression on the relative path
    allow_burned_in: bool = False  # take images that say that text is burned into their pixels
    already_deidentified: bool = False
    paths: bool = True  # keep relative source paths in the index


@dataclass(frozen=True, kw_only=True)
class Term:
    """One objective of a mixture: its weight, which may begin late and rise, and what else its file lets one set."""

    name: str
    weight: float
    start: float = 0.0  # share of the steps before it counts
    full: float = 0.0  # share of the steps after which it has its whole weight
    scarce: bool = False  # its weight is times the share of values whose partner is not known
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, value: Any) -> "Term":
        """From a run file's number, or table. Raises UsageError when it is neither."""
        table = dict(value) if isinstance(value, dict) else {"weight": value}
        scarce = table.pop("scarce", False)
        try:
            if isinstance(table.get("weight"), bool):
                raise TypeError
            weight, start, full = (float(table.pop(key, default)) for key, default in SCHEDULE.items())
        except (TypeError, ValueError):
            raise UsageError(f"objectives.{name} has no weight that is a number.", "Write a number.") from None
        ordered = "full" not in (value if isinstance(value, dict) else {}) or full >= start
        named = ordered and all(isinstance(key, str) for key in table) and isinstance(scarce, bool)
        if not (0 <= weight < math.inf and 0 <= start <= 1 and 0 <= full <= 1 and named):
            raise UsageError(
                f"objectives.{name} cannot be {value!r}.",
                "Give a weight from 0, start and a later full as shares of the steps, scarce true or false.",
            )
        return cls(name=name, weight=weight, start=start, full=max(start, full), scarce=scarce, settings=table)

    def at(self, progress: float) -> float:
        """The weight after a share `progress` of the steps: 0, then rising in a line, then whole."""
        if progress < self.start:
            return 0.0
        if progress >= self.full:
            return self.weight
        return self.weight * (progress - self.start) / (self.full - self.start)


SCHEDULE = {"weight": 1.0, "start": 0.0, "full": 0.0}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What decides a run. None: what the architecture recommends (`RECIPE` of its file)."""

    arch: str = "conv"
    model: dict[str, Any] = field(default_factory=dict)  # the architecture's own settings
    objective: str = "autoencode"
    objectives: dict[str, Any] = field(
        default_factory=dict
    )  # weights, or tables of `Term`, by name; empty: the preset's
    modalities: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"image": {}, "text": {}}
    )  # and their settings
    embedding: int = 64  # numbers of the space that modalities share
    private: int = 32  # numbers of a code that are a modality's own
    paired_share: float = 2 / 3  # of a batch, if there are so many pairs, where objectives look at other values too
    fraction: float = 1.0  # of the training patients
    paired_fraction: float = 1.0  # of these: whose images and reports may be known to belong together
    epochs: int = 10
    batch_size: int | None = None
    lr: float | None = None  # peak learning rate
    weight_decay: float | None = None
    warmup: float | None = None  # share of the steps in which the learning rate rises
    gradient_clip: float = 1.0  # largest norm of the gradient
    fitted_lr: float | None = None  # learning rate of what starts from the data (encoders), as a share of `lr`
    augment: float | None = None  # strength of small random movements and changes of contrast of training images
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda
    precision: str = "auto"  # auto, 32, bf16
    micro_batch: int | None = None  # images that pass through the network at once; gradients add up
    parallel: str = "auto"  # how cores share a step: auto, samples (side by side), operations (each split up)
    memory_format: str = "auto"  # auto, channels_last, contiguous
    fuse: bool = True  # convolution and pooling as one operation
    keep_memory: bool = True  # the allocator keeps freed pages
    compile: bool = False  # the network by torch.compile
    devices: int | None = None  # processes on this machine, a GPU each; None: those of torchrun or srun, else one
    strategy: str = "auto"  # how processes share a model: auto, ddp, fsdp
    not_finite: str = "stop"  # what a loss or gradient of NaN or infinity does: stop, skip (that batch)
    tensorboard: bool = False  # event files beside the metrics
    checkpoint_minutes: float = 5.0  # state is saved this often, and after every epoch
    checkpoint_steps: int | None = None  # the same, counted in steps

    __pydantic_config__: ClassVar = {"coerce_numbers_to_str": True}  # `precision: 32` is a number in YAML

    def __post_init__(self) -> None:
        positive, any_size = "a whole number from 1", "a number from 0"
        terms = self.terms
        limits = {
            "fraction": (0 < self.fraction <= 1, "above 0 and at most 1"),
            "paired_fraction": (0 <= self.paired_fraction <= 1, "from 0 to 1"),
            "paired_share": (0 < self.paired_share <= 1, "above 0 and at most 1"),
            "embedding": (self.embedding >= 1, positive),
            "private": (self.private >= 0, "a whole number from 0"),
            "epochs": (self.epochs >= 1, positive),
            "batch_size": (self.batch_size is None or self.batch_size >= 1, positive),
            "lr": (self.lr is None or 0 <= self.lr < math.inf, any_size),
            "weight_decay": (self.weight_decay is None or 0 <= self.weight_decay < math.inf, any_size),
            "warmup": (self.warmup is None or 0 <= self.warmup <= 1, "from 0 to 1"),
            "gradient_clip": (self.gradient_clip > 0, "above 0"),
            "fitted_lr": (self.fitted_lr is None or 0 <= self.fitted_lr < math.inf, any_size),
            "augment": (self.augment is None or 0 <= self.augment <= 10, "from 0 to 10"),
            "micro_batch": (self.micro_batch is None or self.micro_batch >= 1, positive),
            "seed": (0 <= self.seed < 2**63, "a whole number from 0"),
            "devices": (self.devices is None or self.devices >= 1, positive),
            "checkpoint_minutes": (self.checkpoint_minutes > 0, "above 0"),
            "checkpoint_steps": (self.checkpoint_steps is None or self.checkpoint_steps >= 1, positive),
        }
        for name, (holds, wanted) in limits.items():
            if not holds:
                raise UsageError(f"{name} cannot be {getattr(self, name)!r}.", f"Give {name} {wanted}.")
        if self.objectives and not any(term.weight for term in terms):
            raise UsageError("No objective has a weight above 0.", "Give one of them a weight.")
        check(self.objective, PRESETS, "objective preset")
        check(self.device, ("auto", "cpu", "cuda"), "device")
        check(self.precision, ("auto", "32", "bf16"), "precision")
        check(self.strategy, ("auto", "ddp", "fsdp"), "strategy")
        check(self.not_finite, ("stop", "skip"), "way with losses that are not finite")
        check(self.parallel, ("auto", "samples", "operations"), "way to share a step")
        check(self.memory_format, ("auto", "channels_last", "contiguous"), "memory format")

    @property
    def terms(self) -> list[Term]:
        """The objectives of `objectives`, read."""
        return [Term.of(name, value) for name, value in self.objectives.items()]

    @property
    def is_joint(self) -> bool:
        """Whether modalities are trained together, rather than an autoencoder of images."""
        return self.objective != "autoencode"


RENAMED_SOURCES = {"start_from": "init_from"}
"""What a run was made from, by its earlier name in `config.yaml` and in a checkpoint."""
RENAMED_SETTINGS = {"tower": "encoder"}
"""Settings of a modality, by their earlier names."""
OPERATION = (
    "checkpoint_minutes", "checkpoint_steps", "devices", "strategy", "not_finite", "keep_memory", "tensorboard",
)  # fmt: skip
"""Settings of a training that may be others when it goes on: they change nothing of the result but rounding."""
RECORDED = ("not_finite", *(one.name for one in dataclasses.fields(TrainConfig) if one.name not in OPERATION))
"""Those that a checkpoint names, so that it can be made again."""


def check_window(text: str) -> tuple[float, float] | str:
    """A `--window`: (centre, width) of CENTER/WIDTH, else the name itself. Raises UsageError for anything else."""
    found = re.fullmatch(r"([+-]?\d+(?:\.\d*)?)/(\d+(?:\.\d*)?)", text)
    if found and float(found[2]) > 0:
        return float(found[1]), float(found[2])
    if text not in WINDOWS:
        raise UsageError(f"{text!r} is no window.", f"Give {', '.join(WINDOWS)} or CENTER/WIDTH such as 40/400.")
    return text


def check_frames(text: str) -> int | str:
    """A `--frames`: a number from 1, else the word itself. Raises UsageError for anything else."""
    if re.fullmatch(r"[1-9]\d{0,8}", text):
        return int(text)
    if text not in FRAMES:
        raise UsageError(f"{text!r} names no frames.", f"Give {', '.join(FRAMES)} or a number from 1.")
    return text


def flag(name: str) -> str:
    """How a setting is spelt on the command line."""
    return "--" + name.replace("_", "-")


def build(kind: type[Settings], values: dict[str, Any], where: str) -> Settings:
    """Make a settings object from plain values, checked and converted (`"3"` for a number is taken).

    Args:
        kind: The dataclass.
        values: By field name.
        where: What the values come from, for the error.

    Raises:
        UsageError: a name no field has (with the nearest one), or a value of the wrong kind.
    """
    import pydantic  # here, because `--help` needs the defaults but never a check

    known = [known_field.name for known_field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in values:
        check(str(name), known, f"setting of {where}")
    try:
        return pydantic.TypeAdapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{place} of {where}: {first['msg']}.", "Correct the value.") from None


def train_settings(values: dict[str, Any]) -> TrainConfig:
    """The settings of a run from plain values. Raises UsageError as `build` does."""
    joint = values.get("objective", TrainConfig.objective) != TrainConfig.objective
    return build(TrainConfig, ({"arch": JOINT_ARCH} if joint else {}) | values, "the run")


def upgraded_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, under the names of today where an earlier version wrote them under others."""
    tables = settings.get("modalities")
    if not isinstance(tables, dict):
        return settings
    of_today = {
        name: renamed(table, RENAMED_SETTINGS) if isinstance(table, dict) else table for name, table in tables.items()
    }
    return settings | {"modalities": of_today}


def renamed(table: dict[Any, Any], names: dict[str, str]) -> dict[Any, Any]:
    """A table with some of its `names` replaced."""
    return {names.get(name, name): value for name, value in table.items()}


def with_recipe(config: TrainConfig, recipe: dict[str, Any]) -> TrainConfig:
    """The settings with what was left open taken from a recipe."""
    recommended = {"fitted_lr": 1.0, "augment": 0.0, **recipe}
    left_open = {name: value for name, value in recommended.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **left_open)


def read_run_file(path: Path) -> dict[str, Any]:
    """The settings of a YAML run file. Raises CyclicError when it cannot be read or is not a table of settings."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CyclicError(f"The run file {path} cannot be read.", "Give a YAML text file.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"The run file {path}{line} is not YAML.", "Write `name: value` lines.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"The run file {path} is not a table.", "Write `name: value` lines.")
    return upgraded_settings(renamed(values, RENAMED_SOURCES))


def assign(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Lay `--set name=value` assignments over the `values` of a run; values are YAML.

    `modalities.text.encoder=bag` reaches into tables; one that the values lack is first the default's.
    """
    defaults = dataclasses.asdict(TrainConfig())
    merged = copy.deepcopy(values)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment!r} has no value.", "Write --set name=value.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"--set {assignment!r}: the value is not YAML.", "Quote it.") from None
        *tables, last = name.split(".")
        inner, default = merged, defaults
        for table in tables:
            known = default.get(table)
            default = known if isinstance(known, dict) else {}
            inner = inner.setdefault(table, copy.deepcopy(default))
            if not isinstance(inner, dict):
                raise UsageError(f"--set {name}: {table!r} is not a table.", "Leave the part after the dot out.")
        inner[last] = value
    return merged


def train_command(values: dict[str, Any], threads: int, processes: int, strategy: str) -> str:
    """The shell command that trains with these settings; the dataset stands in it as DATASET."""
    words = ["cyclic", "train", "DATASET"]
    for name, value in values.items():
        text = yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()
        if name in FLAGS:
            words += [flag(name), str(value)] if value is not None else []
        elif value not in (None, {}):
            words += ["--set", f"{name}={text}"]
    words += ["--devices", str(processes), "--strategy", strategy] if processes > 1 else []
    return f"OMP_NUM_THREADS={threads} {shlex.join(words)}"


def as_plain(settings: Any) -> dict[str, Any]:
    """A settings object as plain values that YAML and JSON hold."""
    plain: dict[str, Any] = dataclasses.asdict(settings)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def available_cpus() -> int:
    """How many cores this process may use: the affinity mask, the control group's quota, Slurm's allocation."""
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    if os.environ.get("SLURM_CPUS_PER_TASK", "").isdigit():
        counts.append(int(os.environ["SLURM_CPUS_PER_TASK"]))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            counts.append(int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no control group of version 2: no quota to respect
    return max(1, min(counts))


def in_slurm_step() -> bool:
    """Whether `srun` started this process together with others. The shell of a job sees the job's variables too."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    return "SLURM_PROCID" in os.environ and tasks.isdigit() and int(tasks) > 1


def local_processes() -> tuple[int, int]:
    """How many processes of this run a launcher (torchrun, `srun`) started here, 0 without one; and on how many nodes.

    Raises:
        CyclicError: `srun` started other numbers on other nodes.
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
    """The cores of this machine that one of its processes may use."""
    if in_slurm_step() and os.environ.get("SLURM_CPUS_PER_TASK", "").isdigit():
        return available_cpus()
    return max(1, available_cpus() // processes)


def place_among_processes() -> tuple[int, int]:
    """Which of how many processes of a launcher (torchrun, `srun`) this is; (0, 1) for one alone."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if in_slurm_step():
        return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
    return 0, 1


def launch() -> str:
    """What tells one start of a launcher's processes from another; the same in all of them."""
    names = (
        "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
        "MASTER_ADDR", "MASTER_PORT",
    )  # fmt: skip
    return " ".join(os.environ.get(name, "-") for name in names)


def is_main_process() -> bool:
    """Whether this process talks and writes: the first of a run, or one alone."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    if in_slurm_step():
        return os.environ["SLURM_PROCID"] == "0"
    return os.environ.get("LOCAL_RANK", "0") == "0"


def cache_folder() -> Path:
    """Where what can be made again is kept: `$CYCLIC_CACHE`, else the user's cache folder, else a temporary one."""
    if os.environ.get("CYCLIC_CACHE"):
        return Path(os.environ["CYCLIC_CACHE"])
    folder = platformdirs.user_cache_path("cyclic")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK)
    except OSError:  # no home, or a read-only one, as in some batch jobs
        usable = False
    if usable:
        return folder
    folder = Path(tempfile.gettempdir()) / f"cyclic-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise CyclicError(f"The cache folder {folder} is somebody else's.", "Name one with $CYCLIC_CACHE.")
    return folder
