"""Learns the fixed codes of a run and the closed form between them, from features that are computed once.

    features            of all training samples, by source and output            codes/sources.py
    parts               principal components of each output, of variance one     codes/components.py
    closed form         which parts and which maps, by folds over known pairs    alignment/choice.py
    drawing, expansion  ridge regressions that lead from codes to pixels, and from embeddings to codes

Everything that is fitted is fitted on training samples alone. Parts are fitted on all of them, the closed form on the
paired ones.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cyclic_cli.alignment.layers import mutual_knn
from cyclic_cli.alignment.maps import Blocks, Factors, embed
from cyclic_cli.alignment.moments import Moments
from cyclic_cli.codes.cached_codes import TickOf, allocated, projected
from cyclic_cli.codes.coded import PartFacts
from cyclic_cli.codes.components import Components, EqualFeatures, fit_components
from cyclic_cli.codes.image_codes import COMPONENTS, reduced
from cyclic_cli.codes.sources import BATCH, ROWS, Rows, Source, Tick
from cyclic_cli.codes.terms import NONE
from cyclic_cli.data.mixture import Pool
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Note, Report

DIMS, MOST_DIMS = 128, 256  # principal components of a part, at most: of few features, and of many
FEATURES_PER_DIM = 16  # features beyond which a part has more than `DIMS` components
OUTPUTS = 2  # of each encoder that are kept
COMPARED = 1000  # pairs on which outputs are compared, at most
RIDGE = 0.1  # of drawings and expansions, relative to the mean variance of the regressors
DRAWINGS = 20_000  # images from which drawing is learned, at most


@dataclass(frozen=True, eq=False)
class CandidatePart:
    """One output of a source, with its principal components on the training samples."""

    source: Source
    output: str
    rows: Rows
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
        """The part (M, K) float32 of the codes of the samples with the numbers (M,)."""
        return codes_of([self], numbers)


def candidate_parts(sources: Sequence[Source], pool: Pool, tick_of: TickOf, report: Report) -> list[CandidatePart]:
    """Every part that the code of a modality may have. Features that are equal for all samples are left out.

    Raises:
        CyclicError: None is left.
    """
    found: list[CandidatePart] = []
    equal = CyclicError(f"{NONE} A code of texts needs such words.", "Name a --text-encoder, or train on more reports.")
    for source in sources:
        for output, rows in source.features(pool, tick_of(source.title), report).items():
            try:
                components = source.components(rows, output, _dims(source, rows))
            except EqualFeatures as error:
                equal = error
                report(Note(f"{str(error).rstrip('.')}; they are left out", warning=True))
            else:
                found.append(CandidatePart(source, output, rows, components))
    if not found:
        raise equal
    return found


def _dims(source: Source, rows: Rows) -> int:
    return DIMS if source.is_cheap else max(DIMS, min(MOST_DIMS, rows.dims // FEATURES_PER_DIM))


def chosen_outputs(
    parts: Sequence[CandidatePart], others: Sequence[CandidatePart], own: np.ndarray, theirs: np.ndarray,
    patients: np.ndarray,
) -> list[CandidatePart]:  # fmt: skip
    """The parts of a modality without outputs of encoders that say little about the other modality.

    Of each encoder, `OUTPUTS` outputs are kept. The first one is that whose neighbourhoods agree most with those of the
    other modality on the known pairs (mutual k-NN). The next one is that which agrees most together with the first.

    Args:
        parts: Of the modality.
        others: Of the other modality, all of them together.
        own: (P,) numbers of the paired samples in the pool of the modality.
        theirs: (P,) numbers of the same samples in the pool of the other modality.
        patients: (P,) their patients.
    """
    by_source: dict[str, list[CandidatePart]] = {}
    for part in parts:
        by_source.setdefault(part.source.name, []).append(part)
    if all(len(some) <= OUTPUTS for some in by_source.values()):
        return list(parts)
    some = np.linspace(0, len(own) - 1, min(len(own), COMPARED)).astype(int)
    other = np.concatenate([part.encode(theirs[some]) for part in others], axis=1)

    def agreement(together: Sequence[CandidatePart]) -> float:
        codes = np.concatenate([part.encode(own[some]) for part in together], axis=1)
        return mutual_knn(codes, other, patients=patients[some])

    kept: list[CandidatePart] = []
    for several in by_source.values():
        chosen: list[CandidatePart] = []
        while len(chosen) < min(OUTPUTS, len(several)):
            left = [part for part in several if part not in chosen]
            chosen.append(max(left, key=lambda part: agreement([*chosen, part])))
        kept += chosen
    return [part for part in parts if part in kept]


def codes_of(parts: Sequence[CandidatePart], numbers: np.ndarray) -> np.ndarray:
    """The codes (N, code) float32 of the samples with the numbers (N,), from the parts in order."""
    return projected([(part.rows, part.components.mean, part.components.matrix) for part in parts], numbers)


def columns(parts: Sequence[CandidatePart]) -> dict[str, slice]:
    """The columns of each part in the concatenation of all."""
    ends = np.cumsum([0, *(part.facts.dims for part in parts)]).tolist()
    return {part.name: slice(*ends[place : place + 2]) for place, part in enumerate(parts)}


def spread_of(codes: np.ndarray) -> float:
    """The mean squared distance of codes (N, P) from their mean."""
    sums, squares = np.zeros(codes.shape[1]), 0.0
    for first in range(0, len(codes), ROWS):
        block = codes[first : first + ROWS].astype(np.float64)
        sums += block.sum(axis=0)
        squares += float(np.square(block).sum())
    return max(squares / len(codes) - float(np.square(sums / len(codes)).sum()), 1e-6)


def head_of(blocks: Blocks, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The linear map from the codes of a modality to all blocks of the embedding: a matrix (P, D), an offset (D,)."""
    matrix = np.concatenate([one.matrix[name] for one in blocks], axis=1)
    return matrix, np.concatenate([-one.mean[name] @ one.matrix[name] for one in blocks])


