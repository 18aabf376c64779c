"""Reads a split of a dataset, and embeds its samples with a model."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cyclic_cli.codes.cached_codes import allocated
from cyclic_cli.codes.code_reader import CodeReader
from cyclic_cli.data.mixture import UNPAIRED, modalities_of, present_samples
from cyclic_cli.events import Progress, Report
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.metrics import retrieval
from cyclic_cli.storage.dataset import StoredDataset

BATCH = 64
LARGEST_TRAINING_SET = 20_000  # training samples from which probes and baselines learn, at most
FACTS = ("study", "height", "width")  # columns of the index, read in addition to those of modalities


@dataclass(frozen=True)
class EmbeddedSplit:
    """The samples of one split of a dataset, with their embeddings. S is the number of samples."""

    index: dict[str, np.ndarray]  # (S,) by column
    labels: dict[str, np.ndarray]  # (S,) by label column
    numbers: dict[str, np.ndarray]  # by modality (S,): the row of the sample in `values`, or UNPAIRED if it has none
    values: dict[str, Any]  # by modality, the `Samples` (N) that have it
    embeddings: dict[str, np.ndarray]  # by modality (N, D) float32, L2-normalised
    codes: dict[str, np.ndarray] = field(default_factory=dict)  # by modality of frozen encoders (N, code) float32

    def with_modality(self, name: str) -> np.ndarray:
        """The samples (P,) that have a modality."""
        return np.flatnonzero(self.numbers[name] != UNPAIRED)

    def with_both(self, a: str, b: str) -> np.ndarray:
        """The samples (P,) that have two modalities."""
        return np.flatnonzero((self.numbers[a] != UNPAIRED) & (self.numbers[b] != UNPAIRED))

    def embeddings_of(self, name: str, samples: np.ndarray) -> np.ndarray:
        """The embeddings (P, D) of one modality, for samples (P,) that have it."""
        return self.embeddings[name][self.numbers[name][samples]]

    def hit_groups(self) -> dict[str, np.ndarray]:
        """The groups (S,) of samples that count as hits for one another, by protocol, see `retrieval.protocols`."""
        columns = {name: self.index[name] for name in ("text", "study", "patient")}
        if self.labels:
            columns["labels"] = np.stack([_as_numbers(column) for column in self.labels.values()], 1)
        return retrieval.protocols(columns)


def _as_numbers(column: np.ndarray) -> np.ndarray:
    """A label column (S,) as float. The classes of a text column are numbered in sorted order; None becomes NaN."""
    if column.dtype != object:
        return column.astype(float)
    classes = sorted({value for value in column.tolist() if value is not None})
    numbers = {value: float(number) for number, value in enumerate(classes)}
    return np.array([numbers.get(value, np.nan) for value in column.tolist()])


def read_split(
    stored: StoredDataset, model: TorchModel, split: str, reader: CodeReader, report: Report, fraction: float = 1.0
) -> EmbeddedSplit:
    """Read and embed a split, or the first `fraction` of its patients.

    Codes of frozen encoders are those of `reader`, see `TorchModel.using_cache`.
    """
    modalities, facts = modalities_of(model.checkpoint.architecture)
    columns = ["sample", "patient", "text", "has_text", *FACTS, *stored.facts.labels]
    columns += [name for modality in modalities for name in modality.file.COLUMNS]
    index = stored.rows(columns, split, fraction)
    labels = {name: index[name] for name in stored.facts.labels}
    values, numbers, embeddings, codes = {}, {}, {}, {}
    for modality in modalities:
        name = modality.name
        values[name], numbers[name] = present_samples(stored, modality, index, facts[name])
        if name in reader:
            embeddings[name], codes[name] = _embedded_codes(model, reader, name, values[name], report)
        else:
            embeddings[name] = _embedded(model, name, values[name], report)
    return EmbeddedSplit(index, labels, numbers, values, embeddings, codes)


def read_training_split(stored: StoredDataset, model: TorchModel, reader: CodeReader, report: Report) -> EmbeddedSplit:
    """Read and embed the patients that the model was trained on, up to about `LARGEST_TRAINING_SET` samples."""
    total = int(stored.facts.counts.get("splits", {}).get("train", 0))
    fraction = min(training_setting(model, "fraction"), LARGEST_TRAINING_SET / max(1, total))
    return read_split(stored, model, "train", reader, report, fraction)


def training_setting(model: TorchModel, name: str, otherwise: float = 1.0) -> float:
    """A number from the settings that the model was trained with, such as `paired_fraction`; `otherwise` if unknown."""
    return float(model.checkpoint.provenance.get("settings", {}).get(name, otherwise))


def _embedded(model: TorchModel, name: str, values: Any, report: Report) -> np.ndarray:
    """Embeddings (N, D) of the samples of a modality; (0, 1) without samples."""
    parts = [np.empty((0, 1), np.float32)]
    for first in range(0, len(values), BATCH):
        chosen = np.arange(first, min(first + BATCH, len(values)))
        parts.append(model.embed(name, values.load(chosen)))
        report(Progress(int(chosen[-1]) + 1, len(values), f"{name}s embedded"))
    return np.concatenate(parts[1:] or parts)


def _embedded_codes(
    model: TorchModel, reader: CodeReader, name: str, values: Any, report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) and codes (N, code) of the samples of a modality with frozen encoders."""
    digests, texts = values.digests(), getattr(values, "texts", None)
    codes = allocated((len(values), reader.size(name)))
    parts = [np.empty((0, 1), np.float32)]
    for first in range(0, len(values), BATCH):
        chosen = np.arange(first, min(first + BATCH, len(values)))

        def load(numbers: np.ndarray, chosen: np.ndarray = chosen) -> Any:
            return values.load(chosen[numbers])

        some = digests[first : first + BATCH]
        found = reader.codes(name, some, load, () if texts is None else texts[chosen])
        codes[chosen] = found.cpu().numpy()
        parts.append(model.embed(name, found))
        report(Progress(int(chosen[-1]) + 1, len(values), f"{name}s embedded"))
    return np.concatenate(parts[1:] or parts), codes
