"""Measure the information about labels in frozen embeddings: linear probe, k-NN, and zero-shot scores from prompts.

Samples whose label is missing (NaN or None) are left out. Undefined scores, for example with a single class, are None.
scikit-learn fits the probe; it is imported only then, because it loads slowly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cyclic_cli.errors import UsageError
from cyclic_cli.metrics.retrieval import l2_normalised, patient_interval
from cyclic_cli.registry import check

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # values of C of the logistic regression, the strongest regularisation first
NEAREST = 20
TEMPERATURE = 0.07  # of the weights of neighbours, as in Wu et al., CVPR 2018


@dataclass(frozen=True)
class Probe:
    """Performance on test samples of a classifier that was fitted to training samples; shares 0–1."""

    accuracy: float
    majority_class: float  # accuracy of always predicting the most frequent training label
    auroc: float | None  # one-vs-rest, mean over the classes
    classes: int
    train: int  # samples with a label
    test: int


def linear_probe(
    train: np.ndarray, train_labels: np.ndarray, train_patients: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> Probe | None:
    """Logistic regression on standardised features; C is chosen on a fifth of the training patients.

    Args:
        train: (N, D) features.
        train_labels: (N,) of any type; missing ones are None or NaN.
        train_patients: (N,) the patient of each sample.
        test: (M, D) features.
        test_labels: (M,). A class that no training sample has counts as an error.

    Returns:
        None if no test label is known, or the training labels have fewer than two classes.
    """
    train_labels, train, train_patients = _known(train_labels, train, train_patients)
    test_labels, test = _known(test_labels, test)
    classes, sizes = np.unique(train_labels, return_counts=True)
    if len(classes) < 2 or not len(test):
        return None
    model = _logistic(_strength(train, train_labels, train_patients)).fit(train, train_labels)
    return Probe(
        accuracy=float(np.mean(model.predict(test) == test_labels)),
        majority_class=float(np.mean(test_labels == classes[sizes.argmax()])),
        auroc=_macro_auroc(test_labels, model.classes_, model.predict_proba(test)),
        classes=len(classes),
        train=len(train),
        test=len(test),
    )


def _known(labels: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """The labels that are neither None nor NaN, and the rows of the other columns that belong to them."""
    known = np.array([label is not None and label == label for label in labels.tolist()], dtype=bool)
    return np.array(labels[known].tolist()), *(column[known] for column in columns)


def _logistic(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))


def _strength(features: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> float:
    """The C with the best macro AUROC on a held-out fifth of the patients; the middle value if no AUROC is defined."""
    from sklearn.model_selection import GroupShuffleSplit

    if len(np.unique(patients)) > 1:
        fitted, held_out = next(GroupShuffleSplit(1, test_size=0.2, random_state=0).split(features, groups=patients))
        if len(np.unique(labels[fitted])) > 1:
            models = [_logistic(strength).fit(features[fitted], labels[fitted]) for strength in STRENGTHS]
            scores = [_macro_auroc(labels[held_out], m.classes_, m.predict_proba(features[held_out])) for m in models]
            known = [score for score in scores if score is not None]
            if known:
                return STRENGTHS[scores.index(max(known))]
    return STRENGTHS[len(STRENGTHS) // 2]


def _macro_auroc(labels: np.ndarray, classes: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Mean one-vs-rest AUROC over the classes for which there are positive and negative samples."""
    areas = [_area(labels == name, probabilities[:, place]) for place, name in enumerate(classes)]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if known else None


def knn(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, k: int = NEAREST
) -> float | None:
    """Accuracy of k-NN classification; neighbours are weighted by exp(cosine similarity / 0.07) (Wu et al., CVPR 2018).

    Arguments, and the cases that give None, are those of `linear_probe`.
    """
    from sklearn.neighbors import KNeighborsClassifier

    train_labels, train = _known(train_labels, train)
    test_labels, test = _known(test_labels, test)
    if len(np.unique(train_labels)) < 2 or not len(test):
        return None
    model = KNeighborsClassifier(
        min(k, len(train)), metric="cosine", weights=lambda distance: np.exp(-distance / TEMPERATURE)
    )
    return float(np.mean(model.fit(train, train_labels).predict(test) == test_labels))


