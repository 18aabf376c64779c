"""Measures a model on samples it was not trained on, and fits simple baselines for comparison.

reconstruction   errors of decoded images, and by modality the error relative to the mean predictor
retrieval        recall between each two modalities, in both directions, under every protocol of `retrieval`
consistency      k-NN overlap of the modalities, and cycle consistency
neighbours       what the neighbours of an image have in common with it, and how much their reports differ
linear_probe     a linear classifier of each label, fitted on the embeddings of the training split
knn              a vote of the nearest training embeddings for each label
zero_shot        AUROC of labels from text prompts alone
generated_text   scores of the texts that a text decoder generates from images
baselines        mean image, principal components, CCA and ridge regression in closed form (`--baselines`)
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cyclic_cli import registry
from cyclic_cli.codes.code_reader import CodeReader
from cyclic_cli.errors import CyclicError
from cyclic_cli.evaluation.embeddings import (
    check_prompts,
    check_words,
    consistency,
    label_probes,
    neighbours,
    retrieval,
    zero_shot,
)
from cyclic_cli.evaluation.generated_text import generated_text
from cyclic_cli.evaluation.measure_baselines import measure_baselines
from cyclic_cli.evaluation.reconstruction import reconstruction
from cyclic_cli.evaluation.split import EmbeddedSplit, read_split, read_training_split, training_setting
from cyclic_cli.events import Note, Report, silent
from cyclic_cli.inference.load import check_fits
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.metrics.probes import read_prompts
from cyclic_cli.metrics.retrieval import repeated
from cyclic_cli.privacy.keys import SPLITS
from cyclic_cli.storage.dataset import StoredDataset


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of `cyclic evaluate`. Shares are from 0 to 1. None or empty: could not be measured."""

    model: str  # fingerprint
    dataset: str  # fingerprint
    split: str
    samples: int
    patients: int
    repeated_reports: int | None  # samples whose report is also the report of another sample
    reconstruction: dict[str, Any] = field(default_factory=dict)
    ties: str = "worst case"  # the rank of a hit among equal similarities, see `retrieval`
    retrieval: dict[str, Any] = field(default_factory=dict)  # by direction, such as image_to_text, then by protocol
    consistency: dict[str, Any] = field(default_factory=dict)  # by direction
    neighbours: dict[str, Any] = field(default_factory=dict)  # of `nearest` and `diverse` neighbours
    linear_probe: dict[str, Any] = field(default_factory=dict)  # by label, then by modality
    knn: dict[str, Any] = field(default_factory=dict)  # accuracy by label, then by modality
    zero_shot: dict[str, Any] = field(default_factory=dict)  # by label
    generated_text: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, Any] = field(default_factory=dict)


def evaluate(
    dataset: Path,
    model: TorchModel,
    split: str = "val",
    prompts: Path | None = None,
    baselines: bool = False,
    paired_fraction: float | None = None,
    trained_on: Path | None = None,
    report: Report = silent,
) -> Evaluation:
    """Measure a model on a split of a dataset.

    Args:
        dataset: The dataset folder.
        model: An autoencoder or an image–text model.
        split: train, val or test.
        prompts: A YAML file of prompts by label, see `probes.read_prompts`.
        baselines: Whether to fit baselines on the training split and measure them too.
        paired_fraction: The share of the training patients whose pairs the baselines may use. None: as the model.
        trained_on: The dataset whose training split probes, baselines and the search for copied reports use. None:
            `dataset`.
        report: Gets Progress and Note events.

    Raises:
        UsageError: The split or a label of the prompts does not exist, the prompts cannot be read, or the model knows
            no word of one.
        CyclicError: The split is empty, or the model does not fit the dataset.
    """
    registry.check(split, SPLITS, "split")
    prompts_by_label = read_prompts(prompts) if prompts else {}
    stored = StoredDataset(dataset)
    training_dataset = StoredDataset(trained_on) if trained_on else stored
    check_fits(stored, model, report)
    check_prompts(prompts_by_label, stored)
    if prompts_by_label:
        model.require("image", "text")
        check_words(prompts_by_label, model, report)
    if trained_on:
        check_fits(training_dataset, model, report)
    with model.using_cache(report) as reader:
        samples = _read_samples(stored, model, split, reader, report)
        needs_training = samples.labels or baselines
        train = _read_training_samples(training_dataset, model, reader, report) if needs_training else None
    groups = samples.hit_groups()
    if paired_fraction is None:
        paired_fraction = training_setting(model, "paired_fraction")
    return Evaluation(
        model=model.fingerprint,
        dataset=stored.facts.fingerprint,
        split=split,
        samples=len(samples.index["sample"]),
        patients=len(set(samples.index["patient"].tolist())),
        repeated_reports=repeated(groups["same_text"][samples.index["has_text"].astype(bool)]),
        reconstruction=reconstruction(model, samples, stored, report),
        retrieval=retrieval(samples, groups),
        consistency=consistency(samples),
        neighbours=neighbours(samples, groups),
        **(label_probes(train, samples) if train else {}),
        zero_shot=zero_shot(model, samples, prompts_by_label),
        generated_text=generated_text(model, samples, training_dataset, report),
        baselines=measure_baselines(
            train, samples, groups, paired_fraction, int(training_setting(model, "paired_seed", 0))
        )
        if baselines and train
        else {},
    )


def _read_samples(
    stored: StoredDataset, model: TorchModel, split: str, reader: CodeReader, report: Report
) -> EmbeddedSplit:
    """The samples of the split. Raises CyclicError when there are none."""
    samples = read_split(stored, model, split, reader, report)
    if not len(samples.index["sample"]):
        counts = ", ".join(f"{name} {count}" for name, count in stored.facts.counts.get("splits", {}).items())
        raise CyclicError(f"The split {split} has no samples ({counts}).", "Name another --split.")
    return samples


def _read_training_samples(
    stored: StoredDataset, model: TorchModel, reader: CodeReader, report: Report
) -> EmbeddedSplit | None:
    """The samples of the training split; None, with a warning, when there are none."""
    samples = read_training_split(stored, model, reader, report)
    if len(samples.index["sample"]):
        return samples
    report(Note(f"{stored.folder} has no training split, so there are no probes or baselines: see --train.", True))
    return None
