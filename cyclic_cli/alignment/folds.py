"""Folds over the patients of the known pairs, and how well maps rank the pairs of a fold they were not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from cyclic_cli.alignment.maps import MODALITIES, Blocks, Factors, Setting, Side, embed
from cyclic_cli.alignment.moments import Moments, Pairs
from cyclic_cli.metrics.retrieval import TIE

FOLDS = 5
REPEATS = 3  # with other folds, because the score of a few hundred pairs is noisy
FEW = 100  # patients with pairs; of more, the score is less noisy, and folds are not repeated
RANKED = 2000  # most patients of a fold, and most pairs of it that are ranked

Columns = Mapping[str, np.ndarray]  # by modality, the columns of a code that are used


@dataclass(frozen=True)
class Scores:
    """Mean log rank of the best hit among the pairs of a fold, over both directions; lower is better."""

    values: np.ndarray  # (folds,), nan where nothing was scored
    sizes: np.ndarray  # (folds,) pairs that were ranked
    share: float  # pairs held out over pairs fitted on

    @property
    def mean(self) -> float:
        return float(np.average(self.values, weights=self.sizes))

    def error_of(self, values: np.ndarray) -> float:
        """The corrected standard error of the mean of values (folds,) (Nadeau and Bengio, Machine Learning 2003)."""
        if len(values) < 2:
            return float("inf")
        return float(np.sqrt((1 / len(values) + self.share) * values.var(ddof=1)))

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return self.error_of(self.values)

    def better_than(self, other: Scores) -> bool:
        """Whether the mean is better by more than one standard error of the difference on the same folds."""
        difference = other.values - self.values
        return other.mean - self.mean > self.error_of(difference)


@dataclass(frozen=True)
class Fold:
    """Pairs of some patients that are held out."""

    held: np.ndarray  # (H,) their places among all pairs, rising
    moments: Moments  # of the pairs outside the fold
    image: np.ndarray  # (M, P) codes that are ranked
    text: np.ndarray  # (M, Q)
    groups: np.ndarray  # (M,)
    sides: dict[tuple[str, bytes], Side] = field(default_factory=dict)  # by modality and columns

    def factors(self, columns: Columns) -> Factors:
        """Of the pairs outside the fold, for some columns of the codes."""
        moments = self.moments.select(columns["image"], columns["text"])
        keys = {name: (name, columns[name].tobytes()) for name in MODALITIES}
        for key, covariance in zip(keys.values(), moments.covariances()[:2], strict=True):
            if key not in self.sides:
                self.sides[key] = Side(covariance)
        return Factors(moments, {name: self.sides[key] for name, key in keys.items()})

    def mean_log_rank(self, blocks: Blocks, columns: Columns) -> float:
        """How well a map that reads some columns ranks the pairs of the fold."""
        similarity = similarities(blocks, self.image[:, columns["image"]], self.text[:, columns["text"]])
        return Ranking(self.groups).mean_log_rank(similarity)


class Folds:
    """Repeated folds. The moments outside a fold are those of all pairs minus the fold's."""

    def __init__(self, pairs: Pairs, patients: np.ndarray, groups: np.ndarray, total: Moments, seed: int = 0) -> None:
        """
        Args:
            pairs: The codes of N pairs. Only those that are ranked are gathered from other processes.
            patients: (N,) the patients of the pairs; at least three.
            groups: (N,) ints; pairs of one group have equal content, and are hits for one another.
            total: Of all pairs.
            seed: Of the folds.
        """
        self._folds: list[Fold] = []
        self._repeats: list[int] = []  # of each fold
        for number in range(REPEATS if len(np.unique(patients)) < FEW else 1):
            generator = np.random.default_rng((seed, number))
            for held in held_out(patients, generator):
                ranked = held if len(held) <= RANKED else np.sort(generator.choice(held, RANKED, replace=False))
                outside = total - pairs.moments(held)
                self._folds.append(Fold(held, outside, *pairs.codes(ranked), groups[ranked]))
                self._repeats.append(number)
        fitted = sum(fold.moments.count for fold in self._folds)
        self._share = (len(self._folds) * total.count - fitted) / max(1, fitted)

    def __len__(self) -> int:
        return len(self._folds)

    def scores(self, settings: Iterable[Setting], columns: Columns, repeats: int = REPEATS) -> dict[Setting, Scores]:
        """The scores of each setting, fitted on some columns of the codes, in the first `repeats` repetitions."""
        settings = list(settings)
        folds = [fold for fold, number in zip(self._folds, self._repeats, strict=True) if number < repeats]
        values = np.stack([_scored(fold, settings, columns) for fold in folds], axis=1)
        sizes = np.array([len(fold.groups) for fold in folds])
        return {setting: Scores(row, sizes, self._share) for setting, row in zip(settings, values, strict=True)}

    def scores_of(self, fit: Callable[[Fold], Blocks], columns: Columns) -> Scores:
        """The scores of the map that `fit` returns for each fold. It reads some columns of the codes."""
        values = [fold.mean_log_rank(fit(fold), columns) for fold in self._folds]
        return Scores(np.array(values), np.array([len(fold.groups) for fold in self._folds]), self._share)


