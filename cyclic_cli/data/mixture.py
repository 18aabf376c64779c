"""Batches that mix paired samples with samples that have one modality alone, such as an image without a report.

What is unusual: values alone are drawn in an order of their own, which depends on the values and on nothing else. Which
image an unpaired report belongs to, no batch, no random number and so no objective can tell: permuting the images
changes no bit. (Whose report it is counts once: a token must stand in the reports of several patients.)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from cyclic_cli import registry
from cyclic_cli.config import as_plain, build
from cyclic_cli.data.samples import EpochOrder
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import CyclicError
from cyclic_cli.privacy.keys import paired_place
from cyclic_cli.storage.dataset import StoredDataset

UNPAIRED = -1  # in place of the number of a sample: what has no partner, or is not to know it


@dataclass(frozen=True)
class Modality:
    """One of the modalities of a run: the file behind its name, and its settings as that file takes them."""

    name: str
    file: ModuleType
    config: Any

    @classmethod
    def of(cls, name: str, settings: dict[str, Any]) -> "Modality":
        """Raises UsageError when no file has the name, or the file knows no such setting."""
        file = registry.load("modalities", name, "modality")
        return cls(name, file, build(file.Config, settings, f"modalities.{name}"))


def modalities_of(architecture: Mapping[str, Any]) -> tuple[list[Modality], Mapping[str, Any]]:
    """The modalities of a checkpoint's model, and their facts; an autoencoder has images."""
    if architecture["name"] != "joint":
        return [Modality.of("image", {})], {"image": {"image_shape": architecture["image_shape"]}}
    tables = architecture["config"]["modalities"]
    return [Modality.of(name, table) for name, table in tables.items()], architecture["facts"]


def portable(modality: Modality) -> dict[str, Any]:
    """A modality's settings without those that name a place on this machine."""
    without = getattr(modality.file, "portable", lambda config: config)
    return as_plain(without(modality.config))


class Pool:
    """All values of one modality that a run may draw, of one dataset or several."""

    def __init__(self, parts: Sequence[Any], names: np.ndarray) -> None:
        """`parts` are `Samples`, see `modalities`; `names` (N,) are the keys of the samples they are of."""
        self.parts, self.names = list(parts), names
        self.ends = np.cumsum([len(part) for part in parts])
        self.keys = np.concatenate([part.keys for part in parts])  # (N,) uint64
        self.sorted = np.argsort(self.keys, kind="stable")  # (N,) numbers, in an order of the values' own

    def __len__(self) -> int:
        return int(self.ends[-1])

    def load(self, chosen: np.ndarray, variation: tuple[int, int] | None = None) -> Tensor:
        """The values numbered by `chosen` (M,); varied by (seed, epoch) where that is given."""
        parts = np.searchsorted(self.ends, chosen, side="right")
        if len(set(parts.tolist())) <= 1:
            return self._load(int(parts[0]) if len(parts) else 0, chosen, variation)
        values: Tensor | None = None
        for part in np.unique(parts):
            places = np.flatnonzero(parts == part)
            some = self._load(int(part), chosen[places], variation)
            values = some.new_zeros(len(chosen), *some.shape[1:]) if values is None else values
            values[places] = some
        assert values is not None
        return values

    def _load(self, part: int, chosen: np.ndarray, variation: tuple[int, int] | None) -> Tensor:
        values = self.parts[part]
        loaded: Tensor = values.load(chosen - (self.ends[part] - len(values)))
        return values.varied(loaded, self.keys[chosen], *variation) if variation else loaded

    def shuffled(self, seed: int, size: int, most: int) -> Iterator[Tensor]:
        """At most `most` values in random order, in batches of at most `size`."""
        order = EpochOrder(len(self), seed, -1, "start")[:most]
        for first in range(0, len(order), size):
            yield self.load(self.sorted[order[first : first + size]])


@dataclass(frozen=True)
class Chosen:
    """The values of a batch: by modality their numbers in the pool and the numbers of their samples, both (M,)."""

    numbers: dict[str, np.ndarray]
    samples: dict[str, np.ndarray]  # UNPAIRED where nothing else of the sample is in the batch

    def __len__(self) -> int:
        return max(len(numbers) for numbers in self.numbers.values())

    def part(self, ranks: Ranks) -> "Chosen":
        """One process's part: the values of a sample stay together."""
        together = np.unique(np.concatenate([of[of != UNPAIRED] for of in self.samples.values()]))
        mine = ranks.part(together)
        numbers, samples = {}, {}
        for name, of in self.samples.items():
            alone = ranks.part(np.flatnonzero(of == UNPAIRED))
            places = np.concatenate([np.flatnonzero(np.isin(of, mine)), alone])
            numbers[name], samples[name] = self.numbers[name][places], of[places]
        return Chosen(numbers, samples)


