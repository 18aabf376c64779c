"""`cyclic evaluate`: what a model is worth on samples it was not trained on, and what simple methods reach beside it.

reconstruction   errors of decoded images, and of each modality as a share of the best constant's
retrieval        each two modalities, both ways, under every protocol of `retrieval`
consistency      whether neighbours agree, and cycles return
neighbours       what images near an image have in common with it, and how their reports differ, as `search` gives them
linear_probe     a linear classifier of each label, trained on the embeddings of the training part
knn              a vote of the nearest training embeddings for each label
zero_shot        labels from prompts alone
generated_text   what a text decoder writes of images
baselines         mean image, principal components, correlation and ridge maps in closed form (`--baselines`)
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from cyclic_cli import registry
from cyclic_cli.data.mixture import UNPAIRED, may_be_paired, modalities_of, present_samples
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.evaluation import baselines as closed_form
from cyclic_cli.events import Note, Progress, Report, silent
from cyclic_cli.imaging.readers import as_float, image_area
from cyclic_cli.inference.reconstruct import check_fits
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.metrics import generated_text, probes, retrieval
from cyclic_cli.metrics import reconstruction as metrics
from cyclic_cli.privacy.keys import SPLITS
from cyclic_cli.search import neighbours
from cyclic_cli.storage.dataset import StoredDataset

BATCH = 64
PROBED = 20_000  # training samples, at most, that probes and baselines learn from
COMPARED = 5_000  # samples, at most, whose neighbours are compared: the work grows with the square
NEIGHBOURS = 5  # of an image, as `search` gives them
WRITTEN = 500  # samples, at most, that texts are written for
BASELINE_DIMS = 128
FACTS = ("study", "height", "width")  # columns of the index read beside those of modalities


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `cyclic evaluate` found. Shares are from 0 to 1; None or empty where nothing could be measured."""

    model: str  # fingerprint
    dataset: str  # fingerprint
    split: str
    samples: int
    patients: int
    repeated_reports: int | None  # samples whose report another has too
    reconstruction: dict[str, Any] = field(default_factory=dict)
    ties: str = "worst case"  # how a hit ranks among equal similarities, see `retrieval`
    retrieval: dict[str, Any] = field(default_factory=dict)  # by from_to_to, by protocol
    consistency: dict[str, Any] = field(default_factory=dict)  # by from_to_to
    neighbours: dict[str, Any] = field(default_factory=dict)  # nearest, and diverse
    linear_probe: dict[str, Any] = field(default_factory=dict)  # by label, by modality
    knn: dict[str, Any] = field(default_factory=dict)  # accuracy by label, by modality
    zero_shot: dict[str, Any] = field(default_factory=dict)  # by label
    generated_text: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One split of a dataset as a model sees it."""

    index: dict[str, np.ndarray]  # columns (S,)
    labels: dict[str, np.ndarray]  # (S,) by column
    numbers: dict[str, np.ndarray]  # by modality (S,), the sample's value in `values`, or UNPAIRED
    values: dict[str, Any]
    embeddings: dict[str, np.ndarray]  # by modality (N, D) of unit norm

    def both(self, a: str, b: str) -> np.ndarray:
        """The samples (P,) that have two modalities."""
        return np.flatnonzero((self.numbers[a] != UNPAIRED) & (self.numbers[b] != UNPAIRED))

    def of(self, name: str, samples: np.ndarray) -> np.ndarray:
        """The embeddings of a modality of samples that have it."""
        return self.embeddings[name][self.numbers[name][samples]]


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
        dataset: Its folder.
        model: An autoencoder, or a joint model.
        split: train, val or test.
        prompts: A file of wordings for each label, see `probing.read_prompts`.
        baselines: Whether to fit simple methods on the training part, and measure them too.
        paired_fraction: Of the training patients, whose pairs the baselines may know; None: as the model was trained.
        trained_on: Folder of the dataset whose training part probes, baselines and the search for copied reports look
            at; None: the same.
        report: Gets Progress and Note events.

    Raises:
        UsageError: there is no such split; the prompts are no such file.
        CyclicError: the split is empty; the model does not fit the dataset.
    """
    registry.check(split, SPLITS, "split")
    wordings = probes.read_prompts(prompts) if prompts else {}
    stored = StoredDataset(dataset)
    learned_from = StoredDataset(trained_on) if trained_on else stored
    check_fits(stored, model, report)
    _check_prompts(wordings, stored)
    if trained_on:
        check_fits(learned_from, model, report)
    part = _read(stored, model, split, 1.0, report)
    if not len(part.index["sample"]):
        counts = ", ".join(f"{name} {count}" for name, count in stored.facts.counts.get("splits", {}).items())
        raise CyclicError(f"The split {split} holds no sample ({counts}).", "Name another --split.")
    if wordings:
        model.require("image", "text")
    labels = _label_rows(part)
    groups = retrieval.protocols(
        {"text": part.index["text"], "study": part.index["study"], "patient": part.index["patient"]}
        | ({"labels": labels} if labels is not None else {})
    )
    train = _read_training(learned_from, model, report) if part.labels or baselines else None
    if train and not len(train.index["sample"]):
        report(Note(f"{learned_from.folder} has no training part, so no probes or baselines: see --train.", True))
        train = None
    if paired_fraction is None:
        paired_fraction = _trained_on(model, "paired_fraction")
    return Evaluation(
        model=model.fingerprint,
        dataset=stored.facts.fingerprint,
        split=split,
        samples=len(part.index["sample"]),
        patients=len(set(part.index["patient"].tolist())),
        repeated_reports=retrieval.repeated(groups["same_text"][part.index["has_text"].astype(bool)]),
        reconstruction=_reconstruction(model, part, stored, report),
        retrieval=_retrieval(part, groups),
        consistency=_consistency(part),
        neighbours=_neighbours(part, groups),
        **(_probes(train, part) if train else {}),
        zero_shot=_zero_shot(model, part, wordings),
        generated_text=_generated_text(model, part, learned_from, report),
        baselines=_baselines(train, part, groups, paired_fraction) if baselines and train else {},
    )


