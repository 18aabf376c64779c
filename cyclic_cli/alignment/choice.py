"""Chooses the map between the codes of images and texts, and the parts of the codes, by folds over known pairs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from cyclic_cli.alignment.folds import Columns, Folds, Scores
from cyclic_cli.alignment.maps import MODALITIES, Blocks, Factors, Setting, embed
from cyclic_cli.alignment.moments import Moments, Pairs, Rows
from cyclic_cli.errors import CyclicError

CHEAP = ("pixels", "gradients", "levels")  # features of images that need no pretrained encoder
FEWEST = 10  # patients with pairs; with fewer, folds tell too little and the default is taken

MANY_PAIRS = 1000  # known pairs from which on weaker regularisation is tried as well
STRENGTHS = (30.0, 10.0, 3.0, 1.0, 0.3)  # from strong to weak: of equally good settings the first is taken
WEAK = (0.1, 0.03)  # strengths that help many pairs
VARIATES = 64
RIDGES = (3.0, 1.0)
SEARCH = tuple(Setting((strength, VARIATES), 3.0) for strength in (10.0, 3.0, 1.0))  # settings that compare parts

Parts = Mapping[str, Mapping[str, slice]]  # by modality and name: columns of the code
Kept = dict[str, tuple[str, ...]]  # by modality, names of parts
Grids = Mapping[str, tuple[Setting, ...]]  # by name of the map


def grids_for(pairs: int) -> Grids:
    """The settings to choose from, by map. They are few, because a choice among many overfits some hundred pairs."""
    strengths = STRENGTHS if pairs < MANY_PAIRS else STRENGTHS + WEAK
    return {
        "both": tuple(Setting((strength, VARIATES), ridge) for strength in strengths for ridge in RIDGES),
        "cca": tuple(Setting((strength, VARIATES)) for strength in strengths),
    }


@dataclass(frozen=True)
class ClosedForm:
    """The chosen map. It reads the kept parts of a code, concatenated in their order."""

    blocks: Blocks
    parts: Kept  # by modality, the names of the parts that were kept
    columns: Columns  # by modality, their columns in the whole code
    setting: Setting
    rule: str  # by which it was chosen
    scores: dict[str, Scores]  # by map, of its best setting; empty without folds
    counts: dict[str, int]  # pairs, patients and folds

    def embed(self, modality: str, codes: np.ndarray) -> np.ndarray:
        """L2-normalised embeddings (N, D) float32 of whole codes (N, P) of a modality."""
        return embed(self.blocks, modality, codes[:, self.columns[modality]])

    def to_json(self) -> dict[str, Any]:
        """What a summary says about the choice. Scores are mean log ranks; lower is better."""
        cca, ridge = self.setting.cca, self.setting.ridge
        chosen = self.scores.get(self.setting.map)
        return {
            "map": self.setting.map,
            "regularisation": {"cca": cca[0] if cca else None, "ridge": ridge},
            "dims": sum(one.matrix["image"].shape[1] for one in self.blocks),
            "parts": {name: list(parts) for name, parts in self.parts.items()},
            "rule": self.rule,
            "mean_log_rank": chosen and chosen.mean,
            "standard_error": chosen and chosen.error,
            "mean_log_rank_of": {name: scores.mean for name, scores in self.scores.items()},
            **self.counts,
        }


@dataclass(frozen=True)
class Measured:
    """What the choice needs of the known pairs: sums, and the codes of the pairs that folds rank."""

    total: Moments  # of all pairs
    folds: Folds | None  # None: fewer than `FEWEST` patients
    patients: int


def measure(pairs: Pairs, patients: np.ndarray, groups: np.ndarray | None = None) -> Measured:
    """Sum over the known pairs, all of them and by fold. Processes call it together, and get the same sums.

    Args:
        pairs: The codes of the N known pairs.
        patients: (N,) the patients of the pairs.
        groups: (N,) ints; pairs of one group have equal content, and count as hits for one another. None: only the own
            partner is a hit.

    Raises:
        CyclicError: There are fewer than two pairs.
    """
    if len(patients) < 2:
        raise CyclicError("Aligning images and texts needs pairs, at least two.", "Raise --paired-fraction.")
    groups = np.arange(len(patients)) if groups is None else groups
    total, several = pairs.moments(), len(np.unique(patients))
    return Measured(total, Folds(pairs, patients, groups, total) if several >= FEWEST else None, several)


def choose(
    images: Rows,
    texts: Rows,
    patients: np.ndarray,
    groups: np.ndarray | None = None,
    parts: Parts | None = None,
    cheap: Collection[str] = CHEAP,
    grids: Grids | None = None,
) -> ClosedForm:
    """`measure` and `choose_by` in one, for a single process with image codes (N, P) and text codes (N, Q) of pairs."""
    return choose_by(measure(Pairs(images, texts), patients, groups), parts, cheap, grids)


def choose_by(
    measured: Measured, parts: Parts | None = None, cheap: Collection[str] = CHEAP, grids: Grids | None = None
) -> ClosedForm:
    """Fit a map to all known pairs, with the parts and settings that rank best in folds over their patients.

    Args:
        measured: Of the known pairs.
        parts: The columns of each part of the codes. None: each code is one part.
        cheap: Names of parts that join the others of their modality only where the folds say so.
        grids: By map, the settings to choose from; None: those of `grids_for`. With pairs of fewer than `FEWEST`
            patients, a default of the first map is taken.

    Raises:
        CyclicError: All codes of a modality are equal, or not finite.
    """
    total, folds = measured.total, measured.folds
    _check(total)
    grids = grids_for(total.count) if grids is None else grids
    parts = parts or {
        name: {"code": slice(0, dims)} for name, dims in zip(MODALITIES, (total.images, total.texts), strict=True)
    }
    kept = _searched(folds, parts, cheap) if folds else _first_parts(parts, cheap)
    columns = columns_of(parts, kept)
    setting, scores = _best(folds, columns, grids) if folds else (_default(grids, total.count), {})
    return ClosedForm(
        blocks=Factors(total.select(columns["image"], columns["text"])).blocks(setting),
        parts=kept,
        columns=columns,
        setting=setting,
        rule="mean log rank in folds over patients"
        if folds
        else f"default, for fewer than {FEWEST} patients with pairs",
        scores=scores,
        counts={"pairs": total.count, "patients": measured.patients, "folds": len(folds) if folds else 0},
    )


def _check(total: Moments) -> None:
    """Refuse codes of which nothing can be learned."""
    for modality, covariance, mean in zip(MODALITIES, total.covariances()[:2], total.means(), strict=True):
        if not covariance.trace() > 1e-12 * (1 + mean @ mean):  # written so that NaN is refused too
            raise CyclicError(
                f"The {modality} codes of all known pairs are equal, or not finite.",
                "Raise --paired-fraction, or use another encoder.",
            )


def columns_of(parts: Parts, kept: Kept) -> Columns:
    """By modality, the columns of the kept parts."""
    return {
        modality: np.concatenate([np.arange(parts[modality][name].start, parts[modality][name].stop) for name in names])
        for modality, names in kept.items()
    }


def _first_parts(parts: Parts, cheap: Collection[str]) -> Kept:
    """All parts but the cheap ones; all parts of a modality that has only cheap ones."""
    return {
        modality: tuple(name for name in names if name not in cheap) or tuple(names)
        for modality, names in parts.items()
    }


def _searched(folds: Folds, parts: Parts, cheap: Collection[str]) -> Kept:
    """The parts that are kept: cheap ones join the others one after another while this helps.

    The part that improves the score most joins first, if it does so by more than one standard error. Folds are not
    repeated here, which makes this error larger: a choice of parts by few pairs costs more than it brings.
    """

    def score(kept: Kept) -> Scores:
        scores = folds.scores(SEARCH, columns_of(parts, kept), repeats=1)
        return min(scores.values(), key=lambda one: one.mean)

    kept, now = _first_parts(parts, cheap), None
    while left := [(modality, name) for modality in parts for name in parts[modality] if name not in kept[modality]]:
        now = now or score(kept)
        wider = [
            kept | {modality: tuple(one for one in parts[modality] if one in kept[modality] or one == name)}
            for modality, name in left
        ]
        scores = [score(one) for one in wider]
        place = min(range(len(left)), key=lambda place: scores[place].mean)
        if not scores[place].better_than(now):
            break
        kept, now = wider[place], scores[place]
    return kept


def _best(folds: Folds, columns: Columns, grids: Grids) -> tuple[Setting, dict[str, Scores]]:
    """The setting that ranks best, and the scores of the best setting of each map."""
    scores = folds.scores(chain.from_iterable(grids.values()), columns)
    best = {name: min(grid, key=lambda one: scores[one].mean) for name, grid in grids.items()}
    return min(best.values(), key=lambda one: scores[one].mean), {name: scores[one] for name, one in best.items()}


def _default(grids: Grids, pairs: int) -> Setting:
    """The setting that suits this number of pairs: the fewer they are, the stronger its regularisation.

    The rule is what served best on CT and MR slices with 65, 260 and 1,300 pairs.
    """
    wanted = math.log(1 + 600 / pairs)
    ridge = math.log(RIDGES[0] if wanted > math.log(2) else RIDGES[1])

    def distance(setting: Setting) -> float:
        if setting.cca is None:
            return abs(math.log(setting.ridge or 1.0) - wanted)
        strength, variates = setting.cca
        others = abs(math.log(variates / VARIATES)) + abs(math.log(setting.ridge or math.exp(ridge)) - ridge)
        return abs(math.log(strength) - wanted) + others / 100

    return min(next(iter(grids.values())), key=distance)