def zero_shot(images: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Scores (N,): cosine similarity to the mean positive prompt minus that to the mean negative prompt.

    Prompts are L2-normalised before the mean, and their mean after it (prompt ensemble, Radford et al., ICML 2021).

    Args:
        images: Embeddings (N, D).
        positive: Embeddings (P, D) of the positive prompts.
        negative: Embeddings (M, D) of the negative prompts.
    """
    towards, away = (l2_normalised(l2_normalised(prompts).mean(axis=0)) for prompts in (positive, negative))
    return np.asarray(l2_normalised(images) @ (towards - away))


@dataclass(frozen=True)
class Auroc:
    """Area under the receiver operating characteristic, 0–1, with a bootstrap interval over patients."""

    auroc: float
    ci95: tuple[float, float]
    positives: int
    negatives: int


def auroc(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> Auroc | None:
    """AUROC of scores (N,) for labels (N,) of 1 against 0, with a bootstrap over the patients (N,).

    Samples with another label are left out: missing ones, and -1 for uncertain. A single class gives None.
    """
    known = np.isin(labels.astype(np.float64), (0, 1))
    positive, scores, patients = labels[known] == 1, scores[known], patients[known]
    area = _area(positive, scores)
    if area is None:
        return None
    interval = patient_interval(patients, lambda weights: _area(positive, scores, weights))
    return Auroc(area, interval, int(positive.sum()), int((~positive).sum()))


def _area(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    """Probability that a positive sample scores above a negative one; ties count half. None without both classes."""
    place = np.unique(scores, return_inverse=True)[1]
    weights = np.ones(len(scores)) if weights is None else weights
    above, below = (np.bincount(place, weights * chosen) for chosen in (positive, ~positive))
    pairs = above.sum() * below.sum()
    return float(above @ (below.cumsum() - below / 2) / pairs) if pairs else None


def read_prompts(path: Path) -> dict[str, dict[str, list[str]]]:
    """Read the prompts of a YAML file, and insert them into its templates:

        templates: ["{}", "There is {}."]       # optional
        prompts:
          pneumonia:
            positive: ["pneumonia", "a consolidation"]
            negative: ["no pneumonia"]

    Returns:
        `{label: {"positive": [...], "negative": [...]}}`

    Raises:
        UsageError: The file cannot be read, or has another structure.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"The prompts {path} cannot be read.", "Name a YAML file in UTF-8.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"The prompts {path}{line} are not YAML.", "Write `name: value` lines.") from None
    table = _table(values, str(path), ("templates", "prompts"))
    templates = _texts(table.get("templates", ["{}"]), f"`templates` of {path}")
    if any(template.count("{}") != 1 for template in templates):
        raise UsageError(f"A template of {path} does not contain {{}} exactly once.", "Write {} where the prompt goes.")
    labels = _table(table.get("prompts"), f"`prompts` of {path}")
    return {label: _wordings(kinds, f"{label!r} of {path}", templates) for label, kinds in labels.items()}


def _wordings(kinds: object, where: str, templates: Sequence[str]) -> dict[str, list[str]]:
    """The positive and negative prompts of a label, each in every template."""
    table = _table(kinds, where, ("positive", "negative"))
    prompts = {kind: _texts(table.get(kind), f"`{kind}` of {where}") for kind in ("positive", "negative")}
    return {
        kind: [template.replace("{}", text) for template in templates for text in texts]
        for kind, texts in prompts.items()
    }


def _table(value: object, where: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The value if it is a table with entries, and with no other names than `names`; else a UsageError."""
    if not isinstance(value, dict) or not value or not all(isinstance(name, str) for name in value):
        raise UsageError(f"{where} is not a table of names.", "Write `prompts: {label: {positive: [], negative: []}}`.")
    for name in value if names else ():
        check(name, names or (), f"part of {where}")
    return value


def _texts(value: object, where: str) -> list[str]:
    """The value if it is a list of texts, none of them empty, at least one; else a UsageError."""
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise UsageError(f"{where} is not a list of texts.", 'Write a list such as ["no pneumonia"], in quotes.')
    return value
