"""Batches for image–text training that mix paired samples with unpaired images and texts.

An item is what a sample holds of one modality: its image, its text. The items of unpaired samples are drawn in an order
that depends on the items alone. Batches, random numbers and objectives therefore do not depend on which image belongs
to an unpaired report. Permuting the images of unpaired samples does not change the result. There is one exception: the
vocabulary of the text encoder keeps only tokens that occur in reports of several patients, so it depends on whose
report it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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

UNPAIRED = -1  # in place of a sample number, for an item that is not paired, or must not be used as paired


@dataclass(frozen=True)
class Modality:
    """One modality of a run: the file with its name, and its settings (the `Config` of that file)."""

    name: str
    file: ModuleType
    config: Any

    @classmethod
    def of(cls, name: str, settings: dict[str, Any]) -> "Modality":
        """Raises UsageError when no file has this name, or the file does not define one of the settings."""
        file = registry.load("modalities", name, "modality")
        return cls(name, file, build(file.Config, settings, f"modalities.{name}"))


def modalities_of(architecture: Mapping[str, Any]) -> tuple[list[Modality], Mapping[str, Any]]:
    """The modalities of a checkpoint's model, and their facts by name. An autoencoder has the modality `image`."""
    if architecture["name"] != "joint":
        return [Modality.of("image", {})], {"image": {"image_shape": architecture["image_shape"]}}
    tables = architecture["config"]["modalities"]
    return [Modality.of(name, table) for name, table in tables.items()], architecture["facts"]


def portable(modality: Modality) -> dict[str, Any]:
    """A modality's settings without those that name a path of this machine."""
    without_paths = getattr(modality.file, "portable", lambda config: config)
    return as_plain(without_paths(modality.config))


class Pool:
    """All items of one modality that a run may draw, from one dataset or several."""

    def __init__(self, parts: Sequence[Any], sample_keys: np.ndarray) -> None:
        """
        Args:
            parts: The `Samples` of each dataset, see `modalities`.
            sample_keys: (N,) The keys of the samples to which the items belong.
        """
        self.parts, self.sample_keys = list(parts), sample_keys
        self.ends = np.cumsum([len(part) for part in parts])
        self.keys = np.concatenate([part.keys for part in parts])  # (N,) uint64
        self.by_key = np.argsort(self.keys, kind="stable")  # (N,) numbers of the items, in the order of their keys

    def __len__(self) -> int:
        return int(self.ends[-1])

    def load(self, chosen: np.ndarray, variation: tuple[int, int] | None = None) -> Tensor:
        """The items with the numbers `chosen` (M,), augmented by (seed, epoch) where `variation` gives them."""
        parts = np.searchsorted(self.ends, chosen, side="right")
        if len(set(parts.tolist())) <= 1:
            return self._load(int(parts[0]) if len(parts) else 0, chosen, variation)
        items: Tensor | None = None
        for part in np.unique(parts):
            places = np.flatnonzero(parts == part)
            some = self._load(int(part), chosen[places], variation)
            items = some.new_zeros(len(chosen), *some.shape[1:]) if items is None else items
            items[places] = some
        assert items is not None
        return items

    def _load(self, part: int, chosen: np.ndarray, variation: tuple[int, int] | None) -> Tensor:
        samples = self.parts[part]
        loaded: Tensor = samples.load(chosen - (self.ends[part] - len(samples)))
        return samples.augmented(loaded, self.keys[chosen], *variation) if variation else loaded

    def digests(self) -> list[bytes]:
        """Digests of all items, see `codes.contents`. Needs a modality whose code may be fixed."""
        return [digest for part in self.parts for digest in part.digests()]

    def texts(self, chosen: np.ndarray) -> list[str]:
        """The texts with the numbers `chosen` (M,), of a pool of texts."""
        texts: list[str] = self._texts[chosen].tolist()
        return texts

    @cached_property
    def _texts(self) -> np.ndarray:
        return np.concatenate([part.texts for part in self.parts])

    def shuffled(self, seed: int, size: int, most: int) -> Iterator[Tensor]:
        """At most `most` items in random order, in batches of at most `size`."""
        order = EpochOrder(len(self), seed, -1, "start")[:most]
        for first in range(0, len(order), size):
            yield self.load(self.by_key[order[first : first + size]])


