"""`cyclic evaluate`."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cyclic_cli import console, registry
from cyclic_cli.commands._options import Checkpoint, Dataset, Device, Json, Quiet, find_dataset, show
from cyclic_cli.privacy.keys import SPLITS


def evaluate(
    dataset: Dataset = None,
    model: Checkpoint = None,
    split: Annotated[str, typer.Option(help=f"Which part: {', '.join(SPLITS)}.")] = "val",
    prompts: Annotated[
        Path | None,
        typer.Option(help="YAML with positive and negative wordings of labels, for zero-shot.", show_default=False),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Measure closed-form methods too, fitted on the training part.")
    ] = False,
    paired_fraction: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Training pairs that baselines may know.", show_default="the model's"),
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(
            help="Dataset with the training part, for probes, baselines and copied reports.", show_default="the same"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write the figures to.", show_default=False)] = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on samples it was not trained on: errors, retrieval, probes, zero-shot, written texts."""
    registry.check(device, ("auto", "cpu", "cuda"), "device")
    with console.reporting(quiet) as report:
        from cyclic_cli.evaluation import task
        from cyclic_cli.inference.reconstruct import load_checkpoint

        found = find_dataset(dataset, report)
        loaded = load_checkpoint(model, device, report)
        loaded.require("image")
        figures = asdict(task.evaluate(found, loaded, split, prompts, baselines, paired_fraction, train, report))
    if json:
        console.write_json(figures)
    else:
        _show(figures)
    if out:  # last: a disk that is full costs the file, not the figures
        from cyclic_cli.storage.files import write_text

        write_text(out, console.as_json(figures) + "\n")


TABLES = (
    "retrieval",
    "baselines",
    "neighbours",
    "linear_probe",
    "knn",
    "zero_shot",
)  # figures that are shown as rows and columns


def _show(figures: dict[str, Any]) -> None:
    from cyclic_cli.evaluation.baselines import MAPS

    findings = figures["generated_text"].get("findings", {})
    texts = {name: value for name, value in figures["generated_text"].items() if name != "findings"}
    show(
        "Evaluation",
        {name: value for name, value in figures.items() if name not in TABLES} | {"generated_text": texts},
        False,
    )
    baselines = figures["baselines"]
    fitted = {name: baselines[name] for name in MAPS if name in baselines}
    _columns(
        {"by": name, "from": way.replace("_", " "), "hit": protocol.replace("_", " "), **_recall(recall)}
        for name, ways in ({"the model": figures["retrieval"]} | fitted).items()
        for way, protocols in ways.items()
        for protocol, recall in protocols.items()
        if recall
    )
    _columns(
        {"neighbours": way, "similarity": f"{found['similarity']:.3f}", **_different(found["different"])}
        for way, found in figures["neighbours"].items()
    )
    _columns(
        {"neighbours": way, "label": label, "same %": _percent(one["precision"]), "chance %": _percent(one["chance"])}
        for way, found in figures["neighbours"].items()
        for label, one in found["precision"].items()
    )
    _columns(
        {"label": label, "by": by, "of": name, **_probe(linear, found["knn"][label][name])}
        for by, found in (("the model", figures), ("pca", baselines.get("pca", {})))
        for label, modalities in found.get("linear_probe", {}).items()
        for name, linear in modalities.items()
    )
    _columns({"written": finding, **_correctness(found)} for finding, found in findings.items())
    _columns({"zero-shot": label, **_auroc(score)} for label, score in figures["zero_shot"].items())
    simple = {name: value for name, value in baselines.items() if name not in fitted}
    if "pca" in simple:
        simple["pca"] = {name: value for name, value in simple["pca"].items() if name not in TABLES}
    if simple:
        show("Baselines", simple, False)


def _columns(rows: Iterable[dict[str, str]]) -> None:
    shown = list(rows)
    if shown:
        console.columns(list(shown[0]), shown)


def _different(counts: dict[str, float]) -> dict[str, str]:
    return {f"different {name}": f"{count:.2f}" for name, count in counts.items()}


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _recall(recall: dict[str, Any]) -> dict[str, str]:
    """The columns of a recall, in per cent."""
    low, high = recall["ci95_r10"]
    return {
        "R@1": _percent(recall["r1"]), "R@5": _percent(recall["r5"]), "R@10": _percent(recall["r10"]),
        "95 %": f"{_percent(low)}–{_percent(high)}", "chance": _percent(recall["random_r10"]),
        "median rank": f"{recall['median_rank']:g}", "pool": str(recall["pool"]),
    }  # fmt: skip


def _probe(linear: dict[str, Any] | None, knn: float | None) -> dict[str, str]:
    found = linear or {}
    return {
        "linear probe": _percent(found.get("accuracy")), "AUROC": _percent(found.get("auroc")), "k-NN": _percent(knn),
        "majority class": _percent(found.get("majority_class")),
    }  # fmt: skip


def _correctness(found: dict[str, Any]) -> dict[str, str]:
    shares = {name: _percent(found[name]) for name in ("precision", "recall", "f1")}
    return {
        **shares, "stated": str(found["stated"]), "present": str(found["present"]),
        "f1 of true reports": _percent(found["f1_of_true_reports"]),
    }  # fmt: skip


def _auroc(score: dict[str, Any] | None) -> dict[str, str]:
    if score is None:  # of samples with and without, one kind is not there
        return dict.fromkeys(("AUROC", "95 %", "with", "without"), "–")
    low, high = score["ci95"]
    return {
        "AUROC": _percent(score["auroc"]), "95 %": f"{_percent(low)}–{_percent(high)}",
        "with": str(score["positives"]), "without": str(score["negatives"]),
    }  # fmt: skip
