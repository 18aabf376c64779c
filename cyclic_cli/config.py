"""Settings as frozen dataclasses with their defaults, and how a run file and `--set` become such settings.

Each default is written once, in its dataclass; the command line reads it from there. This module does not know the
architectures: each has a `Config` of its own, against which the `model:` table of a run file is checked.
"""

import copy
import dataclasses
import math
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from cyclic_cli.earlier_names import RENAMED_SOURCES, renamed, upgraded_name, upgraded_settings
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.registry import check

PRESETS: dict[str, dict[str, Any]] = {
    "autoencode": {},
    "views": {"simclr": 1.0},
    "aligned": {},
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
    "captioning": {},
}
"""Weights of the objectives by the presets of `--objective`. `aligned` has none: it is the closed form alone. `cyclic`
has none either at the closed form, which it completes by unpaired samples; its weights are for models that start from
the data. Nor has `captioning`: its loss is that of its text decoder. Each architecture has its own weights for
`autoencode`."""
CLOSED_FORMS = ("aligned", "cyclic")
"""Presets that train nothing when a model starts at the closed form."""
RULES = ("folds", "always")
"""When `--objective cyclic` keeps the map that unpaired samples completed: where it ranks better than the closed form
in folds over the patients of the known pairs, or always."""
REFINEMENT: dict[str, Any] = {"contrastive": 1.0, "transport": 1.0, "structure": 1.0, "anchor": 1.0}
"""Weights of the objectives of `--objective cyclic` with `refine`."""
REFINEMENT_RECIPE = {"lr": 3e-4}
"""Training defaults of residual heads, where they differ from `JOINT_RECIPE`."""
CAPTIONING_EPOCHS = 20
"""Epochs of `--objective captioning` when none are named. They are short: codes are computed once."""
STARTS = ("auto", "closed_form", "data")
"""How an image–text model begins: with heads in closed form on fixed codes, or with encoders initialised from the data
and random heads. auto: data where an architecture of its encoders is named, else closed_form."""
JOINT_ARCH = "deep"
"""Architecture for the images of an image–text model when none is named."""
JOINT_RECIPE = {
    "lr": 3e-3, "batch_size": 384, "weight_decay": 0.1, "warmup": 0.1, "augment": 1.0, "fitted_lr": 0.1,
}  # fmt: skip
"""Training defaults of image–text models, like the `RECIPE` of each architecture for autoencoders."""
NORM_TOLERANCE = 0.02  # accepted deviation of the norm of an embedding from 1, which low precision changes a little
DIVERSITY = 0.3
"""λ of maximal marginal relevance (MMR): the weight of diverse results against similarity to the query."""
FLAGS = (
    "arch", "fraction", "paired_fraction", "epochs", "batch_size", "lr", "seed", "objective", "device", "precision",
)  # fmt: skip
"""Settings of a training run that have a command-line option of their own; the others are given with `--set`."""
WINDOWS = ("auto", "full", "percentile", "lung", "bone", "brain", "mediastinum")
FRAMES = ("middle", "first", "all")

Settings = TypeVar("Settings")


RENDERING = 2
"""Version of the rules by which files become pixels. It is raised when a file gives other pixels than before."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image file becomes a tensor; stored in every dataset and every checkpoint."""

    size: int = 224  # side length in pixels; an image is resized with its aspect ratio and padded to a square
    bits: int = 8  # bits stored per pixel: 8 or 16
    window: str = "auto"  # auto (the window of the file, else percentile), CENTER/WIDTH, or one of WINDOWS
    frames: str = "middle"  # one of FRAMES, or a frame number from 1
    exact: bool = False  # decode at full resolution and resize, even if the codec can decode at a lower resolution
    rendering: int = RENDERING  # version of the rules by which a file became pixels

    def __post_init__(self) -> None:
        if self.bits not in (8, 16):
            raise UsageError(f"bits: {self.bits} is not possible.", "Give 8 or 16.")
        check_window(self.window)
        check_frames(self.frames)


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """The settings of `cyclic prepare` that determine the content of a dataset."""

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)  # fractions of the patients: train, val, test
    image_column: str | None = None  # column of the image path; None: recognised by its name (also the next two)
    text_column: str | None = None
    patient_column: str | None = None
    label_columns: tuple[str, ...] = ()  # in addition to label columns of well-known datasets
    layout: str = "auto"  # a key of `layouts.LAYOUTS`; auto: recognised by the source paths
    patient_pattern: str | None = None  # regular expression that finds the patient in the relative path
    allow_burned_in: bool = False  # accept images whose header says that text is burned into the pixels
    already_deidentified: bool = False
    strict_text: bool = False  # keep out reports in which a name could stand unseen; see `prepare/strict_texts.py`
    paths: bool = True  # store relative source paths in the index


