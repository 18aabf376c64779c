"""What an embedding says about the labels of unseen patients, beside principal components.

    python tests/benchmarks/packaged_model.py DATASET LABEL [--model MODEL] [--split SPLIT]

DATASET was prepared with `--label-column LABEL`. Classifiers are fitted on the training images that have the label, and
measured on those of SPLIT (default: test): k-NN, and a linear probe (see `cyclic_cli/metrics/probes.py`). The principal
components are the first 128 of all training images, averaged to at most 112 pixels per side. Intervals of 95 % are
bootstraps over the patients of SPLIT; that of the difference is paired.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from cyclic_cli.data.samples import Samples
from cyclic_cli.evaluation.baselines import PrincipalComponents
from cyclic_cli.inference.load import load_checkpoint
from cyclic_cli.metrics import probes
from cyclic_cli.metrics.retrieval import patient_interval
from cyclic_cli.models._embedding import reduced
from cyclic_cli.storage.dataset import StoredDataset

COMPONENTS = 128
BATCH = 64


class Part:
    """The images of a split, and the labels and patients of those that have a label."""

    def __init__(self, dataset: StoredDataset, split: str, label: str) -> None:
        self.samples = Samples.of(dataset, split)
        rows = dataset.rows(["has_image", "patient", label], split)
        labels, patients = (rows[name][rows["has_image"].astype(bool)] for name in (label, "patient"))
        self.known = np.array([value is not None and value == value for value in labels])
        self.labels, self.patients = labels[self.known], patients[self.known]

    def features(self, function: Callable[[Tensor], np.ndarray], labelled: bool = True) -> np.ndarray:
        """Features (N, D) of the images, or of those with a label."""
        chosen = np.flatnonzero(self.known) if labelled else np.arange(len(self.samples))
        return np.concatenate([function(batch) for batch in self.samples.batches(chosen, BATCH)])


def pixels(images: Tensor) -> np.ndarray:
    return np.asarray(reduced(images).flatten(1))


def hits(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether k-NN finds the label (M,) of each test sample."""
    places = range(len(test))
    return np.array([probes.knn(train, train_labels, test[at : at + 1], labels[at : at + 1]) for at in places])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("label")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    stored = StoredDataset(options.dataset)
    train, test = (Part(stored, split, options.label) for split in ("train", options.split))
    model = load_checkpoint(options.model)
    components = PrincipalComponents(COMPONENTS).fit(train.features(pixels, labelled=False))
    kinds: dict[str, Callable[[Tensor], np.ndarray]] = {
        "model": lambda images: model.embed("image", images),
        f"PCA-{COMPONENTS}": lambda images: components.transform(pixels(images)),
    }
    found = {}
    print(f"{len(test.labels)} images of {len(np.unique(test.patients))} patients")
    for name, function in kinds.items():
        learned, tested = train.features(function), test.features(function)
        found[name] = hits(learned, train.labels, tested, test.labels)
        probe = probes.linear_probe(learned, train.labels, train.patients, tested, test.labels)
        assert probe
        low, high = interval(test.patients, found[name])
        print(f"{name:8} k-NN {found[name].mean():.3f} ({low:.3f} to {high:.3f})", end="  ")
        print(f"linear probe {probe.accuracy:.3f}, AUROC {probe.auroc:.3f}, majority {probe.majority_class:.3f}")
    first, second = found.values()
    low, high = interval(test.patients, first - second)
    print(f"difference of k-NN {np.mean(first - second):+.3f} ({low:+.3f} to {high:+.3f})")


def interval(patients: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The interval of the mean of values (N,)."""
    return patient_interval(patients, lambda weights: float(np.average(values, weights=weights)))


if __name__ == "__main__":
    main()