def expansion(
    blocks: Blocks, codes: Mapping[str, np.ndarray], numbers: Mapping[str, np.ndarray], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """The linear map from embeddings to codes of a modality: a matrix (D, P) and an offset (P,).

    It is learned from the embeddings of both modalities of the known pairs.

    Args:
        blocks: Of the closed form.
        codes: By modality, (N, P) codes of all samples.
        numbers: By modality, (M,) numbers of the paired samples.
        name: Of the modality.
    """
    count = len(numbers[name])

    def several() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first in range(0, count, ROWS):
            some = slice(first, first + ROWS)
            for other in numbers:
                yield embed(blocks, other, codes[other][numbers[other][some]]), codes[name][numbers[name][some]]

    return ridge(several())


def ridge(samples: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression: the matrix (P, Q) and offset (Q,) that predict targets from inputs.

    Args:
        samples: Blocks of samples, each a pair of inputs (N, P) and targets (N, Q). All samples count alike.
    """
    moments: Moments | None = None
    for inputs, targets in samples:
        moments = moments or Moments(inputs.shape[1], targets.shape[1])
        moments.add(inputs, targets)
    assert moments is not None
    matrix, _ = Factors(moments).regressions(RIDGE)
    mean, target = moments.means()
    return matrix, target - mean @ matrix


def learn_drawing(codes: np.ndarray, pool: Pool, tick: Tick) -> dict[str, np.ndarray]:
    """The buffers of `Drawing`, and `variance`: the mean squared difference of pixels from the mean image.

    Args:
        codes: (N, code) of all images of the pool.
        pool: The images.
        tick: Called with the images that were read, and their number.
    """
    numbers = np.unique(np.linspace(0, len(pool) - 1, min(len(pool), DRAWINGS)).astype(int))
    small = allocated((len(numbers), reduced(pool.load(numbers[:1])).shape[1]))
    sums, squares = torch.zeros((), dtype=torch.float64), 0.0
    for first in range(0, len(numbers), BATCH):
        images = pool.load(numbers[first : first + BATCH])
        small[first : first + len(images)] = reduced(images).numpy()
        sums = sums + images.double().sum(0)
        squares += float(images.double().square().sum())
        tick(first + len(images), len(numbers))
    variance = squares / (len(numbers) * sums.numel()) - float((sums / len(numbers)).square().mean())

    def batches() -> Iterator[np.ndarray]:
        for first in range(0, len(small), ROWS):
            yield small[first : first + ROWS]

    components = fit_components(batches, small.shape[1], min(COMPONENTS, codes.shape[1]), "pixels")
    matrix, offset = ridge(
        (
            codes[numbers[first : first + ROWS]],
            (small[first : first + ROWS] - components.mean) @ components.directions.T,
        )
        for first in range(0, len(numbers), ROWS)
    )
    return {
        "weights": matrix,
        "components": components.directions,
        "mean": components.mean + offset @ components.directions,
        "variance": np.array(max(variance, 1e-6)),
    }
