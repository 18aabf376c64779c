"""The return over unpaired samples: completes the moments of the known pairs by unpaired images and texts.

In whitened codes with the cross covariance M, the way image → text → image is M Mᵀ, and its eigenvalues are the squared
canonical correlations. Pairings P of unpaired samples that let most of the way return maximise ‖M + β XᵀPY‖. This is
cycle consistency in closed form: no network is trained. The objective is that of Ben-Ari et al., "Unpaired Canonical
Correlation Analysis" (NeurIPS 2026); Nakada et al. (AISTATS 2023) show when estimated pairs help.

    plan        a transport plan between unpaired images and unpaired texts (`transport.py`), from the similarities of
                the closed form; the cross covariance of the unpaired samples under the plan
    partners    the partner of an unpaired sample as the mean of the partners of the paired samples that resemble it
                (Mo et al., "S-CLIP", NeurIPS 2023), in both directions
    completed   moments in which the pairs have the weight 1 − β and the unpaired samples the weight β: the covariances
                of images, of texts, and between them

The covariances within a modality are completed as well. With those of the few pairs alone, a cross covariance of all
samples is whitened wrongly, and more weight than a fifth harms. As more samples stand behind the moments, the map is
regularised less than the closed form. A second round, whose plan comes from the completed map, brings nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cyclic_cli.alignment.choice import ClosedForm, Measured
from cyclic_cli.alignment.folds import Fold, Scores, similarities
from cyclic_cli.alignment.maps import MODALITIES, Blocks, Factors, Setting
from cyclic_cli.alignment.moments import Moments, Pairs
from cyclic_cli.alignment.transport import transport_plan
from cyclic_cli.codes.exchange import ALONE, Exchange
from cyclic_cli.metrics.retrieval import l2_normalised

ENTROPY = 0.15  # of the plan, in standard deviations of the similarities
PARTNERS = 0.5  # weight of the partners of similar pairs; that of the plan is 1
SHARPNESS = 30.0  # inverse temperature of the similarity to paired samples, which is a cosine of codes
MOST = 0.75  # largest weight β of the unpaired samples
REGULARISATION = 0.3  # of the map, relative to that of the closed form, at the largest weight
FEWEST = 2  # unpaired samples of each modality, without which nothing is completed
TEACHERS = 2000  # most pairs that unpaired samples are compared with
AT_ONCE = 5000  # unpaired samples of a modality up to which one plan covers all
BLOCK = 2500  # samples of each modality in a plan, where there are more
MOST_BLOCKS = 40  # of 100,000 samples; further ones would change the moments little

Coded = dict[str, np.ndarray]  # by modality, codes (N, P) or (M, Q)


class Unpaired:
    """The unpaired samples of all processes, which call the methods together."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        codes: Callable[[str, np.ndarray], np.ndarray],
        patients: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """
        Args:
            sizes: By modality, the number of samples.
            codes: Gives the codes (M, P) of the samples of a modality with the numbers (M,), in every process.
            patients: By modality, (N,) the patients of the samples. They only serve to leave patients out, and are
                never compared between modalities. None: unknown.
        """
        self.sizes, self.codes = dict(sizes), codes
        self._patients = patients or {name: np.full(size, "") for name, size in sizes.items()}

    def blocks(self) -> Iterator[Coded]:
        """Yield the samples in blocks. Each has samples of both modalities, drawn at random.

        Every sample of the larger modality is in one block, unless there are very many. Those of the smaller one repeat
        where they do not fill the blocks.
        """
        most = max(self.sizes.values())
        count = 1 if most <= AT_ONCE else min(MOST_BLOCKS, -(-most // BLOCK))
        drawn = {name: np.random.default_rng(place).permutation(self.sizes[name]) for place, name in _placed}
        for block in range(count):
            yield {name: self.codes(name, np.sort(_part(order, block, count))) for name, order in drawn.items()}

    def sample(self) -> Sample:
        """At most `BLOCK` samples of each modality, drawn at random, for folds."""
        drawn = {
            name: np.sort(np.random.default_rng(place).permutation(self.sizes[name])[:BLOCK]) for place, name in _placed
        }
        codes = {name: self.codes(name, numbers) for name, numbers in drawn.items()}
        return Sample(codes, {name: self._patients[name][numbers] for name, numbers in drawn.items()})


@dataclass(frozen=True)
class Sample:
    """Some unpaired samples in memory."""

    codes: Coded
    patients: dict[str, np.ndarray]  # by modality (N,)

    def without(self, patients: np.ndarray) -> Coded:
        """The codes of the samples of other patients than these (M,)."""
        return {name: codes[~np.isin(self.patients[name], patients)] for name, codes in self.codes.items()}


_placed = tuple(enumerate(MODALITIES))


def _part(order: np.ndarray, block: int, count: int) -> np.ndarray:
    """The part of an order (N,) that belongs to one of `count` blocks."""
    if count == 1:
        return order
    if len(order) > (count - 1) * BLOCK:  # it fills the blocks
        return np.array_split(order[: count * BLOCK], count)[block]
    size = min(BLOCK, len(order))
    return np.take(order, np.arange(block * size, (block + 1) * size), mode="wrap")


@dataclass(frozen=True)
class Return:
    """What the return did, beside the closed form."""

    blocks: Blocks  # of the map that was kept
    is_accepted: bool
    weight: float  # β
    scores: Scores | None  # of the returned map on folds; None: there are none
    closed: Scores | None  # of the closed form on the same folds
    rule: str

    @property
    def gain(self) -> float | None:
        """By which fraction the geometric mean rank of the closed form on folds is larger than that of the map."""
        return float(np.exp(self.closed.mean - self.scores.mean) - 1) if self.scores and self.closed else None

    @property
    def said(self) -> str:
        """The outcome in a line."""
        gain = None if self.gain is None else f"{100 * self.gain:+.1f} % on folds"
        if not self.is_accepted:
            return f"closed form kept: {f'the return gives {gain}' if gain else self.rule}"
        asked = ", as cycle_rule=always asks" if self.rule == "always" else ""
        return (
            f"return accepted{asked}{f', {gain}' if gain else ''}; unpaired samples have the weight {self.weight:.2f}"
        )

    def to_json(self) -> dict[str, Any]:
        """What a summary says about it."""
        return {
            "kept": "return" if self.is_accepted else "closed form",
            "rule": self.rule,
            "gain_on_folds": self.gain,
            "passes_folds": self.scores and self.closed and passes(self.scores, self.closed),
            "mean_log_rank": self.scores and self.scores.mean,
            "weight": self.weight,
            "partners": PARTNERS,
            "entropy": ENTROPY,
            "rounds": 1,
        }


def complete(
    form: ClosedForm,
    measured: Measured,
    pairs: Pairs,
    patients: np.ndarray,
    unpaired: Unpaired,
    rule: str = "folds",
    ranks: Exchange = ALONE,
) -> Return:
    """Fit the map of a closed form again, to moments completed by unpaired samples. Processes call it together.

    Args:
        form: The closed form. Its parts of the codes and the kind of its map are kept.
        measured: Of the known pairs.
        pairs: The known pairs.
        patients: (N,) their patients.
        unpaired: The samples in no pair, with whole codes.
        rule: folds: the map is kept where it `passes`; always.
        ranks: The processes.
    """
    weight = _weight(measured.total.count, min(unpaired.sizes.values()))
    if not weight:
        return Return(form.blocks, False, 0.0, None, None, "no unpaired samples of both modalities")
    places = _teaching(len(patients))
    teachers = _Teachers(places, dict(zip(MODALITIES, pairs.codes(places), strict=True)))
    scores = closed = None
    if measured.folds:
        folds, sample = measured.folds, unpaired.sample()

        def on_folds() -> Scores:
            return folds.scores_of(lambda one: _fold_map(one, form, patients, teachers, sample, weight), form.columns)

        scores, closed = ranks.agreed(on_folds), form.scores[form.setting.map]
    accepted = rule == "always" or (scores is not None and closed is not None and passes(scores, closed))
    blocks = form.blocks
    if accepted:
        known = _Known(_selected_moments(measured.total, form), _selected(teachers.codes, form), form.setting)
        blocks = known.completed((_selected(codes, form) for codes in unpaired.blocks()), weight, ranks)
    by_folds = "mean log rank in folds over patients" if scores else "too few patients with pairs for folds"
    return Return(blocks, accepted, weight, scores, closed, "always" if rule == "always" else by_folds)


def passes(scores: Scores, closed: Scores) -> bool:
    """Whether the completed map ranks the pairs of folds better than the closed form.

    With 5 % of the pairs of CT and MR slices, some maps of shuffled partners rank worse by less than half a standard
    error, so nothing below zero may be accepted. To ask for more than zero would cost much of what the return brings.
    """
    return scores.mean < closed.mean


def _weight(pairs: int, unpaired: int) -> float:
    """The weight β of unpaired samples: their share among all samples, but at most `MOST`; 0 below `FEWEST`."""
    return 0.0 if unpaired < FEWEST else min(MOST, unpaired / (unpaired + pairs))


@dataclass(frozen=True)
class _Teachers:
    """Pairs whose partners are lent to similar unpaired samples."""

    places: np.ndarray  # (N,) among all pairs
    codes: Coded

    def without(self, held: np.ndarray) -> Coded:
        kept = ~np.isin(self.places, held)
        return {name: codes[kept] for name, codes in self.codes.items()}


def _fold_map(
    fold: Fold, form: ClosedForm, patients: np.ndarray, teachers: _Teachers, sample: Sample, weight: float
) -> Blocks:
    """The returned map of a fold. Its patients are in neither pool of unpaired samples, and lend no partners.

    The `weight` is that of the map which is judged, although folds read a sample of the unpaired samples.
    """
    outside = sample.without(np.unique(patients[fold.held]))
    moments, factors = _selected_moments(fold.moments, form), fold.factors(form.columns)
    known = _Known(moments, _selected(teachers.without(fold.held), form), form.setting, factors)
    return known.completed([_selected(outside, form)], weight) if _are_enough(outside) else known.closed


def completed_map(setting: Setting, pairs: Coded, unpaired: Coded, weight: float) -> Blocks:
    """The map of a setting of the closed form, completed by unpaired samples. All codes are in memory.

    Args:
        setting: Of the closed form.
        pairs: By modality, codes (N, P) and (N, Q) whose rows are pairs.
        unpaired: By modality, codes (A, P) and (B, Q).
        weight: Of the unpaired samples, β.
    """
    some = _teaching(len(pairs["image"]))
    teachers = {name: codes[some] for name, codes in pairs.items()}
    known = _Known(Moments.of(*(pairs[name] for name in MODALITIES)), teachers, setting)
    return known.completed([unpaired], weight) if _are_enough(unpaired) else known.closed


def _teaching(pairs: int) -> np.ndarray:
    """The places of the pairs that lend partners, at most `TEACHERS`."""
    return np.unique(np.linspace(0, pairs - 1, min(pairs, TEACHERS)).astype(int))


def _are_enough(unpaired: Coded) -> bool:
    """Whether there are unpaired samples of both modalities."""
    return min(map(len, unpaired.values())) >= FEWEST


def _selected(codes: Coded, form: ClosedForm) -> Coded:
    """The columns of the codes that the closed form reads."""
    return {name: np.asarray(some[:, form.columns[name]], np.float32) for name, some in codes.items()}


def _selected_moments(moments: Moments, form: ClosedForm) -> Moments:
    return moments.select(form.columns["image"], form.columns["text"])


class _Known:
    """The known pairs, to which unpaired samples are added."""

    def __init__(self, moments: Moments, teachers: Coded, setting: Setting, factors: Factors | None = None) -> None:
        """
        Args:
            moments: Of the pairs.
            teachers: Codes of pairs.
            setting: Of the closed form.
            factors: Of the `moments`, where they are known.
        """
        self.moments, self.teachers, self.setting = moments, teachers, setting
        self.closed = (factors or Factors(moments)).blocks(setting)

    def completed(self, blocks: Iterable[Coded], weight: float, ranks: Exchange = ALONE) -> Blocks:
        """The map fitted to the moments of pairs and unpaired samples, which have the `weight`."""
        found = Moments(self.moments.images, self.moments.texts)
        for place, codes in enumerate(blocks):
            if place % ranks.world == ranks.rank:
                found = found.joined(self._moments_of(codes))
        unpaired = found.added(ranks)
        return Factors(self.moments.mixed(unpaired, weight)).blocks(weaker(self.setting, weight))

    def _moments_of(self, codes: Coded) -> Moments:
        """Moments of unpaired samples, whose cross covariance is that under the plan and of the partners."""
        images, texts = codes["image"], codes["text"]
        means = images.mean(0, np.float64), texts.mean(0, np.float64)
        x, y = images - means[0].astype(np.float32), texts - means[1].astype(np.float32)
        plan = transport_plan(similarities(self.closed, images, texts), ENTROPY)
        lent_texts = lent(images, self.teachers["image"], self.teachers["text"])
        lent_images = lent(texts, self.teachers["text"], self.teachers["image"])
        partners = x.T @ lent_texts / len(x) + lent_images.T @ y / len(y)  # x and y are centred, the others need not be
        cross = x.T @ plan @ y + PARTNERS / 2 * partners
        covariances = (x.T @ x / len(x), y.T @ y / len(y), cross)
        return Moments.from_covariances(len(x), means, tuple(one.astype(np.float64) for one in covariances))


def weaker(setting: Setting, weight: float) -> Setting:
    """The setting with less regularisation, as more samples stand behind the moments: the less, the larger β."""
    factor = REGULARISATION ** (weight / MOST)
    cca = setting.cca and (factor * setting.cca[0], setting.cca[1])
    return Setting(cca, None if setting.ridge is None else factor * setting.ridge)


def lent(codes: np.ndarray, paired: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """The mean partner (N, Q) of the paired samples that resemble unpaired samples.

    Args:
        codes: (N, P) of unpaired samples of a modality.
        paired: (K, P) of paired samples of this modality.
        partners: (K, Q) of their partners.
    """
    center = paired.mean(0)
    exponents = SHARPNESS * l2_normalised(codes - center) @ l2_normalised(paired - center).T
    weights = np.exp(exponents - exponents.max(axis=1, keepdims=True))
    mean: np.ndarray = weights / weights.sum(axis=1, keepdims=True) @ partners
    return mean
