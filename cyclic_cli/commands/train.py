"""The command `cyclic train`: trains a model on a dataset."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cyclic_cli import config as settings
from cyclic_cli import console, environment, registry
from cyclic_cli.commands import _closed_form
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
            show_default=f"{TrainConfig.arch}, or {settings.JOINT_ARCH} for image–text models",
            autocompletion=_complete_arch,
        ),
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of the training patients to use, 0 to 1. Smaller shares are subsets of larger ones.",
            show_default=str(TrainConfig.fraction),
        ),
    ] = None,
    paired_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of these patients whose images and reports are used as pairs, 0 to 1.",
            show_default=str(TrainConfig.paired_fraction),
        ),
    ] = None,
    image_encoder: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Pretrained image encoder: a folder of transformers or open_clip, an .onnx file, or a run; may be "
            "repeated.",
            show_default=False,
        ),
    ] = None,
    text_encoder: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Pretrained text encoder: a folder of transformers, sentence-transformers or open_clip, an .onnx "
            "file, or a run; may be repeated.",
            show_default=False,
        ),
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            help="Further dataset, whose images and reports are used as unpaired samples; may be repeated.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Number of passes over the training data.",
            show_default=f"{TrainConfig.epochs}, or {settings.CAPTIONING_EPOCHS} for captioning",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step.", show_default="that of the architecture")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate. It is small, because models are initialised near an optimum.",
            show_default="that of the architecture",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Random seed. The same seed gives the same weights.", show_default=str(TrainConfig.seed)
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help=f"Preset of training objectives: {', '.join(settings.PRESETS)}.", show_default=TrainConfig.objective
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device to compute on: auto, cpu or cuda.", show_default=TrainConfig.device)
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Number format: 32 (bits), bf16, or auto (bf16 where the hardware supports it).",
            show_default=TrainConfig.precision,
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of processes on this machine, with one GPU each.",
            show_default="that of the launcher, or 1",
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="Strategy of several processes: auto, ddp, or fsdp, which shards the model.",
            show_default=TrainConfig.strategy,
        ),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the model with torch.compile; GPUs only.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write event files for TensorBoard.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings, with one `name: value` per line.", show_default=False)
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Set any setting, such as model.latent=64; may be repeated.",
            show_default=False,
        ),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            help="Run folder or checkpoint of the same model, whose weights initialise the training; for captioning, "
            "of the image–text model that is to write texts.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="a new folder in runs")] = None,
    resume: Annotated[
        str,
        typer.Option(
            help="Continue an interrupted run: never, auto (if there is one) or must (fail if there is none)."
        ),
    ] = "never",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on a dataset: an autoencoder or encoder of images, an image–text model, or its text decoder."""
    flags = {
        "arch": arch, "fraction": fraction, "paired_fraction": paired_fraction, "epochs": epochs,
        "batch_size": batch_size, "lr": lr, "seed": seed, "objective": objective, "device": device,
        "precision": precision, "devices": devices, "strategy": strategy,
        "compile": compile or None, "tensorboard": tensorboard or None,
    }  # fmt: skip
    values = settings.assign(settings.read_run_file(config) if config else {}, assign or [])
    values |= {name: value for name, value in flags.items() if value is not None}
    for modality, paths in (("image", image_encoder), ("text", text_encoder)):
        values = settings.with_encoders(values, modality, paths or [])
    run_settings = settings.train_settings(values)
    registry.check_file("models", run_settings.arch, "architecture")
    registry.check(resume, ("never", "auto", "must"), "choice of --resume")
    with console.reporting(quiet or not environment.is_main_process()) as report:
        from cyclic_cli.training import task

        found = find_dataset(dataset, report)
        run = out or Path("runs") / task.default_run_name(run_settings)
        summary = task.train(found, run, run_settings, resume, report, also or [], init_from)
    if environment.is_main_process():
        shown = {} if json else {"alignment": _closed_form.shown(summary.alignment)}
        show("Run", asdict(summary) | shown, json)
        if not json and not quiet:
            next_commands = {"autoencode": "reconstruct SCAN", "captioning": "reconstruct SCAN --to text"}
            next_command = next_commands.get(run_settings.objective, f"evaluate {found}")
            console.print_line(f"Next: cyclic {next_command} --model {summary.run}")
