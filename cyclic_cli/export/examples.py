"""Real inputs that exported parts are checked with: samples of a dataset, or synthetic radiographs drawn for it."""

import csv
import io
import tempfile
from pathlib import Path

import numpy as np
from torch import Tensor

from cyclic_cli.data.mixture import modalities_of, present_samples, read_index
from cyclic_cli.events import Progress, Report
from cyclic_cli.imaging import readers
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.storage.dataset import StoredDataset

EXAMPLES = 32  # of each modality, at least; also the largest batch of a check
POOL = 1000  # samples of a dataset, at most

Examples = dict[str, Tensor]  # by modality: samples as its `Samples` load them, (N, ...)


def examples_of(model: TorchModel, dataset: Path | None, report: Report) -> tuple[Examples, Examples]:
    """Real samples for the check of parts, and samples for the calibration of int8.

    With a dataset, parts are checked with its validation samples and calibrated with its training samples. Where one of
    these splits has no sample of a modality, the other split serves for both. Without a dataset, the same synthetic
    radiographs serve for both.
    """
    if dataset is None:
        drawn = _drawn_examples(model, report)
        return drawn, drawn
    stored = StoredDataset(dataset)
    val, train = (_stored_examples(model, stored, split) for split in ("val", "train"))
    return _at_least_examples(train | val), _at_least_examples(val | train)


def _at_least_examples(examples: Examples) -> Examples:
    """Repeat the samples of each modality until there are at least EXAMPLES."""
    return {
        name: values.repeat(-(-EXAMPLES // len(values)), *[1] * (values.dim() - 1)) for name, values in examples.items()
    }


def _drawn_examples(model: TorchModel, report: Report) -> Examples:
    """EXAMPLES synthetic radiographs and their reports: a quarter as drawn, the others mirrored or turned."""
    from cyclic_cli.phantom import dataset as phantom

    def progress(done: int, count: int) -> None:
        report(Progress(done, count, "synthetic radiographs"))

    with tempfile.TemporaryDirectory() as folder:
        demo = Path(folder) / "demo"
        phantom.write_demo(demo, EXAMPLES // 4, report=progress)
        files = sorted(demo.rglob("*.dcm"))
        fitted = np.stack([
            readers.fit(readers.read(file.read_bytes(), model.preprocessing), model.preprocessing) for file in files
        ])  # fmt: skip
        rows = csv.DictReader(io.StringIO((demo / "reports.csv").read_text(encoding="utf-8")))
        texts = [row["text"] for row in rows]
    mirrored = [fitted[..., ::down, ::right] for down, right in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    examples = {"image": model.images(np.ascontiguousarray(np.concatenate(mirrored)))}
    if "text" in model.modalities:
        examples["text"] = model.texts((texts * 4)[:EXAMPLES])
    return examples


def _stored_examples(model: TorchModel, dataset: StoredDataset, split: str) -> Examples:
    """The first POOL samples of each modality in a split of a dataset. A modality without samples is left out."""
    modalities, facts = modalities_of(model.checkpoint.architecture)
    index = read_index(dataset, modalities, split)
    found = {}
    for modality in modalities:
        samples, _ = present_samples(dataset, modality, index, facts[modality.name])
        if len(samples):
            found[modality.name] = model.placed(samples.load(np.arange(min(len(samples), POOL))))
    return found
