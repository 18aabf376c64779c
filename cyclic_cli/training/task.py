"""`cyclic train`: trains a model on a dataset and stores it in a run folder.

The phases of a run, as `_attempt` calls them:

    setup             settings completed, data loaded, model made                               setup.py
    initialisation    weights from the training data, or from another checkpoint                initialisation.py
    resuming          on request, the newest saved state in place of these weights              resuming.py
    loop              epochs of steps; validation after each; states saved in between           loop.py, steps.py
    validation        metrics of the validation split; the best checkpoint is the run's model   validation.py
    saving            state every few minutes, after each epoch, before a signal ends the run   checkpointing.py
    stopping          by a signal, at a step on which all processes agree                       signals.py
    summary           what was trained, and its validation metrics                              task.py

A run that was stopped and resumed ends with the same bits as one that was never stopped. This is why the learning rate
depends on the step alone, the order of an epoch on (seed, epoch), and a sample's noise on (seed, epoch, sample). It is
also why resuming cuts `metrics.jsonl` back to the saved state. Several processes divide every batch, and compute
together what one process would compute; only the first one logs and writes.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cyclic_cli import distributed
from cyclic_cli.config import TrainConfig
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Note, Report, silent
from cyclic_cli.storage.checkpoint import find_checkpoint, read_checkpoint
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.files import write_yaml
from cyclic_cli.storage.run import RunFolder, encoders_of
from cyclic_cli.training.checkpointing import StateSaver
from cyclic_cli.training.clock import Clock
from cyclic_cli.training.learner import Learner
from cyclic_cli.training.loop import Loop
from cyclic_cli.training.progress import RunProgress, environment
from cyclic_cli.training.resuming import (
    NamedEncoders,
    as_before,
    check_resume,
    described,
    newest_whole_state,
    refuse_other_run,
    resume_state,
)
from cyclic_cli.training.run_log import RunLog
from cyclic_cli.training.setup import complete_settings, initialise, make_learner, restore, set_up_network
from cyclic_cli.training.signals import stop_signals
from cyclic_cli.training.sources import Sources
from cyclic_cli.training.steps import Stepper
from cyclic_cli.training.tensorboard import require_tensorboard


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """What `cyclic train` did."""

    run: str
    checkpoint: str
    arch: str | None  # of the image encoder; None: fixed codes
    objective: str
    fraction: float
    paired_fraction: float | None  # None: the objective uses no pairs
    epochs: int
    steps: int
    steps_executed: int  # by this attempt
    seed: int
    train_samples: int
    val: dict[str, float]  # metrics of the best checkpoint; empty without validation data
    best_epoch: int | None  # after which the best checkpoint was saved; 0: the closed form was kept
    alignment: dict[str, Any]  # of the closed form: maps, parts, settings and scores on folds; else empty
    images_per_second: float | None  # None: no step was needed
    seconds: float
    resumed: bool
    resumed_from_step: int | None


def train(
    dataset: Path,
    run: Path,
    config: TrainConfig,
    resume: str = "never",
    report: Report = silent,
    also: Sequence[Path] = (),
    init_from: Path | None = None,
) -> TrainSummary:
    """Train a model, or continue a run that was stopped.

    Args:
        dataset: The folder of a dataset.
        run: The folder of the run.
        config: The settings of the run.
        resume: never (the run must not exist), auto (continue from a saved state if there is one), must.
        report: Called with Step, Epoch, Progress and Note events.
        also: Further datasets, whose images and reports an image–text run uses as unpaired samples.
        init_from: A checkpoint of the same model, from whose weights the run is initialised; for captioning, of the
            image–text model that is to write texts.

    Raises:
        CyclicError: the run exists, has no state to resume, or differs in its settings or data; there is no training
            data; the loss is no longer finite.
        Stopped: a signal ended the run after its state was saved.
    """
    folder, initial = RunFolder(run), find_checkpoint(init_from) if init_from else None
    sources = Sources(
        StoredDataset(dataset),
        tuple(StoredDataset(one) for one in also),
        read_checkpoint(initial) if initial else None,
    )
    config = as_before(config, folder) if resume != "never" else config
    config = complete_settings(config, sources.dataset, sources.initial)
    initial_encoders = encoders_of(initial) if initial else None
    encoders = NamedEncoders(config, sources.dataset.image_shape)
    with stop_signals() as stop, ExitStack() as held:
        if not folder.folder.exists():
            held.callback(folder.remove_if_empty)  # nothing is left of a run that failed before its first file
        ranks = distributed.launch(config.device, config.precision, config.devices, config.strategy)
        report = report if ranks.is_main else silent

        def take_folder() -> TrainSummary | None:
            """Lock the folder for this process. Returns the summary if the run is finished already."""
            for is_locked in (False, True):  # checked again under the lock: another process may have changed it
                check_resume(folder, resume)
                if resume != "never" and folder.config.exists() and (folder.states() or folder.best.exists()):
                    refuse_other_run(folder, config, sources, encoders)
                    if folder.summary.exists():
                        report(Note(f"{run} is finished already, nothing to do"))
                        return _finished(folder)
                if not is_locked:
                    held.enter_context(folder.lease())
            return None

        finished = ranks.agreed(take_folder)
        return finished or _attempt(ranks, sources, folder, config, initial_encoders, report, stop)


def default_run_name(config: TrainConfig) -> str:
    """The name of a run's folder, from its main settings: the same command line finds the same run again."""
    if config.objective == "captioning":  # which takes its pairs from the initial run
        return f"captioning-{config.fraction:g}-seed{config.seed}"
    if config.is_joint:
        return f"{config.objective}-{config.fraction:g}-paired{config.paired_fraction:g}-seed{config.seed}"
    objective = "" if config.objective == "autoencode" else f"{config.objective}-"
    return f"{objective}{config.arch}-{config.fraction:g}-seed{config.seed}"