# ------------------------------------------------------------------------------------------------------- reading


def _read_training(stored: StoredDataset, model: TorchModel, report: Report) -> Part:
    """What the model was trained on, or about the first `PROBED` samples of it."""
    total = int(stored.facts.counts.get("splits", {}).get("train", 0))
    fraction = min(_trained_on(model, "fraction"), PROBED / max(1, total))
    return _read(stored, model, "train", fraction, report)


def _read(stored: StoredDataset, model: TorchModel, split: str, fraction: float, report: Report) -> Part:
    """The first `fraction` of a split's patients, with the embeddings of their samples."""
    modalities, facts = modalities_of(model.checkpoint.architecture)
    columns = ["sample", "patient", "text", "has_text", *FACTS, *stored.facts.labels]
    index = stored.rows([*columns, *(name for one in modalities for name in one.file.COLUMNS)], split, fraction)
    labels = {name: index[name] for name in stored.facts.labels}
    values, numbers, embeddings = {}, {}, {}
    for one in modalities:
        values[one.name], numbers[one.name] = present_samples(stored, one, index, facts[one.name])
        embeddings[one.name] = _embedded(model, one.name, values[one.name], report)
    return Part(index, labels, numbers, values, embeddings)


def _embedded(model: TorchModel, name: str, values: Any, report: Report) -> np.ndarray:
    parts = [np.empty((0, 1), np.float32)]
    for first in range(0, len(values), BATCH):
        chosen = np.arange(first, min(first + BATCH, len(values)))
        parts.append(model.embed(name, values.load(chosen)))
        report(Progress(int(chosen[-1]) + 1, len(values), f"{name}s embedded"))
    return np.concatenate(parts[1:] or parts)


