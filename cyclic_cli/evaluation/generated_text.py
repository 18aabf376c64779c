"""Measures the texts that a model generates from the images of a split."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cyclic_cli.evaluation.split import BATCH, EmbeddedSplit
from cyclic_cli.events import Note, Progress, Report
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.metrics.generated_text import bleu, copied_reports, finding_scores, rouge_l
from cyclic_cli.storage.dataset import StoredDataset

LARGEST_SAMPLE = 500  # samples for which texts are generated, at most


def generated_text(
    model: TorchModel, split: EmbeddedSplit, training_dataset: StoredDataset, report: Report
) -> dict[str, Any]:
    """Scores of greedily generated reports; empty for a model that generates no text, or without pairs.

    Returns:
        samples: how many texts were generated
        bleu, rouge_l: similarity to the true reports
        copied_from_training: the share of texts that are training reports, also cut at the maximum length; None without
            training reports
        distinct: how many texts differ from one another
        findings: of synthetic radiographs, by finding `generated_text.Correctness` and the F1 of the true reports
    """
    config = model.checkpoint.architecture["config"] if model.is_joint else {}
    if not config.get("decoders") or not {"image", "text"} <= set(split.values):
        return {}
    encoder = model.module.encoders["text"]
    pairs = split.with_both("image", "text")[:LARGEST_SAMPLE]
    if not encoder.generates or not len(pairs):
        return {}
    generated = _generate(model, split, pairs, report)
    true = split.index["text"][pairs].tolist()
    training_texts = _training_texts(model, training_dataset, report)
    encoded = encoder.vocabulary.encode(training_texts, encoder.limit)
    cut_texts = [encoder.vocabulary.decode(tokens) for tokens in encoded]
    copied, _ = copied_reports(generated, training_texts + cut_texts)
    labels = {name: column[pairs] for name, column in split.labels.items()}
    return {
        "samples": len(pairs), "bleu": bleu(generated, true),
        "rouge_l": rouge_l(generated, true),
        "copied_from_training": copied if training_texts else None, "distinct": len(set(generated)),
        "findings": _finding_scores(generated, true, labels),
    }  # fmt: skip


def _generate(model: TorchModel, split: EmbeddedSplit, pairs: np.ndarray, report: Report) -> list[str]:
    """A text for the image of each sample (P,)."""
    import torch

    encoder = model.module.encoders["text"]
    texts: list[str] = []
    for first in range(0, len(pairs), BATCH):
        with torch.inference_mode():
            embeddings = torch.from_numpy(split.embeddings_of("image", pairs[first : first + BATCH]))
            texts += encoder.write(model.module.code("text", model.placed(embeddings)))
        report(Progress(len(texts), len(pairs), "texts generated"))
    return texts


def _training_texts(model: TorchModel, dataset: StoredDataset, report: Report) -> list[str]:
    """The training reports of a dataset. Warns when the model was trained on other reports too."""
    provenance = model.checkpoint.provenance
    if dataset.facts.fingerprint != provenance.get("dataset"):
        report(Note("Copied reports are searched in a dataset that the model was not trained on: see --train.", True))
    elif provenance.get("also"):
        report(Note("Copied reports are not searched in the datasets of --also: name one with --train.", True))
    rows = dataset.rows(["text", "has_text"], "train")
    texts: list[str] = rows["text"][rows["has_text"].astype(bool)].tolist()
    return texts


def _finding_scores(
    generated: Sequence[str], true: Sequence[str], labels: dict[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Whether generated texts state the labelled findings. The F1 of true reports bounds what the reader can detect."""
    of_true_reports = finding_scores(true, labels)
    return {
        name: asdict(score) | {"f1_of_true_reports": of_true_reports[name].f1}
        for name, score in finding_scores(generated, labels).items()
    }