class Subset:
    """Some items of a pool, with its methods to read them."""

    def __init__(self, pool: "Pool | Subset", numbers: np.ndarray) -> None:
        """`numbers` (M,) are those of the items in the pool."""
        self._pool, self._numbers = pool, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def load(self, chosen: np.ndarray) -> Tensor:
        return self._pool.load(self._numbers[chosen])

    def digests(self) -> list[bytes]:
        every = self._pool.digests()
        return [every[number] for number in self._numbers]

    def texts(self, chosen: np.ndarray) -> list[str]:
        return self._pool.texts(self._numbers[chosen])


@dataclass(frozen=True)
class MixedBatch:
    """The items of a batch. Both tables have an array (M,) for each modality."""

    numbers: dict[str, np.ndarray]  # of the items in the pool
    samples: dict[str, np.ndarray]  # numbers of the samples; UNPAIRED where the batch has no other item of the sample

    def __len__(self) -> int:
        return max(len(numbers) for numbers in self.numbers.values())

    def part(self, ranks: Ranks) -> "MixedBatch":
        """The part of one process. The items of a sample stay together."""
        paired = np.unique(np.concatenate([some[some != UNPAIRED] for some in self.samples.values()]))
        mine = ranks.part(paired)
        numbers, samples = {}, {}
        for name, some in self.samples.items():
            unpaired = ranks.part(np.flatnonzero(some == UNPAIRED))
            places = np.concatenate([np.flatnonzero(np.isin(some, mine)), unpaired])
            numbers[name], samples[name] = self.numbers[name][places], some[places]
        return MixedBatch(numbers, samples)