@dataclass(frozen=True, kw_only=True)
class Term:
    """One objective of a mixture: its weight, a schedule for the weight, and the settings of its own.

    The weight is 0 until the fraction `start` of the steps. It then rises linearly until the fraction `full`.
    """

    name: str
    weight: float
    start: float = 0.0  # fraction of the steps during which the weight is 0
    full: float = 0.0  # fraction of the steps after which the whole weight applies
    scarce: bool = False  # multiply the weight by the fraction of unpaired samples
    settings: dict[str, Any] = field(default_factory=dict)  # settings that the file of the objective defines

    @classmethod
    def of(cls, name: str, value: Any) -> "Term":
        """Read a term from a run file, where it is a number or a table. Raises UsageError when it is neither."""
        table = dict(value) if isinstance(value, dict) else {"weight": value}
        scarce = table.pop("scarce", False)
        try:
            if isinstance(table.get("weight"), bool):
                raise TypeError
            weight, start, full = (float(table.pop(key, default)) for key, default in SCHEDULE.items())
        except (TypeError, ValueError):
            raise UsageError(f"The weight of objectives.{name} is not a number.", "Write a number.") from None
        ordered = "full" not in (value if isinstance(value, dict) else {}) or full >= start
        well_typed = all(isinstance(key, str) for key in table) and isinstance(scarce, bool)
        in_range = 0 <= weight < math.inf and 0 <= start <= 1 and 0 <= full <= 1
        if not (ordered and well_typed and in_range):
            raise UsageError(
                f"objectives.{name} cannot be {value!r}.",
                "Give a weight of at least 0, start ≤ full as fractions of the steps, scarce as true or false.",
            )
        return cls(name=name, weight=weight, start=start, full=max(start, full), scarce=scarce, settings=table)

    def at(self, progress: float) -> float:
        """The weight after the fraction `progress` (0–1) of the steps."""
        if progress < self.start:
            return 0.0
        if progress >= self.full:
            return self.weight
        return self.weight * (progress - self.start) / (self.full - self.start)


