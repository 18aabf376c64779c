"""`cyclic train`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cyclic_cli import config as settings
from cyclic_cli import console, registry
from cyclic_cli.commands._options import Dataset, Json, Quiet, find_dataset, show
from cyclic_cli.config import TrainConfig


def _complete_arch(incomplete: str) -> list[str]:
    return [name for name in registry.names("models") if name.startswith(incomplete)]


def train(
    dataset: Dataset = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help=f"Architecture: {', '.join(registry.names('models'))}.",
            show_default=TrainConfig.arch,
            autocompletion=_complete_arch,
        ),
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option(help="Share of the training patients, nested.", show_default=str(TrainConfig.fraction)),
    ] = None,
    paired_fraction: Annotated[
        float | None,
        typer.Option(
            help="Of these, the share whose images and reports may be known to belong together.",
            show_default=str(TrainConfig.paired_fraction),
        ),
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            help="A further dataset whose images and reports have no partner; may be repeated.", show_default=False
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", show_default=str(TrainConfig.epochs))
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", show_default="the architecture's")] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate; models start near their optimum, so it is small.",
            show_default="the architecture's",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="The same seed gives the same weights.", show_default=str(TrainConfig.seed)),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help=f"Preset: {', '.join(settings.PRESETS)}.", show_default=TrainConfig.objective),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default=TrainConfig.device)] = None,
    precision: Annotated[str | None, typer.Option(help="auto, 32 or bf16.", show_default=TrainConfig.precision)] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Processes here, a GPU each.", show_default="the launcher's, or 1")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="auto, ddp or fsdp (divided models).", show_default=TrainConfig.strategy)
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile, on GPUs.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write its event files.")] = False,
    config: Annotated[Path | None, typer.Option(help="A run file: YAML, `name: value`.", show_default=False)] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any setting, such as model.latent=64; may be repeated.",
            show_default=False,
        ),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(help="A run or checkpoint of the same model, to begin with its weights.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder.", show_default="one below runs")] = None,
    resume: Annotated[
        str, typer.Option(help="never, auto (continue where there is state, else start) or must.")
    ] = "never",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on a dataset."""
    flags = {
        "arch": arch, "fraction": fraction, "paired_fraction": paired_fraction, "epochs": epochs,
        "batch_size": batch_size, "lr": lr, "seed": seed, "objective": objective, "device": device,
        "precision": precision, "devices": devices, "strategy": strategy,
        "compile": compile or None, "tensorboard": tensorboard or None,
    }  # fmt: skip
    values = settings.assign(settings.read_run_file(config) if config else {}, assign or [])
    values |= {name: value for name, value in flags.items() if value is not None}
    run_settings = settings.train_settings(values)
    registry.check_file("models", run_settings.arch, "architecture")
    registry.check(resume, ("never", "auto", "must"), "choice of --resume")
    with console.reporting(quiet or not settings.is_main_process()) as report:
        from cyclic_cli.training import task

        found = find_dataset(dataset, report)
        run = out or Path("runs") / task.default_run_name(run_settings)
        summary = task.train(found, run, run_settings, resume, report, also or [], init_from)
    if settings.is_main_process():
        show("Run", asdict(summary), json)
        if not json and not quiet:
            words = f"evaluate {found}" if run_settings.is_joint else "reconstruct SCAN"
            console.say(f"Next: cyclic {words} --model {summary.run}")
