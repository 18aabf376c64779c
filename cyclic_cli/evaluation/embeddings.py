"""Measures the embeddings of a split: retrieval, consistency of modalities, neighbours, probes and zero-shot scores."""

from collections.abc import Mapping
from dataclasses import asdict
from itertools import permutations
from typing import Any

import numpy as np

from cyclic_cli.errors import UsageError
from cyclic_cli.evaluation.split import EmbeddedSplit
from cyclic_cli.events import Report
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.inference.typed_texts import unknown_words, warn_of
from cyclic_cli.metrics import probes
from cyclic_cli.metrics.generated_text import tfidf
from cyclic_cli.metrics.retrieval import cross_modal_consistency, recall_at_k
from cyclic_cli.search.neighbours import compare, with_missing_reports
from cyclic_cli.storage.dataset import StoredDataset

COMPARED = 5_000  # samples whose neighbours are compared, at most: the work grows with the square of their number
NEIGHBOURS = 5  # of an image


def retrieval(split: EmbeddedSplit, groups: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Recall from each modality to each other one, by direction such as image_to_text, then by protocol.

    Args:
        split: The samples. Only those with both modalities are used.
        groups: By protocol (S,), see `EmbeddedSplit.hit_groups`.
    """
    found = {}
    for a, b in permutations(split.values, 2):
        pairs = split.with_both(a, b)
        if len(pairs):
            found[f"{a}_to_{b}"] = recall_by_protocol(
                split.embeddings_of(a, pairs), split.embeddings_of(b, pairs), pairs, split, groups
            )
    return found


def recall_by_protocol(
    queries: np.ndarray,
    gallery: np.ndarray,
    samples: np.ndarray,
    split: EmbeddedSplit,
    groups: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Recall, by protocol, for embeddings (P, D) of samples (P,) of a split; None where no query has a hit."""
    patients = split.index["patient"][samples]
    found = {}
    for protocol, group_of_sample in groups.items():
        hits = group_of_sample[samples]
        recall = recall_at_k(queries, gallery, hits, hits, patients)
        found[protocol] = asdict(recall) if recall else None
    return found


def consistency(split: EmbeddedSplit) -> dict[str, Any]:
    """The figures of `retrieval.cross_modal_consistency`, by direction such as image_to_text."""
    found = {}
    for a, b in permutations(split.values, 2):
        pairs = split.with_both(a, b)[:COMPARED]
        if len(pairs):
            found[f"{a}_to_{b}"] = cross_modal_consistency(split.embeddings_of(a, pairs), split.embeddings_of(b, pairs))
    return found


def neighbours(split: EmbeddedSplit, groups: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The figures of `search.neighbours.compare` for the neighbours of images.

    Reports are compared by their embeddings, or by their words where the model has no text encoder.
    """
    if "image" not in split.values:
        return {}
    images = split.with_modality("image")[:COMPARED]
    has_report = split.index["has_text"][images].astype(bool)
    reports = None
    if has_report.any() and "text" in split.values:
        reports = with_missing_reports(split.embeddings_of("text", images[has_report]), has_report)
    elif has_report.any():
        reports = tfidf(split.index["text"][images].tolist())
    different = {"reports": groups["same_text"][images]}
    if "same_labels" in groups:
        different["labels"] = groups["same_labels"][images]
    labels = {name: values[images] for name, values in split.labels.items()}
    return compare(
        split.embeddings_of("image", images), reports, split.index["patient"][images], labels, different, NEIGHBOURS
    )


def label_probes(train: EmbeddedSplit, split: EmbeddedSplit) -> dict[str, Any]:
    """`linear_probe` and `knn`: classifiers of each label, by label and modality, fitted on training embeddings."""
    found: dict[str, Any] = {"linear_probe": {}, "knn": {}}
    for label in [name for name in split.labels if name in train.labels]:
        for name in split.embeddings:
            train_samples, samples = train.with_modality(name), split.with_modality(name)
            if not len(train_samples) or not len(samples):
                continue
            learned = train.embeddings_of(name, train_samples), train.labels[label][train_samples]
            tested = split.embeddings_of(name, samples), split.labels[label][samples]
            linear = probes.linear_probe(*learned, train.index["patient"][train_samples], *tested)
            found["linear_probe"].setdefault(label, {})[name] = asdict(linear) if linear else None
            found["knn"].setdefault(label, {})[name] = probes.knn(*learned, *tested)
    return found


def check_prompts(prompts: Mapping[str, Any], stored: StoredDataset) -> None:
    """Raise UsageError unless every prompt belongs to a label column with values 0 and 1."""
    kinds = stored.label_kinds()
    for label in prompts:
        if label not in kinds:
            existing = f"Its labels: {', '.join(kinds)}." if kinds else "It has none: see --label-column of prepare."
            raise UsageError(f"The prompts name {label!r}, which is not a label of the dataset.", existing)
        if kinds[label] == "string":
            raise UsageError(
                f"{label!r} is a text column; prompts need a column with values 0 and 1.",
                "Prepare one column for each of its classes.",
            )


def check_words(prompts: Mapping[str, Mapping[str, list[str]]], model: TorchModel, report: Report) -> None:
    """Warn of words of the prompts that an image–text model does not know, once for each label.

    Raises:
        UsageError: the model knows no word of a prompt.
    """
    for label, kinds in prompts.items():
        unknown = [
            word
            for kind, texts in kinds.items()
            for text in texts
            for word in unknown_words(model, text, f"a {kind} prompt of {label!r}")
        ]
        warn_of(list(dict.fromkeys(unknown)), f"the prompts of {label!r}", report)


def zero_shot(
    model: TorchModel, split: EmbeddedSplit, prompts: Mapping[str, Mapping[str, list[str]]]
) -> dict[str, Any]:
    """AUROC, by label with prompts, of the similarity between images and prompts; None where it is not defined.

    Args:
        model: An image–text model.
        split: The samples.
        prompts: By label, the `positive` and the `negative` prompts.
    """
    found: dict[str, Any] = {}
    for label, kinds in prompts.items():
        images = split.with_modality("image")
        positive, negative = (model.embed("text", model.texts(kinds[kind])) for kind in ("positive", "negative"))
        scores = probes.zero_shot(split.embeddings_of("image", images), positive, negative)
        score = probes.auroc(split.labels[label][images], scores, split.index["patient"][images])
        found[label] = asdict(score) if score else None
    return found