SCHEDULE = {"weight": 1.0, "start": 0.0, "full": 0.0}
"""The numbers of a `Term` that every objective accepts, with their defaults."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of a training run. None: the recommendation of the architecture (`RECIPE` of its file) applies."""

    arch: str = "residual"
    model: dict[str, Any] = field(default_factory=dict)  # settings of the architecture
    objective: str = "autoencode"
    # Weights, or tables as `Term.of` reads them, by the name of the objective; empty: those of the preset.
    objectives: dict[str, Any] = field(default_factory=dict)
    # Settings of each modality, by its name.
    modalities: dict[str, dict[str, Any]] = field(default_factory=lambda: {"image": {}, "text": {}})
    start: str = "auto"  # of an image–text model, one of STARTS
    cycle_rule: str = "folds"  # of --objective cyclic: when the map completed by unpaired samples is kept, see RULES
    refine: bool = False  # train small residual heads that are held to the closed form, in place of its linear heads
    embedding: int = 64  # dimensions of the embedding space that the modalities share; the closed form has its own
    private: int = 32  # dimensions of a code that belong to one modality alone
    # Fraction of a batch that consists of pairs, if an objective uses unpaired samples and there are enough pairs.
    paired_share: float = 2 / 3
    fraction: float = 1.0  # of the training patients
    paired_fraction: float = 1.0  # fraction of these patients whose images and reports are used as pairs
    paired_seed: int = 0  # draws which patients these are
    epochs: int = 10
    batch_size: int | None = None
    lr: float | None = None  # peak learning rate
    weight_decay: float | None = None
    warmup: float | None = None  # fraction of the steps during which the learning rate rises
    gradient_clip: float = 1.0  # largest norm of the gradient; larger gradients are scaled down to it
    fitted_lr: float | None = None  # learning rate of layers initialised from the data, as a fraction of `lr`
    augment: float | None = None  # strength of small random shifts and contrast changes of training images
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda
    precision: str = "auto"  # auto, 32, bf16
    micro_batch: int | None = None  # images per pass through the network; gradients are accumulated over a batch
    parallel: str = "auto"  # what cores divide: auto, samples (of the batch), operations (of the network)
    memory_format: str = "auto"  # auto, channels_last, contiguous
    fuse: bool = True  # run convolution and pooling as one operation
    keep_memory: bool = True  # the allocator keeps freed memory for reuse
    compile: bool = False  # compile the network with torch.compile
    devices: int | None = None  # processes on this machine, one GPU each; None: as torchrun or srun started, else 1
    strategy: str = "auto"  # how processes share the model: auto, ddp, fsdp
    not_finite: str = "stop"  # after a NaN or infinite loss or gradient: stop, or skip (leave out the batch)
    tensorboard: bool = False  # also write TensorBoard event files
    checkpoint_minutes: float = 5.0  # interval between saved states; a state is also saved after every epoch
    checkpoint_steps: int | None = None  # interval between saved states, in steps

    __pydantic_config__: ClassVar = {"coerce_numbers_to_str": True}  # `precision: 32` is a number in YAML

    def __post_init__(self) -> None:
        positive, not_negative = "a whole number from 1", "a number from 0"
        terms = self.terms
        limits = {
            "fraction": (0 < self.fraction <= 1, "above 0 and at most 1"),
            "paired_fraction": (0 <= self.paired_fraction <= 1, "from 0 to 1"),
            "paired_share": (0 < self.paired_share <= 1, "above 0 and at most 1"),
            "embedding": (self.embedding >= 1, positive),
            "private": (self.private >= 0, "a whole number from 0"),
            "epochs": (self.epochs >= (0 if self.objective in CLOSED_FORMS else 1), positive),
            "batch_size": (self.batch_size is None or self.batch_size >= 1, positive),
            "lr": (self.lr is None or 0 <= self.lr < math.inf, not_negative),
            "weight_decay": (self.weight_decay is None or 0 <= self.weight_decay < math.inf, not_negative),
            "warmup": (self.warmup is None or 0 <= self.warmup <= 1, "from 0 to 1"),
            "gradient_clip": (self.gradient_clip > 0, "above 0"),
            "fitted_lr": (self.fitted_lr is None or 0 <= self.fitted_lr < math.inf, not_negative),
            "augment": (self.augment is None or 0 <= self.augment <= 10, "from 0 to 10"),
            "micro_batch": (self.micro_batch is None or self.micro_batch >= 1, positive),
            "seed": (0 <= self.seed < 2**63, "a whole number from 0"),
            "paired_seed": (0 <= self.paired_seed < 2**63, "a whole number from 0"),
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
        check(self.start, STARTS, "start")
        check(self.cycle_rule, RULES, "cycle rule")
        check(self.device, ("auto", "cpu", "cuda"), "device")
        check(self.precision, ("auto", "32", "bf16"), "precision")
        check(self.strategy, ("auto", "ddp", "fsdp"), "strategy")
        check(self.not_finite, ("stop", "skip"), "value of not_finite")
        check(self.parallel, ("auto", "samples", "operations"), "value of parallel")
        check(self.memory_format, ("auto", "channels_last", "contiguous"), "memory format")

    @property
    def terms(self) -> list[Term]:
        """The entries of `objectives` as terms. Raises UsageError when one cannot be read."""
        return [Term.of(name, value) for name, value in self.objectives.items()]

    @property
    def is_joint(self) -> bool:
        """Whether the run trains an image–text model, or a decoder of one, rather than a model of images alone."""
        return self.objective not in ("autoencode", "views")


OPERATION = (
    "checkpoint_minutes", "checkpoint_steps", "devices", "strategy", "not_finite", "keep_memory", "tensorboard",
)  # fmt: skip
"""Settings that may change when a run is resumed: they do not change the result, except by rounding."""
RECORDED = ("not_finite", *(one.name for one in dataclasses.fields(TrainConfig) if one.name not in OPERATION))
"""Settings that a checkpoint records, so that it can be reproduced."""


def check_window(text: str) -> tuple[float, float] | str:
    """Read `--window`: CENTER/WIDTH gives (centre, width), a name of WINDOWS itself. Raises UsageError otherwise."""
    found = re.fullmatch(r"([+-]?\d+(?:\.\d*)?)/(\d+(?:\.\d*)?)", text)
    if found and float(found[2]) > 0:
        return float(found[1]), float(found[2])
    if text not in WINDOWS:
        raise UsageError(f"{text!r} is not a window.", f"Give {', '.join(WINDOWS)} or CENTER/WIDTH such as 40/400.")
    return text


def check_frames(text: str) -> int | str:
    """Read `--frames`: a frame number from 1, or a word of FRAMES itself. Raises UsageError otherwise."""
    if re.fullmatch(r"[1-9]\d{0,8}", text):
        return int(text)
    if text not in FRAMES:
        raise UsageError(f"Unknown frames: {text!r}.", f"Give {', '.join(FRAMES)} or a number from 1.")
    return text


def flag(name: str) -> str:
    """The command-line option of a setting."""
    return "--" + name.replace("_", "-")


def build(kind: type[Settings], values: dict[str, Any], where: str) -> Settings:
    """Make a settings object from plain values, which are checked and converted (`"3"` is accepted as a number).

    Args:
        kind: The dataclass.
        values: The values by the name of the field.
        where: Where the values come from, for the error message.

    Raises:
        UsageError: a name is not a field (the message suggests the nearest field), or a value has the wrong type.
    """
    import pydantic  # imported late: `--help` needs the defaults but checks nothing

    known = [known_field.name for known_field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in values:
        check(str(name), known, f"setting of {where}")
    try:
        return pydantic.TypeAdapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{place} of {where}: {first['msg']}.", "Correct the value.") from None


def stored_preprocessing(values: dict[str, Any], where: str) -> Preprocessing:
    """The preprocessing that a dataset or a model states. Files of before state no version of the rendering.

    Raises:
        UsageError: as `build` does.
    """
    return build(Preprocessing, {"rendering": 1} | values, where)


def train_settings(values: dict[str, Any]) -> TrainConfig:
    """The settings of a training run from plain values. Raises UsageError as `build` does."""
    run = build(TrainConfig, values, "the run")
    if not run.is_joint:
        return run
    if run.start == "auto":
        # The `model` of captioning is the decoder that it trains.
        named = {name: value for name, value in values.items() if name != "model" or run.objective != "captioning"}
        is_usual = set(run.modalities) == {"image", "text"} and not _names_architectures(named)
        run = dataclasses.replace(run, start="closed_form" if is_usual else "data")
    if run.objective == "captioning" and "epochs" not in values:
        run = dataclasses.replace(run, epochs=CAPTIONING_EPOCHS)
    _check_used(run, values)
    return run if "arch" in values else dataclasses.replace(run, arch=JOINT_ARCH)


def _check_used(run: TrainConfig, values: dict[str, Any]) -> None:
    """Raise UsageError for a setting that an image–text run would silently ignore."""
    if run.cycle_rule != TrainConfig.cycle_rule and run.objective != "cyclic":
        raise UsageError("cycle_rule is for --objective cyclic.", "Leave it out, or choose this objective.")
    is_solved = run.objective in CLOSED_FORMS and run.start == "closed_form" and not (run.refine or run.objectives)
    if is_solved and values.get("epochs"):
        raise UsageError(
            f"--objective {run.objective} is solved in closed form and has no epochs.",
            "Leave --epochs out, or add --set refine=true to train residual heads.",
        )


def with_encoders(values: dict[str, Any], modality: str, paths: list[str]) -> dict[str, Any]:
    """A copy of the values of a run in which a modality has the pretrained encoders at `paths`, if there are any."""
    if not paths:
        return values
    tables = copy.deepcopy(dict(values.get("modalities") or TrainConfig().modalities))
    tables[modality] = dict(tables.get(modality) or {}) | {"encoder": paths}
    return values | {"modalities": tables}


def _names_architectures(values: dict[str, Any]) -> bool:
    """Whether settings of an image–text run name encoders that are trained from scratch, or their settings."""
    tables = [table for table in dict(values.get("modalities") or {}).values() if isinstance(table, dict)]
    return any("arch" in table or "model" in table for table in (values, *tables))


def with_recipe(config: TrainConfig, recipe: dict[str, Any]) -> TrainConfig:
    """The settings, with each one that is None taken from a recipe."""
    recommended = {"fitted_lr": 1.0, "augment": 0.0, **recipe}
    missing = {name: value for name, value in recommended.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)


def read_run_file(path: Path) -> dict[str, Any]:
    """The settings of a YAML run file. Raises CyclicError when it cannot be read or is not a table of settings."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CyclicError(f"The run file {path} cannot be read.", "Give a YAML text file.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"The run file {path}{line} is not valid YAML.", "Write `name: value` lines.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"The run file {path} is not a table.", "Write `name: value` lines.")
    return upgraded_settings(renamed(values, RENAMED_SOURCES))


def assign(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Apply `--set name=value` assignments, with values in YAML, to the `values` of a run. Returns a changed copy.

    Dots reach into tables, as in `modalities.text.arch=bag`. A table that is missing is first filled with its
    defaults.

    Raises:
        UsageError: an assignment has no value, its value is not valid YAML, or a name before a dot is not a table.
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
            raise UsageError(f"--set {assignment!r}: the value is not valid YAML.", "Quote it.") from None
        *tables, last = upgraded_name(name, value).split(".")
        inner, default = merged, defaults
        for table in tables:
            known = default.get(table)
            default = known if isinstance(known, dict) else {}
            inner = inner.setdefault(table, copy.deepcopy(default))
            if not isinstance(inner, dict):
                raise UsageError(f"--set {name}: {table!r} is not a table.", "Leave the part after the dot out.")
        inner[last] = value
    return upgraded_settings(merged)


def train_command(values: dict[str, Any], threads: int, processes: int, strategy: str) -> str:
    """The shell command that reproduces a training run; it contains DATASET in place of the path.

    Args:
        values: The settings, as plain values.
        threads: Threads of each process (`OMP_NUM_THREADS`).
        processes: Processes on one machine.
        strategy: How they share the model, as `TrainConfig.strategy`.
    """
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
    """A settings object as plain values that YAML and JSON can store."""
    plain: dict[str, Any] = dataclasses.asdict(settings)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
