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
from cyclic_cli.alignment.moments import Moments, Rows
from cyclic_cli.errors import CyclicError

CHEAP = ("pixels", "gradients", "terms")  # features that need no pretrained encoder
BESIDE = ("terms",)  # of them, those that begin beside the encoders of their modality

# Few settings, because a choice among many overfits some hundred pairs. From strong to weak regularisation: of equally
# good settings the first is taken.
STRENGTHS = (30.0, 10.0, 3.0, 1.0, 0.3)
VARIATES = 64
RIDGES = (3.0, 1.0)
GRID = {
    "both": tuple(Setting((strength, VARIATES), ridge) for strength in STRENGTHS for ridge in RIDGES),
    "cca": tuple(Setting((strength, VARIATES)) for strength in STRENGTHS),
    "ridge": tuple(Setting(ridge=ridge) for ridge in RIDGES),
}  # by map; see `_default` for the one that is kept unless another is clearly better
SEARCH = tuple(Setting((strength, VARIATES), 3.0) for strength in (10.0, 3.0, 1.0))  # settings that compare parts

Parts = Mapping[str, Mapping[str, slice]]  # by modality and name: columns of the code
Kept = dict[str, tuple[str, ...]]  # by modality, names of parts
Grids = Mapping[str, tuple[Setting, ...]]  # by name of the map


@dataclass(frozen=True)
class ClosedForm:
    """The chosen map. It reads the kept parts of a code, concatenated in their order."""

    blocks: Blocks
    parts: Kept  # by modality, the names of the parts that were kept
    columns: Columns  # by modality, their columns in the whole code
    setting: Setting
    rule: str  # by which it was chosen
    scores: dict[str, Scores]  # by map of `GRID`, of its best setting; empty without folds
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


def choose(
    images: Rows,
    texts: Rows,
    patients: np.ndarray,
    groups: np.ndarray | None = None,
    parts: Parts | None = None,
    cheap: Collection[str] = CHEAP,
    grids: Grids | None = None,
    total: Moments | None = None,
) -> ClosedForm:
    """Fit a map to all known pairs, with the parts and settings that rank best in folds over their patients.

    Args:
        images: (N, P) image codes of the known pairs.
        texts: (N, Q) text codes of the same samples.
        patients: (N,) the patients of the pairs.
        groups: (N,) ints; pairs of one group have equal content, and count as hits for one another. None: only the own
            partner is a hit.
        parts: The columns of each part of the codes. None: each code is one part.
        cheap: Names of parts that join or leave the others of their modality where the folds say so.
        grids: By map, the settings of which the best one is taken. None: of `GRID`, the default for this number of
            pairs is taken, unless another setting is better by more than one standard error.
        total: The moments of all pairs, where they were computed elsewhere, such as by several processes.

    Raises:
        CyclicError: There are fewer than two pairs, or all codes of a modality are equal.
    """
    if len(patients) < 2:
        raise CyclicError("Aligning images and texts needs pairs, at least two.", "Raise --paired-fraction.")
    total = Moments.of(images, texts) if total is None else total
    _check(total)
    parts = parts or {
        name: {"code": slice(0, codes.shape[1])} for name, codes in zip(MODALITIES, (images, texts), strict=True)
    }
    groups = np.arange(len(patients)) if groups is None else groups
    folds = Folds(images, texts, patients, groups, total)
    kept = _searched(folds, parts, cheap) if len(folds) else _first_parts(parts, cheap)
    columns = columns_of(parts, kept)
    setting, scores = (
        _best(folds, columns, grids, total.count) if len(folds) else (_default(grids or GRID, total.count), {})
    )
    return ClosedForm(
        blocks=Factors(total.select(columns["image"], columns["text"])).blocks(setting),
        parts=kept,
        columns=columns,
        setting=setting,
        rule="mean log rank of folds over patients" if len(folds) else "default, because one patient has all pairs",
        scores=scores,
        counts={"pairs": total.count, "patients": len(np.unique(patients)), "folds": len(folds)},
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
    """The parts of encoders and those of `BESIDE`; all parts of a modality without an encoder."""
    return {
        modality: tuple(name for name in names if name not in cheap or name in BESIDE)
        if any(name not in cheap for name in names)
        else tuple(names)
        for modality, names in parts.items()
    }


def _searched(folds: Folds, parts: Parts, cheap: Collection[str]) -> Kept:
    """The parts that are kept: beside encoders, cheap parts join or leave one after another while this helps.

    The change that improves the score most is made first, if it does so by more than one standard error. Folds are not
    repeated here, which makes this error larger: a choice of parts by few pairs costs more than it brings.
    """

    def score(kept: Kept) -> Scores:
        return min(folds.scores(SEARCH, columns_of(parts, kept), repeats=1).values(), key=lambda one: one.mean)

    kept, now, tried = _first_parts(parts, cheap), None, set[tuple[str, str]]()
    free = [
        (modality, name)
        for modality, names in parts.items()
        for name in names
        if name in cheap and any(other not in cheap for other in names)
    ]
    while len(tried) < len(free):
        now = now or score(kept)
        changes = [one for one in free if one not in tried]
        changed = [_toggled(kept, parts, *one) for one in changes]
        scores = [score(one) for one in changed]
        place = min(range(len(changes)), key=lambda place: scores[place].mean)
        if not scores[place].better_than(now):
            break
        kept, now = changed[place], scores[place]
        tried.add(changes[place])
    return kept


def _toggled(kept: Kept, parts: Parts, modality: str, name: str) -> Kept:
    """With a part that was not kept, or without one that was."""
    return kept | {modality: tuple(one for one in parts[modality] if (one in kept[modality]) != (one == name))}


def _best(folds: Folds, columns: Columns, grids: Grids | None, pairs: int) -> tuple[Setting, dict[str, Scores]]:
    """The chosen setting, and the scores of the best setting of each map; of the chosen one for its own map."""
    every = grids or GRID
    scores = folds.scores(chain.from_iterable(every.values()), columns)
    best = {name: min(grid, key=lambda one: scores[one].mean) for name, grid in every.items()}
    chosen = min(best.values(), key=lambda one: scores[one].mean)
    default = _default(every, pairs)
    if grids is None and not scores[chosen].better_than(scores[default]):
        chosen = default
    return chosen, {name: scores[one] for name, one in (best | {chosen.map: chosen}).items()}


def _default(grids: Grids, pairs: int) -> Setting:
    """The setting that suits this number of pairs: the fewer they are, the stronger its regularisation.

    The rule is what served best on CT and MR slices with 65, 260 and 1,300 pairs.
    """
    wanted = math.log(1 + 600 / pairs)

    def distance(setting: Setting) -> float:
        strength = setting.cca[0] if setting.cca else setting.ridge
        ridge = 3.0 if wanted > math.log(2) else 1.0
        return abs(math.log(strength or 1.0) - wanted) + (setting.ridge not in (None, ridge)) / 10

    return min(next(iter(grids.values())), key=distance)
