"""Shows the figures of `cyclic evaluate` as tables. Shares are shown in per cent."""

from collections.abc import Iterable
from typing import Any

from cyclic_cli import console

TABLES = ("retrieval", "baselines", "neighbours", "linear_probe", "knn", "zero_shot")
"""Figures with tables of their own; all other figures are in the first table."""
NOTHING = "–"


def show_evaluation(figures: dict[str, Any]) -> None:
    """Write all figures to stdout, in a table for each kind of measurement that was made.

    Args:
        figures: The fields of `Evaluation`, as a dictionary.
    """
    from cyclic_cli.evaluation.baselines import MAPS

    generated_text, baselines = figures["generated_text"], figures["baselines"]
    overview = {name: value for name, value in figures.items() if name not in TABLES}
    overview["generated_text"] = {name: value for name, value in generated_text.items() if name != "findings"}
    console.table("Evaluation", overview)
    maps = {name: baselines[name] for name in MAPS if name in baselines}
    _columns(_retrieval_rows({"model": figures["retrieval"]} | maps))
    _columns(_neighbour_rows(figures["neighbours"]))
    _columns(_neighbour_label_rows(figures["neighbours"]))
    _columns(_probe_rows({"model": figures, "pca": baselines.get("pca", {})}))
    _columns(_finding_rows(generated_text.get("findings", {})))
    _columns({"zero-shot label": label, **_auroc(score)} for label, score in figures["zero_shot"].items())
    others = {name: value for name, value in baselines.items() if name not in maps}
    if "pca" in others:
        others["pca"] = {name: value for name, value in others["pca"].items() if name not in TABLES}
    if others:
        console.table("Baselines", others)


def _columns(rows: Iterable[dict[str, str]]) -> None:
    """Show rows as a table; nothing without rows."""
    rows = list(rows)
    if rows:
        console.columns(list(rows[0]), rows)


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f}"


def _interval(bounds: Iterable[float]) -> str:
    return "–".join(map(_percent, bounds))


def _retrieval_rows(methods: dict[str, dict[str, Any]]) -> Iterable[dict[str, str]]:
    """A row for each method, direction and protocol. `methods` holds recall by direction and protocol."""
    for method, directions in methods.items():
        for direction, protocols in directions.items():
            for protocol, recall in protocols.items():
                if recall:
                    yield {
                        "method": method, "direction": direction.replace("_", " "),
                        "hit rule": protocol.replace("_", " "), **_recall(recall),
                    }  # fmt: skip


def _recall(recall: dict[str, Any]) -> dict[str, str]:
    """The columns of a recall. The interval and the chance level are those of R@10."""
    return {
        "R@1 %": _percent(recall["r1"]), "R@5 %": _percent(recall["r5"]), "R@10 %": _percent(recall["r10"]),
        "95 % of R@10": _interval(recall["ci95_r10"]), "chance R@10": _percent(recall["random_r10"]),
        "median rank": f"{recall['median_rank']:g}", "pool": str(recall["pool"]),
    }  # fmt: skip


def _neighbour_rows(neighbours: dict[str, Any]) -> Iterable[dict[str, str]]:
    """Mean similarity, and the mean number of different reports and label sets among the neighbours of an image."""
    for kind, found in neighbours.items():
        different = {f"different {name}": f"{count:.2f}" for name, count in found["different"].items()}
        yield {"neighbours": kind, "similarity": f"{found['similarity']:.3f}", **different}


def _neighbour_label_rows(neighbours: dict[str, Any]) -> Iterable[dict[str, str]]:
    """How often neighbours have the same value of a label as the image, and how often random images have it."""
    for kind, found in neighbours.items():
        for label, share in found["precision"].items():
            yield {
                "neighbours": kind, "label": label, "same value %": _percent(share["precision"]),
                "chance %": _percent(share["chance"]),
            }  # fmt: skip


def _probe_rows(methods: dict[str, dict[str, Any]]) -> Iterable[dict[str, str]]:
    """A row for each method, label and modality."""
    for method, found in methods.items():
        for label, modalities in found.get("linear_probe", {}).items():
            for modality, linear in modalities.items():
                scores = linear or {}
                yield {
                    "label": label, "method": method, "modality": modality,
                    "linear probe %": _percent(scores.get("accuracy")), "AUROC %": _percent(scores.get("auroc")),
                    "k-NN %": _percent(found["knn"][label][modality]),
                    "majority class %": _percent(scores.get("majority_class")),
                }  # fmt: skip


def _finding_rows(findings: dict[str, Any]) -> Iterable[dict[str, str]]:
    """How well generated texts state the findings of synthetic radiographs."""
    for finding, score in findings.items():
        yield {
            "generated finding": finding, **{f"{name} %": _percent(score[name]) for name in ("precision", "recall")},
            "F1 %": _percent(score["f1"]), "stated": str(score["stated"]), "present": str(score["present"]),
            "F1 of true reports %": _percent(score["f1_of_true_reports"]),
        }  # fmt: skip


def _auroc(score: dict[str, Any] | None) -> dict[str, str]:
    """The columns of a zero-shot score, with the numbers of samples with and without the label."""
    if score is None:  # all samples have the same value
        return dict.fromkeys(("AUROC %", "95 % interval", "positives", "negatives"), NOTHING)
    return {
        "AUROC %": _percent(score["auroc"]), "95 % interval": _interval(score["ci95"]),
        "positives": str(score["positives"]), "negatives": str(score["negatives"]),
    }  # fmt: skip