def held_out(patients: np.ndarray, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """The pairs (M,) of each fold, in rising order: of a fifth of the patients, and of at most `RANKED` patients.

    Patients are taken in random order, each into the smallest fold. With fewer patients than folds, each is a fold.
    """
    names, owner, sizes = np.unique(patients, return_inverse=True, return_counts=True)
    order = generator.permutation(len(names))
    of = np.full(len(names), -1)
    if len(names) > FOLDS * RANKED:
        of[order[: FOLDS * RANKED]] = np.arange(FOLDS * RANKED) % FOLDS
    else:
        load = np.zeros(min(FOLDS, len(names)))
        for name in order:
            of[name] = load.argmin()
            load[of[name]] += sizes[name]
    folds = of[owner]
    for fold in range(min(FOLDS, len(names)) if len(names) > 1 else 0):
        yield np.flatnonzero(folds == fold)


def _scored(fold: Fold, settings: list[Setting], columns: Columns) -> np.ndarray:
    """The mean log rank (settings,) in a fold."""
    factors = fold.factors(columns)
    codes = fold.image[:, columns["image"]], fold.text[:, columns["text"]]

    def alone(setting: Setting) -> np.ndarray:
        return similarities(factors.blocks(setting), *codes)

    ranking, found = Ranking(fold.groups), np.empty(len(settings))
    by_ridge = {one: alone(Setting(ridge=one)) for one in {one.ridge for one in settings} if one is not None}
    for cca in dict.fromkeys(one.cca for one in settings):
        by_cca = alone(Setting(cca)) if cca else None
        for place in (place for place, one in enumerate(settings) if one.cca == cca):
            ridge = settings[place].ridge
            halves = [one for one in (by_cca, None if ridge is None else by_ridge[ridge]) if one is not None]
            found[place] = ranking.mean_log_rank(np.mean(halves, axis=0))
    return found


def similarities(blocks: Blocks, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """The similarities (N, M) float32 of image codes (N, P) and text codes (M, Q)."""
    return embed(blocks, "image", images) @ embed(blocks, "text", texts).T


class Ranking:
    """Ranks the hits of paired items, where items of a group are hits for one another."""

    def __init__(self, groups: np.ndarray) -> None:
        """`groups` are (N,) ints."""
        order = np.argsort(groups, kind="stable")
        members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
        rows = np.concatenate([np.repeat(group, len(group)) for group in members])
        columns = np.concatenate([np.tile(group, len(group)) for group in members])
        by_row = np.argsort(rows, kind="stable")
        self._rows, self._columns = rows[by_row], columns[by_row]
        self._starts = np.searchsorted(self._rows, np.arange(len(groups)))

    def mean_log_rank(self, similarity: np.ndarray) -> float:
        """Mean log of the rank of the best hit of each row and of each column of similarities (N, N); ties rank last.

        The ranks are those of `retrieval.first_hits`.
        """
        others = np.array(similarity)
        others[self._rows, self._columns] = -np.inf
        logs = 0.0
        for axis, hits in ((1, similarity[self._rows, self._columns]), (0, similarity[self._columns, self._rows])):
            best = np.maximum.reduceat(hits, self._starts) - np.float32(TIE)
            logs += np.log1p((others > np.expand_dims(best, axis)).sum(axis=axis)).mean()
        return float(logs / 2)
