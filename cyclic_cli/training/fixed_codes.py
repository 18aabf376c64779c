"""Learns the fixed codes of a run and the closed form between them, from features that are computed once.

    features            of all training samples, by source and output            codes/sources.py
    parts               principal components of each output, of variance one     codes/components.py
    closed form         which parts and which maps, by folds over known pairs    alignment/choice.py
    drawing, expansion  ridge regressions that lead from codes to pixels, and from embeddings to codes

Everything that is fitted is fitted on training samples alone. Parts are fitted on all of them, the closed form on the
paired ones.

Several processes divide the samples (`Shares`). Each computes and reads the features of its share alone, and sums over
them. The sums are added over the processes in float64, the first process solves, and all get its solution. Only the
codes of pairs that are compared or ranked are gathered, at most some thousand. All functions with `ranks` or `share`
are called by all processes together, in `Ranks.together`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cyclic_cli.alignment.choice import MANY_PAIRS
from cyclic_cli.alignment.layers import mutual_knn
from cyclic_cli.alignment.maps import Blocks, Factors, embed
from cyclic_cli.alignment.moments import Moments
from cyclic_cli.codes.cached_codes import TickOf, allocated, projected
from cyclic_cli.codes.coded import PartFacts
from cyclic_cli.codes.components import Components, EqualFeatures, fit_components
from cyclic_cli.codes.exchange import ALONE, Exchange, rows_of_all
from cyclic_cli.codes.image_codes import COMPONENTS, reduced
from cyclic_cli.codes.sources import BATCH, ROWS, Rows, Share, Source, Tick
from cyclic_cli.codes.terms import NONE
from cyclic_cli.data.mixture import Mixture
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Note, Report

DIMS, MOST_DIMS = 128, 256  # principal components of a part, at most; every part has the latter with `MANY_PAIRS`
FEATURES_PER_DIM = 16  # features beyond which a part of an encoder has more than `DIMS` components
OUTPUTS = 2  # of each encoder that are kept
COMPARED = 1000  # pairs on which outputs are compared, at most
RIDGE = 0.1  # of drawings and expansions, relative to the mean variance of the regressors
DRAWINGS = 20_000  # images from which drawing is learned, at most


@dataclass(frozen=True)
class Shares:
    """What one process reads of the training samples: some known pairs, and samples that are in no pair.

    Both samples of a pair are in the same share, so that their products can be summed.
    """

    of: dict[str, Share]  # by modality
    pairs: np.ndarray  # (p,) places of its pairs among all known pairs, rising
    rows: dict[str, np.ndarray]  # by modality, (p,) numbers of the paired samples within the share

    @classmethod
    def make(cls, mixture: Mixture, ranks: Ranks) -> "Shares":
        """The share of this process. A single process has all samples, in their order."""
        pairs = ranks.part(np.arange(len(mixture.paired)))
        of, rows = {}, {}
        for name, pool in mixture.pools.items():
            paired = mixture.rows[name][pairs]
            numbers = np.sort(np.concatenate([paired, ranks.part(mixture.unpaired[name])]))
            of[name], rows[name] = Share(pool, numbers, ranks), np.searchsorted(numbers, paired)
        return cls(of, pairs, rows)


@dataclass(frozen=True, eq=False)
class CandidatePart:
    """One output of a source, with its principal components on the training samples of all processes."""

    source: Source
    output: str
    rows: Rows  # of the share of this process
    components: Components

    @property
    def name(self) -> str:
        """For people; no other part of the modality has it."""
        return self.source.title if self.output == self.source.title else f"{self.source.title} {self.output}"

    @property
    def facts(self) -> PartFacts:
        features, dims = self.components.matrix.shape
        return PartFacts(source=self.source.name, output=self.output, features=features, dims=dims)

    def encode(self, numbers: np.ndarray) -> np.ndarray:
        """The part (M, K) float32 of the codes of the samples with the numbers (M,) within the share."""
        return codes_of([self], numbers)


def candidate_parts(
    sources: Sequence[Source], share: Share, pairs: int, tick_of: TickOf, report: Report
) -> list[CandidatePart]:
    """Every part that the code of a modality may have. Features that are equal for all samples are left out.

    Args:
        sources: Of features.
        share: The samples of this process.
        pairs: The number of known pairs.
        tick_of: Gives the progress of a source.
        report: Gets Note events.

    Raises:
        CyclicError: None is left.
    """
    found: list[CandidatePart] = []
    equal = CyclicError(f"{NONE} A code of texts needs such words.", "Name a --text-encoder, or train on more reports.")
    for source in sources:
        for output, rows in source.features(share.items, tick_of(source.title), report).items():
            try:
                components = source.components(rows, output, _dims(source, rows, pairs), share)
            except EqualFeatures as error:
                equal = error
                report(Note(f"{str(error).rstrip('.')}; they are left out", warning=True))
            else:
                found.append(CandidatePart(source, output, rows, components))
    if not found:
        raise equal
    return found


def _dims(source: Source, rows: Rows, pairs: int) -> int:
    if pairs >= MANY_PAIRS:
        return MOST_DIMS
    return DIMS if source.is_cheap else max(DIMS, min(MOST_DIMS, rows.dims // FEATURES_PER_DIM))


def chosen_outputs(
    parts: Sequence[CandidatePart], others: Sequence[CandidatePart], name: str, other: str, shares: Shares,
    patients: np.ndarray, ranks: Exchange,
) -> list[CandidatePart]:  # fmt: skip
    """The parts of a modality without outputs of encoders that say little about the other modality.

    Of each pretrained encoder, `OUTPUTS` outputs are kept. The first one is that whose neighbourhoods agree most with
    those of the other modality on the known pairs (mutual k-NN). The next one is that which agrees most together with
    the first. An encoder that learned from the same images keeps all its outputs, which are few.

    Args:
        parts: Of the modality.
        others: Of the other modality, all of them together.
        name: Of the modality.
        other: Name of the other modality.
        shares: The samples of this process.
        patients: (P,) patients of all known pairs.
        ranks: The processes. At most `COMPARED` pairs are gathered from them.
    """
    by_source: dict[str, list[CandidatePart]] = {}
    for part in parts:
        by_source.setdefault(part.source.name, []).append(part)
    limits = {source: OUTPUTS if some[0].source.is_foreign else len(some) for source, some in by_source.items()}
    if all(len(some) <= limits[source] for source, some in by_source.items()):
        return list(parts)
    some = np.linspace(0, len(patients) - 1, min(len(patients), COMPARED)).astype(int)
    own = np.flatnonzero(np.isin(shares.pairs, some))
    places = np.searchsorted(some, shares.pairs[own])

    def compared(part: CandidatePart, modality: str) -> np.ndarray:
        return rows_of_all(part.encode(shares.rows[modality][own]), places, len(some), ranks)

    theirs = np.concatenate([compared(part, other) for part in others], axis=1)
    codes = {part.name: compared(part, name) for part in parts}

    def agreement(together: Sequence[CandidatePart]) -> float:
        ours = np.concatenate([codes[part.name] for part in together], axis=1)
        return mutual_knn(ours, theirs, patients=patients[some])

    def best() -> set[str]:
        kept: list[CandidatePart] = []
        for source, several in by_source.items():
            chosen: list[CandidatePart] = []
            while len(chosen) < min(limits[source], len(several)):
                left = [part for part in several if part not in chosen]
                chosen.append(max(left, key=lambda part: agreement([*chosen, part])))
            kept += chosen
        return {part.name for part in kept}

    kept = ranks.agreed(best)
    return [part for part in parts if part.name in kept]


def joining(parts: Sequence[CandidatePart]) -> list[CandidatePart]:
    """The parts of a modality that join the others only where folds say so.

    Beside encoders that learned from much other data, cheap parts cost more than they bring. Beside an encoder that
    learned from the same images they help: with 5 and 10 % of the pairs of synthetic radiographs, R@10 of the
    validation part rises from 74 and 77 to 77 and 82, with all outputs of that encoder.
    """
    if not any(part.source.is_foreign for part in parts):
        return []
    return [part for part in parts if part.source.is_cheap]


def codes_of(parts: Sequence[CandidatePart], numbers: np.ndarray) -> np.ndarray:
    """The codes (N, code) float32 of the samples with the numbers (N,) in the share, from the parts in order."""
    return projected([(part.rows, part.components.mean, part.components.matrix) for part in parts], numbers)


def codes_of_all(parts: Sequence[CandidatePart], share: Share, numbers: np.ndarray, ranks: Exchange) -> np.ndarray:
    """The codes (M, code) float32 of the samples with the numbers (M,) among those of all processes, in all of them."""
    own = np.flatnonzero(np.isin(numbers, share.numbers))
    return rows_of_all(codes_of(parts, np.searchsorted(share.numbers, numbers[own])), own, len(numbers), ranks)


def columns(parts: Sequence[CandidatePart]) -> dict[str, slice]:
    """The columns of each part in the concatenation of all."""
    ends = np.cumsum([0, *(part.facts.dims for part in parts)]).tolist()
    return {part.name: slice(*ends[place : place + 2]) for place, part in enumerate(parts)}


def spread_of(codes: np.ndarray, ranks: Exchange = ALONE) -> float:
    """The mean squared distance of codes (N, P), those of all processes together, from their mean."""
    sums, squares = np.zeros(codes.shape[1]), 0.0
    for first in range(0, len(codes), ROWS):
        block = codes[first : first + ROWS].astype(np.float64)
        sums += block.sum(axis=0)
        squares += float(np.square(block).sum())
    sums = ranks.added(sums)
    squares, count = ranks.added(np.array([squares, len(codes)])).tolist()
    return max(squares / count - float(np.square(sums / count).sum()), 1e-6)


def head_of(blocks: Blocks, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The linear map from the codes of a modality to all blocks of the embedding: a matrix (P, D), an offset (D,)."""
    matrix = np.concatenate([one.matrix[name] for one in blocks], axis=1)
    return matrix, np.concatenate([-one.mean[name] @ one.matrix[name] for one in blocks])