def _label_rows(part: Part) -> np.ndarray | None:
    """The labels (S, L) float as numbers, those that are text numbered; None without any."""
    if not part.labels:
        return None
    columns = []
    for column in part.labels.values():
        if column.dtype == object:
            known = sorted({value for value in column.tolist() if value is not None})
            numbered = {value: float(number) for number, value in enumerate(known)}
            columns.append(np.array([numbered.get(value, np.nan) for value in column.tolist()]))
        else:
            columns.append(column.astype(float))
    return np.stack(columns, 1)


# ----------------------------------------------------------------------------------------------------- measuring


def _reconstruction(model: TorchModel, part: Part, stored: StoredDataset, report: Report) -> dict[str, Any]:
    """Means over the images, without letterbox, and of each modality the error as a share of the best constant's."""
    if model.is_joint and not model.checkpoint.architecture["config"].get("decoders"):
        return {}
    found: dict[str, Any] = {}
    if "image" in part.values and len(part.values["image"]):
        found |= _image_errors(model, part, stored, report)
    if model.is_joint:
        shares = {name: _mean_error(model, name, values) for name, values in part.values.items() if len(values)}
        found["relative_error"] = shares
    return found


def _image_errors(model: TorchModel, part: Part, stored: StoredDataset, report: Report) -> dict[str, float | None]:
    values, there = part.values["image"], np.flatnonzero(part.numbers["image"] != UNPAIRED)
    figures: dict[str, list[float]] = {"mse": [], "psnr": [], "ssim": []}
    for first in range(0, len(there), BATCH):
        chosen = np.arange(first, min(first + BATCH, len(there)))
        pixels = stored.images(values.shards[chosen], values.places[chosen])
        for sample, original, decoded in zip(there[chosen], as_float(pixels), model.reconstruct(pixels), strict=True):
            area = image_area(
                int(part.index["height"][sample]), int(part.index["width"][sample]), stored.facts.preprocessing.size
            )
            for name, measure in (("mse", metrics.mse), ("psnr", metrics.psnr), ("ssim", metrics.ssim)):
                figures[name].append(measure(original[0][area], decoded[0][area]))
        report(Progress(int(chosen[-1]) + 1, len(there), "images reconstructed"))
    return {name: _mean(several) for name, several in figures.items()}


def _mean_error(model: TorchModel, name: str, values: Any) -> float:
    """The mean error of a modality decoded from its own embedding and private part."""
    import torch

    total = 0.0
    with torch.inference_mode():
        for first in range(0, len(values), BATCH):
            value = model.placed(values.load(np.arange(first, min(first + BATCH, len(values)))))
            code = model.module.code(name, *model.module.parts(name, value))
            total += float(model.module.encoders[name].errors(code, value).sum())
    return total / len(values)


def _mean(values: list[float]) -> float | None:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def _retrieval(part: Part, groups: Mapping[str, np.ndarray]) -> dict[str, Any]:
    found = {}
    for a, b in permutations(part.values, 2):
        both = part.both(a, b)
        if len(both):
            found[f"{a}_to_{b}"] = _recalls(part.of(a, both), part.of(b, both), both, part, groups)
    return found


