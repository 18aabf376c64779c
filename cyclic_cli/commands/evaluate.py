"""The command `cyclic evaluate`: measures a model on samples it was not trained on."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cyclic_cli import console, registry
from cyclic_cli.commands._evaluation_tables import show_evaluation
from cyclic_cli.commands._options import DEVICES, Checkpoint, Dataset, Device, Json, Quiet, find_dataset
from cyclic_cli.privacy.keys import SPLITS


def evaluate(
    dataset: Dataset = None,
    model: Checkpoint = None,
    split: Annotated[str, typer.Option(help=f"Split to measure on: {', '.join(SPLITS)}.")] = "val",
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of positive and negative prompts by label, for zero-shot classification.",
            show_default=False,
        ),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also measure closed-form baselines, fitted on the training split.")
    ] = False,
    paired_fraction: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of the training patients whose pairs the baselines use.",
            show_default="that of the model",
        ),
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(
            help="Dataset whose training split fits probes and baselines, and is searched for copied reports.",
            show_default="the evaluated dataset",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.", show_default=False)] = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on unseen samples: reconstruction, retrieval, probes, zero-shot and generated texts."""
    registry.check(device, DEVICES, "device")
    with console.reporting(quiet) as report:
        from cyclic_cli.evaluation import task
        from cyclic_cli.inference.load import load_checkpoint

        found = find_dataset(dataset, report)
        loaded = load_checkpoint(model, device, report)
        loaded.require("image")
        figures = asdict(task.evaluate(found, loaded, split, prompts, baselines, paired_fraction, train, report))
    if json:
        console.write_json(figures)
    else:
        show_evaluation(figures)
    if out:  # last, so that a full disk does not prevent the display
        from cyclic_cli.storage.files import write_text

        write_text(out, console.as_json(figures) + "\n")