def expansion(
    blocks: Blocks,
    codes: Mapping[str, np.ndarray],
    numbers: Mapping[str, np.ndarray],
    name: str,
    ranks: Exchange = ALONE,
) -> tuple[np.ndarray, np.ndarray]:
    """The linear map from embeddings to codes of a modality: a matrix (D, P) and an offset (P,).

    It is learned from the embeddings of both modalities of the known pairs.

    Args:
        blocks: Of the closed form.
        codes: By modality, (N, P) codes of the samples of this process.
        numbers: By modality, (M,) numbers of the paired samples among them.
        name: Of the modality.
        ranks: The processes.
    """
    count = len(numbers[name])

    def several() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first in range(0, count, ROWS):
            some = slice(first, first + ROWS)
            for other in numbers:
                yield embed(blocks, other, codes[other][numbers[other][some]]), codes[name][numbers[name][some]]

    return ridge(several(), sum(one.matrix[name].shape[1] for one in blocks), codes[name].shape[1], ranks)


def ridge(
    samples: Iterable[tuple[np.ndarray, np.ndarray]], inputs: int, targets: int, ranks: Exchange = ALONE
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression: the matrix (P, Q) and offset (Q,) that predict targets from inputs.

    Args:
        samples: Blocks of samples of this process, each a pair of inputs (N, P) and targets (N, Q). All samples count
            alike.
        inputs: P.
        targets: Q.
        ranks: The processes.
    """
    own = Moments(inputs, targets)
    for block in samples:
        own.add(*block)
    moments = own.added(ranks)
    matrix, _ = ranks.agreed(lambda: Factors(moments).regressions(RIDGE))
    mean, target = moments.means()
    return matrix, target - mean @ matrix


def learn_drawing(codes: np.ndarray, share: Share, tick: Tick) -> dict[str, np.ndarray]:
    """The buffers of `Drawing`, and `variance`: the mean squared difference of pixels from the mean image.

    They are learned from at most `DRAWINGS` images of all processes.

    Args:
        codes: (n, code) of all images of the share.
        share: The images of this process.
        tick: Called with the images that were read, and their number.
    """
    ranks, items, total = share.ranks, share.items, len(share.pool)
    drawn = np.unique(np.linspace(0, total - 1, min(total, DRAWINGS)).astype(int))
    numbers = np.flatnonzero(np.isin(share.numbers, drawn))
    example = items.load(np.arange(1))
    small = allocated((len(numbers), reduced(example).shape[1]))
    sums, squares = torch.zeros(example.shape[1:], dtype=torch.float64), 0.0
    for first in range(0, len(numbers), BATCH):
        images = items.load(numbers[first : first + BATCH])
        small[first : first + len(images)] = reduced(images).numpy()
        sums = sums + images.double().sum(0)
        squares += float(images.double().square().sum())
        tick(first + len(images), len(numbers))
    sums = torch.from_numpy(ranks.added(sums.numpy()))
    squares = float(ranks.added(np.array([squares]))[0])
    variance = squares / (len(drawn) * sums.numel()) - float((sums / len(drawn)).square().mean())

    def batches() -> Iterator[np.ndarray]:
        for first in range(0, len(small), ROWS):
            yield small[first : first + ROWS]

    components = fit_components(batches, small.shape[1], min(COMPONENTS, codes.shape[1]), "pixels", ranks)
    blocks = (
        (
            codes[numbers[first : first + ROWS]],
            (small[first : first + ROWS] - components.mean) @ components.directions.T,
        )
        for first in range(0, len(numbers), ROWS)
    )
    matrix, offset = ridge(blocks, codes.shape[1], len(components.directions), ranks)
    return {
        "weights": matrix,
        "components": components.directions,
        "mean": components.mean + offset @ components.directions,
        "variance": np.array(max(variance, 1e-6)),
    }