def _finished(folder: RunFolder) -> TrainSummary:
    paths = {"run": str(folder.folder), "checkpoint": str(folder.best)}
    try:
        return TrainSummary(**{**folder.read_summary(), **paths, "steps_executed": 0})
    except TypeError:
        raise CyclicError(
            f"{folder.summary} is damaged.", "Remove it; the same command then writes it again from the saved state."
        ) from None


def _attempt(
    ranks: Ranks, sources: Sources, folder: RunFolder, config: TrainConfig, initial_encoders: Path | None,
    report: Report, stop: list[int],
) -> TrainSummary:  # fmt: skip
    """One attempt at a run, from its setup to its summary. `stop` receives the stopping signals."""
    clock = Clock()
    learner = make_learner(ranks, sources, config, initial_encoders)
    if config.tensorboard:
        require_tensorboard()
    state = ranks.agreed(lambda: newest_whole_state(folder, report))
    if state is None:  # a resumed run takes its weights from the state
        initialise(ranks, learner, sources.initial, report, stop)
    else:
        restore(learner, folder.load_state(state)[0].architecture, folder.encoders, report, stop)
    network = set_up_network(ranks, learner, config)
    progress, is_new_environment = RunProgress(environment=environment(network.plan)), True
    if state is not None:
        progress, is_new_environment = resume_state(ranks, folder, state, learner, network, report)
    resumed_from = None if state is None else progress.step
    log = RunLog(ranks, folder, learner, progress, clock, config.epochs, report)
    saver = StateSaver(ranks, folder, sources, config, learner, network.optimizer, progress, log)

    def begin_files() -> None:
        if config.tensorboard:
            log.open_board()
        if state is None:
            encoders = {"encoders": dict(learner.named_encoders)} if learner.named_encoders else {}
            write_yaml(folder.config, described(config, sources.fingerprints | encoders))
            learner.write_encoders(folder.encoders)
            folder.metrics.unlink(missing_ok=True)
        if is_new_environment:
            log.hardware(network.plan)

    ranks.agreed(begin_files)
    if learner.steps:
        report(Note(network.plan.described()))
    stepper = Stepper(ranks, config, learner, network, progress)
    loop = Loop(
        ranks=ranks, config=config, learner=learner, network=network, progress=progress, clock=clock,
        stepper=stepper, log=log, saver=saver, stop=stop,
    )  # fmt: skip
    try:
        with ranks.report_lost_peer():
            loop.run()
            saver.finish()
        if learner.has_solution and learner.steps:
            kept = f"epoch {progress.best_epoch} is kept" if progress.best_epoch else "the closed form is kept"
            report(Note(f"{kept}: best of {config.epochs} epochs and the closed form"))
    finally:
        learner.close()
        saver.close()
        log.close()
    summary = _summary(folder, config, learner, progress, clock, resumed_from)
    if ranks.is_main:
        without_paths = {name: value for name, value in asdict(summary).items() if name not in ("run", "checkpoint")}
        folder.write_summary(without_paths)
    return summary


def _summary(
    folder: RunFolder, config: TrainConfig, learner: Learner, progress: RunProgress, clock: Clock,
    resumed_from: int | None,
) -> TrainSummary:  # fmt: skip
    return TrainSummary(
        run=str(folder.folder), checkpoint=str(folder.best),
        arch=None if config.is_joint and config.start == "closed_form" else config.arch, objective=config.objective,
        fraction=config.fraction, paired_fraction=config.paired_fraction if config.is_joint else None,
        epochs=config.epochs, steps=learner.steps, steps_executed=progress.step - (resumed_from or 0),
        seed=config.seed, train_samples=learner.samples, val=progress.val,
        best_epoch=progress.best_epoch, alignment=dict(learner.closed_form),
        images_per_second=round(clock.rate(), 1) if learner.steps else None, seconds=round(clock.elapsed, 2),
        resumed=resumed_from is not None, resumed_from_step=resumed_from,
    )  # fmt: skip