def _recalls(
    queries: np.ndarray, gallery: np.ndarray, samples: np.ndarray, part: Part, groups: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Recall by protocol of embeddings (P, D) of samples (P,) of a part."""
    found = {}
    for protocol, of in groups.items():
        hits, patients = of[samples], part.index["patient"][samples]
        recall = retrieval.recall(queries, gallery, hits, hits, patients)
        found[protocol] = asdict(recall) if recall else None
    return found


def _consistency(part: Part) -> dict[str, Any]:
    found = {}
    for a, b in permutations(part.values, 2):
        both = part.both(a, b)[:COMPARED]
        if len(both):
            found[f"{a}_to_{b}"] = retrieval.consistency(part.of(a, both), part.of(b, both))
    return found


def _neighbours(part: Part, groups: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What `neighbours.compare` finds of images; reports are compared by their embeddings, else by their words."""
    if "image" not in part.values:
        return {}
    there = np.flatnonzero(part.numbers["image"] != UNPAIRED)[:COMPARED]
    told = part.index["has_text"][there].astype(bool)
    reports = None
    if told.any() and "text" in part.values:
        reports = neighbours.with_untold(part.of("text", there[told]), told)
    elif told.any():
        reports = generated_text.alike(part.index["text"][there].tolist())
    different = {"reports": groups["same_text"][there]}
    if "same_labels" in groups:
        different["labels"] = groups["same_labels"][there]
    labels = {name: values[there] for name, values in part.labels.items()}
    return neighbours.compare(
        part.of("image", there), reports, part.index["patient"][there], labels, different, NEIGHBOURS
    )


def _probes(train: Part, part: Part) -> dict[str, Any]:
    """`linear_probe` and `knn`: classifiers of every label on the embeddings of every modality."""
    found: dict[str, Any] = {"linear_probe": {}, "knn": {}}
    for label in part.labels.keys() & train.labels.keys():
        column = part.labels[label]
        for name in part.embeddings:
            known, asked = (np.flatnonzero(some.numbers[name] != UNPAIRED) for some in (train, part))
            learned = train.of(name, known), train.labels[label][known]
            tested = part.of(name, asked), column[asked]
            if not len(known) or not len(asked):
                continue
            linear = probes.linear_probe(*learned, train.index["patient"][known], *tested)
            found["linear_probe"].setdefault(label, {})[name] = asdict(linear) if linear else None
            found["knn"].setdefault(label, {})[name] = probes.knn(*learned, *tested)
    return found


def _check_prompts(wordings: Mapping[str, Any], stored: StoredDataset) -> None:
    """Raise UsageError unless all prompts are of label columns of 0 and 1."""
    kinds = stored.label_kinds()
    for label in wordings:
        if label not in kinds:
            has = f"It has {', '.join(kinds)}." if kinds else "It has none: see --label-column of prepare."
            raise UsageError(f"The prompts name {label!r}, which is no label of the dataset.", has)
        if kinds[label] == "string":
            raise UsageError(
                f"{label!r} is a column of words; prompts need one of 0 and 1.",
                "Prepare a column for each of its classes.",
            )


def _zero_shot(model: TorchModel, part: Part, wordings: Mapping[str, Mapping[str, list[str]]]) -> dict[str, Any]:
    """AUROC of each label that has prompts, from the similarity of images to them."""
    found: dict[str, Any] = {}
    for label, kinds in wordings.items():
        there = np.flatnonzero(part.numbers["image"] != UNPAIRED)
        positive, negative = (model.embed("text", model.texts(kinds[kind])) for kind in ("positive", "negative"))
        scores = probes.zero_shot(part.of("image", there), positive, negative)
        score = probes.auroc(part.labels[label][there], scores, part.index["patient"][there])
        found[label] = asdict(score) if score else None
    return found


def _generated_text(model: TorchModel, part: Part, learned_from: StoredDataset, report: Report) -> dict[str, Any]:
    """Scores of the texts that are written of images, greedily, and whether they are training reports."""
    import torch

    config = model.checkpoint.architecture["config"] if model.is_joint else {}
    if not config.get("decoders") or not {"image", "text"} <= set(part.values):
        return {}
    encoder = model.module.encoders["text"]
    both = part.both("image", "text")[:WRITTEN]
    if not encoder.generates or not len(both):
        return {}
    written: list[str] = []
    for first in range(0, len(both), BATCH):
        with torch.inference_mode():
            embeddings = torch.from_numpy(part.of("image", both[first : first + BATCH]))
            written += encoder.write(model.module.code("text", model.placed(embeddings)))
        report(Progress(len(written), len(both), "texts written"))
    true = part.index["text"][both].tolist()
    training = learned_from.rows(["text", "has_text"], "train")
    known = training["text"][training["has_text"].astype(bool)].tolist()
    trained_on = model.checkpoint.provenance
    if learned_from.facts.fingerprint != trained_on.get("dataset"):
        report(Note("Copied reports are looked for in another dataset than the model's: see --train.", True))
    elif trained_on.get("also"):
        report(Note("Copied reports are not looked for in the datasets of --also: name one with --train.", True))
    as_far_as_written = [encoder.vocabulary.decode(one) for one in encoder.vocabulary.encode(known, encoder.limit)]
    copied, _ = generated_text.copied(written, known + as_far_as_written)
    truth = {name: labels[both] for name, labels in part.labels.items()}
    read = generated_text.finding_scores(true, truth)  # how far the reader of findings can be trusted with such reports
    findings = {
        name: asdict(one) | {"f1_of_true_reports": read[name].f1}
        for name, one in generated_text.finding_scores(written, truth).items()
    }
    return {
        "samples": len(both), "bleu": generated_text.bleu(written, true),
        "rouge_l": generated_text.rouge_l(written, true),
        "copied_from_training": copied if known else None, "distinct": len(set(written)), "findings": findings,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------ baselines


def _trained_on(model: TorchModel, name: str) -> float:
    """The share of the training patients that a model was trained on (fraction), or knew the pairs of."""
    return float(model.checkpoint.provenance.get("settings", {}).get(name, 1.0))


def _baselines(train: Part, part: Part, groups: Mapping[str, np.ndarray], paired_fraction: float) -> dict[str, Any]:
    """What closed forms reach, fitted on the training part and on the pairs that the model knew."""
    found: dict[str, Any] = {"paired_fraction": paired_fraction}
    if "image" not in part.values or not len(part.values["image"]) or not len(train.values["image"]):
        return found
    known, asked = (some.values["image"].load(np.arange(len(some.values["image"]))).numpy() for some in (train, part))
    found["mean_image"] = {"mse": closed_form.mean_image_mse(known, asked)}
    pca = closed_form.PrincipalComponents(BASELINE_DIMS).fit(known)
    codes = (
        replace(some, embeddings={"image": pca.transform(images)}) for some, images in ((train, known), (part, asked))
    )
    found["pca"] = {"mse": pca.mse(asked), "dims": BASELINE_DIMS, **(_probes(*codes) if part.labels else {})}
    if "text" in part.values:
        found |= _maps(train, part, known, asked, groups, paired_fraction)
    return found


def _maps(
    train: Part, part: Part, known: np.ndarray, asked: np.ndarray, groups: Mapping[str, np.ndarray],
    paired_fraction: float,
) -> dict[str, Any]:  # fmt: skip
    """Retrieval by maps in closed form; `known` and `asked` are the images of both parts. Empty with too few pairs."""
    pairs, both = train.both("image", "text"), part.both("image", "text")
    pairs = pairs[may_be_paired(train.index["patient"][pairs], paired_fraction)]
    patients = train.index["patient"][pairs]
    if len(set(patients.tolist())) < closed_form.FOLDS or not len(both):
        return {}
    image_codes = closed_form.ImageCodes(BASELINE_DIMS).fit(known)
    text_codes = closed_form.TextCodes(BASELINE_DIMS).fit(train.values["text"].texts.tolist())

    def codes(of: Part, images: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        texts = of.index["text"][samples].tolist()
        return image_codes.transform(images[of.numbers["image"][samples]]), text_codes.transform(texts)

    learned, tested = codes(train, known, pairs), codes(part, asked, both)
    found = {}
    for name in closed_form.MAPS:
        fitted = closed_form.fit_map(name, *learned, patients)
        embeddings = {"image": fitted.images(tested[0]), "text": fitted.texts(tested[1])}
        found[name] = {
            f"{a}_to_{b}": _recalls(embeddings[a], embeddings[b], both, part, groups)
            for a, b in permutations(embeddings, 2)
        }
    return found