class Mixture:
    """The training samples of a run: which are paired, and what each step draws of them and of the others."""

    def __init__(self, pools: Mapping[str, Pool], rows: Mapping[str, np.ndarray], paired: np.ndarray) -> None:
        """
        Args:
            pools: By modality.
            rows: By modality (S,), for each sample the number of its value in the pool, UNPAIRED where it lacks it.
            paired: (S,) bool, whether the modalities of a sample may be known to belong together.
        """
        self.pools = dict(pools)
        several = np.sum([numbers != UNPAIRED for numbers in rows.values()], axis=0) > 1
        self.paired = np.flatnonzero(paired & several)  # (P,) samples
        self.rows = {name: numbers[self.paired] for name, numbers in rows.items()}  # (P,) by modality
        self.alone: dict[str, np.ndarray] = {}
        for name, pool in self.pools.items():
            together = np.isin(pool.sorted, self.rows[name])
            self.alone[name] = pool.sorted[~together]

    @property
    def scarcity(self) -> float:
        """The share of all values whose partner is not known."""
        return sum(map(len, self.alone.values())) / sum(map(len, self.pools.values()))

    def sizes(self, batch_size: int, paired_share: float | None) -> tuple[int, dict[str, int]]:
        """How many paired samples a batch has, and how many values of each modality alone.

        A batch has `batch_size` values of each modality as far as there are so many. `paired_share` of them are paired,
        or more where more of all values are, or where there are too few alone to fill it; None takes none alone.
        """
        if paired_share is None:
            return min(len(self.paired), batch_size), dict.fromkeys(self.alone, 0)
        share = max(paired_share, len(self.paired) / max(map(len, self.pools.values())))
        most_alone = max(map(len, self.alone.values()))
        paired = min(len(self.paired), max(1, round(batch_size * share), batch_size - most_alone))
        return paired, {name: min(len(numbers), batch_size - paired) for name, numbers in self.alone.items()}

    def steps_per_epoch(self, batch_size: int) -> int:
        """As many batches as the modality with the most values fills, whatever is paired."""
        return -(-max(len(pool) for pool in self.pools.values()) // batch_size)

    def chosen(self, step: int, seed: int, batch_size: int, paired_share: float | None) -> Chosen:
        """The batch of a step (from 0) of the run."""
        paired, alone = self.sizes(batch_size, paired_share)
        together = _drawn(len(self.paired), paired, step, seed, "paired")
        numbers, samples = {}, {}
        for name, pool in self.rows.items():
            there = together[pool[together] != UNPAIRED]
            others = self.alone[name][_drawn(len(self.alone[name]), alone[name], step, seed, name)]
            numbers[name] = np.concatenate([pool[there], others])
            samples[name] = np.concatenate([self.paired[there], np.full(len(others), UNPAIRED)])
        return Chosen(numbers, samples)


def _drawn(count: int, size: int, step: int, seed: int, purpose: str) -> np.ndarray:
    """`size` of `count` numbers, none twice: a step's part of a random order, which is another one in each pass."""
    if not size:
        return np.empty(0, np.int64)
    steps = count // size  # of a pass; what is left over is left out, and another time something else
    return EpochOrder(count, seed, step // steps, purpose)[step % steps * size : (step % steps + 1) * size]


def read_index(dataset: StoredDataset, modalities: Sequence[Modality], split: str, fraction: float = 1.0) -> Any:
    """The columns (S,) of the index that some modalities read, and `sample` and `patient`."""
    columns = dict.fromkeys(["sample", "patient", *(name for one in modalities for name in one.file.COLUMNS)])
    return dataset.rows(columns, split, fraction)


def present_samples(dataset: StoredDataset, modality: Modality, index: Any, facts: Any) -> tuple[Any, np.ndarray]:
    """The `Samples` of an index that have a modality, and for each row (S,) their number or UNPAIRED."""
    there = np.asarray(modality.file.present(index), bool)
    numbers = np.where(there, np.cumsum(there) - 1, UNPAIRED)
    chosen = {name: column[there] for name, column in index.items()}
    return modality.file.Samples(dataset, chosen, modality.config, facts), numbers


@dataclass(frozen=True)
class Source:
    """The training part of a dataset that a run draws from."""

    dataset: StoredDataset
    index: dict[str, np.ndarray]  # columns (S,), see `read_index`


def fit(sources: Sequence[Source], modality: Modality) -> Any:
    """The facts of a modality, learned from the training samples of all sources together.

    Raises:
        CyclicError: none has a value of it.
    """
    found = []
    for source in sources:
        there = np.asarray(modality.file.present(source.index), bool)
        if there.any():
            found.append((source.dataset, {name: column[there] for name, column in source.index.items()}))
    if not found:
        raise CyclicError(
            f"No training sample has a value of the modality {modality.name!r}.",
            "Prepare data that has, name some with --also, or leave the modality out.",
        )
    joined = {name: np.concatenate([index[name] for _, index in found]) for name in found[0][1]}
    return modality.file.fit(found[0][0], joined, modality.config)


def make_mixture(
    sources: Sequence[Source], modalities: Sequence[Modality], facts: Mapping[str, Any], paired_fraction: float
) -> Mixture:
    """The training samples of the first source, with pairs, and of further ones, whose values all count as alone.

    Args:
        sources: At least one.
        modalities: Of the run.
        facts: What `fit` learned of each modality, by its name.
        paired_fraction: Of the patients of the first source, those whose samples are paired; a hash of the patient
            decides.
    """
    found = {
        one.name: [present_samples(source.dataset, one, source.index, facts[one.name]) for source in sources]
        for one in modalities
    }
    pools = {
        name: Pool(
            [values for values, _ in some],
            np.concatenate([
                source.index["sample"][numbers != UNPAIRED] for source, (_, numbers) in zip(sources, some, strict=True)
            ]),
        )
        for name, some in found.items()
    }  # fmt: skip
    return Mixture(
        pools,
        {name: some[0][1] for name, some in found.items()},
        may_be_paired(sources[0].index["patient"], paired_fraction),
    )


def may_be_paired(patients: np.ndarray, fraction: float) -> np.ndarray:
    """Which samples (S,), of these patients, are of the share of patients whose pairs may be known: bool."""
    places = {patient: paired_place(patient) for patient in set(patients.tolist())}
    return np.array([places[patient] < fraction for patient in patients.tolist()], bool)