class Mixture:
    """The training samples of a run: which of them are paired, and which items each step draws."""

    def __init__(self, pools: Mapping[str, Pool], rows: Mapping[str, np.ndarray], paired: np.ndarray) -> None:
        """
        Args:
            pools: By modality.
            rows: By modality (S,), for each sample the number of its item in the pool. UNPAIRED where it has none.
            paired: (S,) bool, whether training may use the pairing of a sample's items.
        """
        self.pools = dict(pools)
        several = np.sum([numbers != UNPAIRED for numbers in rows.values()], axis=0) > 1
        self.paired = np.flatnonzero(paired & several)  # (P,) samples
        self.rows = {name: numbers[self.paired] for name, numbers in rows.items()}  # (P,) by modality
        self.unpaired: dict[str, np.ndarray] = {}  # by modality, the numbers of items in the pool
        for name, pool in self.pools.items():
            is_paired = np.isin(pool.by_key, self.rows[name])
            self.unpaired[name] = pool.by_key[~is_paired]

    @property
    def scarcity(self) -> float:
        """The share of unpaired items among all items, from 0 to 1."""
        return sum(map(len, self.unpaired.values())) / sum(map(len, self.pools.values()))

    def sizes(self, batch_size: int, paired_share: float | None) -> tuple[int, dict[str, int]]:
        """The number of paired samples in a batch, and by modality the number of unpaired items.

        A batch has `batch_size` items of each modality, or all of them where the modality has fewer. `paired_share` is
        the share of paired samples. The share is larger in two cases: where pairs make up more of the training data
        than `paired_share`, and where too few unpaired items are left to fill the batch. With None the batch has paired
        samples only.
        """
        if paired_share is None:
            return min(len(self.paired), batch_size), dict.fromkeys(self.unpaired, 0)
        share = max(paired_share, len(self.paired) / max(map(len, self.pools.values())))
        most_unpaired = max(map(len, self.unpaired.values()))
        paired = min(len(self.paired), max(1, round(batch_size * share), batch_size - most_unpaired))
        return paired, {name: min(len(numbers), batch_size - paired) for name, numbers in self.unpaired.items()}

    def steps_per_epoch(self, batch_size: int) -> int:
        """The number of batches that the largest modality fills. It does not depend on the pairing."""
        return -(-max(len(pool) for pool in self.pools.values()) // batch_size)

    def batch(self, step: int, seed: int, batch_size: int, paired_share: float | None) -> MixedBatch:
        """The batch of a step of the run, counted from 0."""
        paired, unpaired = self.sizes(batch_size, paired_share)
        chosen = _drawn(len(self.paired), paired, step, seed, "paired")
        numbers, samples = {}, {}
        for name, rows in self.rows.items():
            with_item = chosen[rows[chosen] != UNPAIRED]
            others = self.unpaired[name][_drawn(len(self.unpaired[name]), unpaired[name], step, seed, name)]
            numbers[name] = np.concatenate([rows[with_item], others])
            samples[name] = np.concatenate([self.paired[with_item], np.full(len(others), UNPAIRED)])
        return MixedBatch(numbers, samples)


def _drawn(count: int, size: int, step: int, seed: int, purpose: str) -> np.ndarray:
    """`size` of `count` numbers without repetition: the next part of a random order, which is new in each pass."""
    if not size:
        return np.empty(0, np.int64)
    steps = count // size  # batches per pass; the samples left over differ from pass to pass
    return EpochOrder(count, seed, step // steps, purpose)[step % steps * size : (step % steps + 1) * size]


def read_index(dataset: StoredDataset, modalities: Sequence[Modality], split: str, fraction: float = 1.0) -> Any:
    """The columns (S,) of the index that the modalities read, with `sample` and `patient`."""
    columns = dict.fromkeys(["sample", "patient", *(name for one in modalities for name in one.file.COLUMNS)])
    return dataset.rows(columns, split, fraction)


def present_samples(dataset: StoredDataset, modality: Modality, index: Any, facts: Any) -> tuple[Any, np.ndarray]:
    """The `Samples` of an index that have a modality, and for each row (S,) their number or UNPAIRED."""
    present = np.asarray(modality.file.present(index), bool)
    numbers = np.where(present, np.cumsum(present) - 1, UNPAIRED)
    rows = {name: column[present] for name, column in index.items()}
    return modality.file.Samples(dataset, rows, modality.config, facts), numbers


@dataclass(frozen=True)
class Source:
    """The training part of a dataset that a run draws from."""

    dataset: StoredDataset
    index: dict[str, np.ndarray]  # columns (S,), see `read_index`


def fit(sources: Sequence[Source], modality: Modality) -> Any:
    """The facts of a modality, such as a vocabulary, learned from the training samples of all sources together.

    Raises:
        CyclicError: no sample has the modality.
    """
    found = []
    for source in sources:
        present = np.asarray(modality.file.present(source.index), bool)
        if present.any():
            found.append((source.dataset, {name: column[present] for name, column in source.index.items()}))
    if not found:
        raise CyclicError(
            f"No training sample has the modality {modality.name!r}.",
            "Prepare a dataset that has it, add one with --also, or leave the modality out.",
        )
    together = {name: np.concatenate([index[name] for _, index in found]) for name in found[0][1]}
    return modality.file.fit(found[0][0], together, modality.config)


def make_mixture(
    sources: Sequence[Source],
    modalities: Sequence[Modality],
    facts: Mapping[str, Any],
    paired_fraction: float,
    paired_seed: int = 0,
) -> Mixture:
    """The training samples of the first source, which may be paired, and of further sources, which are unpaired.

    Args:
        sources: At least one.
        modalities: Of the run.
        facts: What `fit` learned of each modality, by its name.
        paired_fraction: The share of the first source's patients whose samples are paired. A hash of the patient key
            decides.
        paired_seed: Of the hash.
    """
    found = {
        one.name: [present_samples(source.dataset, one, source.index, facts[one.name]) for source in sources]
        for one in modalities
    }
    pools = {
        name: Pool(
            [samples for samples, _ in some],
            np.concatenate([
                source.index["sample"][numbers != UNPAIRED] for source, (_, numbers) in zip(sources, some, strict=True)
            ]),
        )
        for name, some in found.items()
    }  # fmt: skip
    return Mixture(
        pools,
        {name: some[0][1] for name, some in found.items()},
        may_be_paired(sources[0].index["patient"], paired_fraction, paired_seed),
    )


def may_be_paired(patients: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """Which samples (S,) bool belong to the share of patients whose pairs training may use.

    `patients` (S,) are the patient keys of the samples. Each `seed` draws other patients.
    """
    places = {patient: paired_place(patient, seed) for patient in set(patients.tolist())}
    return np.array([places[patient] < fraction for patient in patients.tolist()], bool)
