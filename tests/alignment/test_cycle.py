"""Tests of the return: the completed moments, the blocks of unpaired samples, and the rule that keeps a map.

Codes are linear in shared Gaussian variables, with noise. There are two samples of each patient.
"""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from helpers.thread_processes import in_threads

from cyclic_cli.alignment import cycle, transport
from cyclic_cli.alignment.choice import ClosedForm, choose_by, measure
from cyclic_cli.alignment.cycle import Return, Sample, Unpaired, complete, completed_map
from cyclic_cli.alignment.maps import MODALITIES, Blocks, Factors, Setting, embed, fit_map
from cyclic_cli.alignment.moments import Moments, Pairs
from cyclic_cli.metrics.retrieval import first_hits

NOISE = 0.7
SETTING = Setting((1.0, 6), 0.5)

Coded = dict[str, np.ndarray]


def drawn(samples: int, seed: int, noise: float = NOISE) -> tuple[Coded, np.ndarray]:
    """Codes of images (N, 24) and texts (N, 20), and the patients (N,). Rows are pairs; all seeds share the maps."""
    maps, generator = np.random.default_rng(99), np.random.default_rng(seed)
    patients = np.arange(samples) // 2
    shared = 0.6 * generator.normal(size=(patients[-1] + 1, 8))[patients] + 0.8 * generator.normal(size=(samples, 8))
    shared *= 0.8 ** np.arange(8)
    codes = {
        name: (shared @ maps.normal(size=(8, dims)) / 2**0.5 + noise * generator.normal(size=(samples, dims)) + mean)
        for name, dims, mean in (("image", 24, 0), ("text", 20, 1))
    }
    return {name: one.astype(np.float32) for name, one in codes.items()}, patients.astype(str)


def rows(codes: Coded, chosen: Any) -> Coded:
    return {name: one[chosen] for name, one in codes.items()}


def unpaired_of(codes: Coded, patients: np.ndarray | None = None) -> Unpaired:
    of = None if patients is None else {name: patients[: len(one)] for name, one in codes.items()}
    return Unpaired({name: len(one) for name, one in codes.items()}, lambda name, some: codes[name][some], of)


def mean_log_rank(blocks: Blocks, codes: Coded) -> float:
    a, b = (embed(blocks, name, codes[name]) for name in MODALITIES)
    own = np.arange(len(a))
    return float(np.mean([np.log(first_hits(*pair, own, own)).mean() for pair in ((a, b), (b, a))]))


@dataclass
class Case:
    """Some known pairs, unpaired samples whose true partners are known to the test, and fresh pairs."""

    pairs: Coded
    patients: np.ndarray
    unpaired: Coded  # in their order, true partners
    fresh: Coded
    form: ClosedForm
    measured: Any

    @classmethod
    def of(cls, seed: int, pairs: int = 30, unpaired: int = 300) -> "Case":
        codes, patients = drawn(pairs + unpaired, seed)
        known = rows(codes, slice(pairs))
        measured = measure(Pairs(*known.values()), patients[:pairs])
        rest = rows(codes, slice(pairs, None))
        return cls(known, patients[:pairs], rest, drawn(300, 1000 + seed)[0], choose_by(measured), measured)

    def completed(self, rule: str = "folds", unpaired: Unpaired | None = None) -> Return:
        found = unpaired or unpaired_of(self.unpaired)
        return complete(self.form, self.measured, Pairs(*self.pairs.values()), self.patients, found, rule)

    @property
    def gain(self) -> float:
        """By how much the mean log rank of fresh pairs falls through the return."""
        closed = mean_log_rank(self.form.blocks, self.fresh)
        return closed - mean_log_rank(self.completed("always").blocks, self.fresh)


def plant(monkeypatch: pytest.MonkeyPatch, shuffled: int | None = None) -> None:
    """Replace plans by the true partners, or by partners at random, and lend none."""

    def planted(similarity: np.ndarray, entropy: float) -> np.ndarray:
        count = len(similarity)
        order = np.arange(count) if shuffled is None else np.random.default_rng(shuffled).permutation(count)
        return np.eye(count, dtype=np.float32)[order] / count

    monkeypatch.setattr(cycle, "transport_plan", planted)
    monkeypatch.setattr(cycle, "PARTNERS", 0.0)


def assert_same_map(blocks: Blocks, others: Blocks, codes: Coded, abs: float) -> None:
    """Equal similarities; the signs of canonical variates are arbitrary."""
    ours, theirs = (
        embed(some, "image", codes["image"]) @ embed(some, "text", codes["text"]).T for some in (blocks, others)
    )
    assert ours == pytest.approx(theirs, abs=abs)


def same_bits(blocks: Blocks, others: Blocks) -> bool:
    def bits(some: Blocks) -> list[bytes]:
        return [tensor[name].tobytes() for one in some for tensor in (one.mean, one.matrix) for name in MODALITIES]

    return bits(blocks) == bits(others)


# ------------------------------------------------------------------------------------------ completed moments


@pytest.mark.parametrize(("unpaired", "weight"), [(300, 0.75), (40, 0.4)])
def test_completed_moments_are_weighted_means(unpaired: int, weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    pairs, others = drawn(60, 0)[0], drawn(unpaired, 1)[0]
    found = completed_map(SETTING, pairs, others, weight)
    both = [np.hstack([codes["image"], codes["text"]]).astype(np.float64) for codes in (pairs, others)]
    mean = (1 - weight) * both[0].mean(axis=0) + weight * both[1].mean(axis=0)
    covariance = (1 - weight) * np.cov(both[0].T, bias=True) + weight * np.cov(both[1].T, bias=True)
    parts = covariance[:24, :24], covariance[24:, 24:], covariance[:24, 24:]
    wanted = Factors(Moments.from_covariances(1, (mean[:24], mean[24:]), parts))
    # Covariances of unpaired samples are float32 sums; directions of nearly equal correlation turn into one another.
    factor = 0.3 ** (weight / 0.75)
    assert_same_map(found, wanted.blocks(Setting((factor, 6), factor * 0.5)), drawn(50, 2)[0], abs=1e-4)
    for one in found:
        assert one.mean["image"] == pytest.approx(mean[:24], abs=1e-5)
        assert one.mean["text"] == pytest.approx(mean[24:], abs=1e-5)


def test_partners_of_similar_pairs_are_added() -> None:
    """The cross covariance by sums over samples in float64."""
    pairs, others = drawn(40, 0)[0], rows(drawn(80, 1)[0], slice(60))
    others["text"] = others["text"][:50]
    known = cycle._Known(Moments.of(*pairs.values()), pairs, SETTING)
    images, texts = (others[name].astype(np.float64) for name in MODALITIES)
    x, y = images - images.mean(axis=0), texts - texts.mean(axis=0)

    def partner(sample: np.ndarray, name: str, other: str) -> np.ndarray:
        own = pairs[name].astype(np.float64)
        center = own.mean(axis=0)
        cosines = (own - center) @ (sample - center) / np.linalg.norm(own - center, axis=1)
        weights = np.exp(30 * cosines / np.linalg.norm(sample - center))
        mean: np.ndarray = weights @ pairs[other] / weights.sum()
        return mean

    similarity = embed(known.closed, "image", others["image"]) @ embed(known.closed, "text", others["text"]).T
    wanted = x.T @ cycle.transport_plan(similarity, 0.15).astype(np.float64) @ y
    wanted += 0.25 * np.mean([np.outer(a, partner(one, "image", "text")) for a, one in zip(x, images, strict=True)], 0)
    wanted += 0.25 * np.mean([np.outer(partner(one, "text", "image"), b) for b, one in zip(y, texts, strict=True)], 0)
    within_images, within_texts, cross = known._moments_of(others).covariances()
    assert cross == pytest.approx(wanted, abs=1e-4)
    assert within_images == pytest.approx(np.cov(images.T, bias=True), abs=1e-4)
    assert within_texts == pytest.approx(np.cov(texts.T, bias=True), abs=1e-4)


def test_lent_partners_are_those_of_the_same_sample() -> None:
    pairs = drawn(40, 0)[0]
    pairs["image"] = np.eye(40, dtype=np.float32)
    assert cycle.lent(3 * pairs["image"][5:8], pairs["image"], pairs["text"]) == pytest.approx(
        pairs["text"][5:8], abs=1e-5
    )


# ------------------------------------------------------------------------------------------ blocks of samples


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycle, "AT_ONCE", 60)
    monkeypatch.setattr(cycle, "BLOCK", 50)


def numbers_of_blocks(images: int, texts: int) -> list[Coded]:
    """The numbers of the samples in each block."""
    return list(Unpaired({"image": images, "text": texts}, lambda name, some: some).blocks())


def test_few_samples_are_one_block() -> None:
    (block,) = numbers_of_blocks(5000, 4000)
    assert [block[name].tolist() for name in MODALITIES] == [list(range(5000)), list(range(4000))]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("images", "texts"), [(230, 30), (30, 230), (61, 55), (200, 170), (230, 230)])
def test_blocks_have_every_sample_of_the_larger_modality_once(images: int, texts: int) -> None:
    blocks = numbers_of_blocks(images, texts)
    larger, smaller = ("image", "text") if images >= texts else ("text", "image")
    assert sorted(np.concatenate([block[larger] for block in blocks])) == list(range(max(images, texts)))
    counts = np.unique(np.concatenate([block[smaller] for block in blocks]), return_counts=True)[1]
    assert len(counts) == min(images, texts)
    assert counts.max() - counts.min() <= 1
    assert all(len(set(block[name].tolist())) == len(block[name]) <= 50 for block in blocks for name in MODALITIES)
    assert min(len(block[name]) for block in blocks for name in MODALITIES) >= 25
    assert blocks[0][larger].tolist() == sorted(blocks[0][larger])
    assert max(blocks[0][larger]) > 50  # drawn at random


def test_blocks_do_not_hold_the_partners_of_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples in the same order in both modalities, as true partners may be."""
    monkeypatch.setattr(cycle, "AT_ONCE", 10)
    monkeypatch.setattr(cycle, "BLOCK", 100)
    order = np.arange(1000.0)[:, None]
    blocks = list(unpaired_of({"image": order, "text": order}).blocks())
    together = sum(len(np.intersect1d(block["image"], block["text"])) for block in blocks)
    assert 40 < together < 180  # a tenth by chance, not all


def test_folds_judge_the_weight_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycle, "BLOCK", 20)
    weights: list[float] = []
    completed = cycle._Known.completed

    def spy(self: object, blocks: object, weight: float, *more: object) -> object:
        weights.append(weight)
        return completed(self, blocks, weight, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(cycle._Known, "completed", spy)
    Case.of(0).completed("always")
    assert len(weights) == 16
    assert set(weights) == {0.75}


@pytest.mark.usefixtures("small_blocks")
def test_of_very_many_samples_some_are_drawn() -> None:
    blocks = numbers_of_blocks(3000, 20)
    assert len(blocks) == 40
    images = np.concatenate([block["image"] for block in blocks])
    assert len(set(images.tolist())) == len(images) == 2000
    assert all(len(block["text"]) == 20 for block in blocks)


def test_a_sample_for_folds_has_the_patients_of_its_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycle, "BLOCK", 50)
    patients = {name: np.array([f"{name}{number}" for number in range(90)]) for name in MODALITIES}
    sample = Unpaired({"image": 90, "text": 30}, lambda name, some: some[:, None], patients).sample()
    assert {name: len(one) for name, one in sample.codes.items()} == {"image": 50, "text": 30}
    for name, numbers in sample.codes.items():
        assert sample.patients[name].tolist() == [f"{name}{number}" for number in numbers[:, 0]]
    left = sample.without(np.array(["text3", "text7", f"image{sample.codes['image'][4, 0]}"]))
    assert {name: len(one) for name, one in left.items()} == {"image": 49, "text": 28}


def test_several_blocks_lead_near_the_map_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.of(0, unpaired=400)
    one = case.completed("always")
    monkeypatch.setattr(cycle, "AT_ONCE", 200)
    monkeypatch.setattr(cycle, "BLOCK", 200)
    several = case.completed("always")
    ranks = [mean_log_rank(some.blocks, case.fresh) for some in (one, several, case.form)]
    assert abs(ranks[0] - ranks[1]) < 0.5 * (ranks[2] - max(ranks[:2]))  # of what both gain
    assert same_bits(several.blocks, case.completed("always").blocks)


def test_the_order_of_unpaired_samples_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MARGINAL_ERROR", 0)  # all steps, so that rounding cannot decide when to stop
    case = Case.of(1)
    first = case.completed("always")
    case.unpaired["text"] = np.random.default_rng(0).permutation(case.unpaired["text"])
    shuffled = case.completed("always")
    assert_same_map(first.blocks, shuffled.blocks, case.fresh, abs=1e-4)  # float32 sums in another order
    assert not same_bits(first.blocks, case.form.blocks)


def test_processes_share_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycle, "AT_ONCE", 100)
    monkeypatch.setattr(cycle, "BLOCK", 100)
    case = Case.of(2)
    alone = case.completed("always").blocks

    def process(ranks: Any) -> Return:
        own = ranks.part(np.arange(30))
        pairs = Pairs(*rows(case.pairs, own).values(), own, ranks)
        return complete(case.form, case.measured, pairs, case.patients, unpaired_of(case.unpaired), "always", ranks)

    for one in in_threads(2, process):
        # Sums of float64 in another order, of moments that are equal bit for bit.
        assert_same_map(one.blocks, alone, case.fresh, abs=1e-5)


# ------------------------------------------------------------------------------------------ the rule


def test_true_partners_are_accepted_and_bring_much(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    for seed in range(5):
        case = Case.of(seed, pairs=60)
        found = case.completed()
        assert found.is_accepted
        assert found.gain is not None
        assert found.gain > 0
        assert case.gain > 0.1
        assert "return accepted, +" in found.said


def test_partners_at_random_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []
    for seed in range(20):
        plant(monkeypatch, shuffled=seed)
        case = Case.of(seed, unpaired=100)
        found = case.completed()
        refused.append(not found.is_accepted)
        if refused[-1]:
            assert same_bits(found.blocks, case.form.blocks)
            assert "closed form kept: the return gives -" in found.said
    assert sum(refused) >= 19
    taken = case.completed("always")
    assert taken.is_accepted
    assert not same_bits(taken.blocks, case.form.blocks)
    assert taken.to_json()["rule"] == "always"


def test_few_pairs_gain_by_the_return() -> None:
    """With 30 pairs and 300 unpaired samples whose partners are among them, but not known."""
    cases = [Case.of(seed) for seed in range(8)]
    gains = np.array([case.gain for case in cases])
    assert gains.mean() > 0.08  # of 20 seeds 0.12: the geometric mean rank of about 6 falls by a tenth
    assert (gains > 0).sum() >= 7


def test_kept_maps_are_described() -> None:
    case = Case.of(0)
    found = case.completed()
    said = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert said["kept"] == "return"
    assert said["weight"] == found.weight == 0.75
    assert (said["entropy"], said["partners"], said["rounds"]) == (0.15, 0.5, 1)
    assert found.scores is not None
    assert said["gain_on_folds"] == pytest.approx(np.exp(case.form.to_json()["mean_log_rank"] - found.scores.mean) - 1)


@pytest.mark.parametrize("rule", ["folds", "always"])
@pytest.mark.parametrize("left", [{}, {"image": 300}, {"text": 300}, {"image": 300, "text": 1}], ids=str)
def test_without_unpaired_samples_of_both_modalities_the_closed_form_is_kept(left: dict[str, int], rule: str) -> None:
    case = Case.of(0)
    found = case.completed(rule, unpaired_of({name: case.unpaired[name][: left.get(name, 0)] for name in MODALITIES}))
    assert not found.is_accepted
    assert found.said == "closed form kept: no unpaired samples of both modalities"
    assert same_bits(found.blocks, case.form.blocks)
    assert json.loads(json.dumps(found.to_json()))["kept"] == "closed form"


def test_of_few_patients_the_closed_form_is_kept() -> None:
    case = Case.of(0, pairs=18)  # of nine patients
    found = case.completed()
    assert not found.is_accepted
    assert found.said == "closed form kept: too few patients with pairs for folds"
    assert same_bits(found.blocks, case.form.blocks)
    assert json.loads(json.dumps(found.to_json()))["gain_on_folds"] is None
    taken = case.completed("always")
    assert taken.is_accepted
    assert mean_log_rank(taken.blocks, case.fresh) != mean_log_rank(case.form.blocks, case.fresh)
    assert Case.of(0, pairs=20).completed().scores is not None


def test_two_samples_more_are_enough() -> None:
    case = Case.of(0)
    case.unpaired = rows(case.unpaired, slice(2))
    found = case.completed("always")
    assert found.weight == 2 / 32
    assert np.isfinite(embed(found.blocks, "image", case.fresh["image"])).all()


# ------------------------------------------------------------------------------------------ held-out patients


def test_held_out_patients_are_in_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpaired samples of the paired patients, and others. The first entry of every code names its patient."""
    case = Case.of(0)
    patients = np.array([str(number % 40) for number in range(300)])  # the pairs are of the patients 0 to 14
    for codes, owners in ((case.pairs, case.patients), (case.unpaired, patients)):
        for one in codes.values():
            one[:, 0] = owners.astype(np.float32)
    pairs = Pairs(*case.pairs.values())
    measured = measure(pairs, case.patients)
    form = choose_by(measured)
    held: list[set[str]] = []
    checked = [0, 0]
    without, moments_of = Sample.without, cycle._Known._moments_of

    def named(codes: np.ndarray) -> set[str]:
        return {str(round(float(value))) for value in codes[:, 0]}

    def spied(sample: Sample, left_out: np.ndarray) -> Coded:
        held.append(set(left_out.tolist()))
        return without(sample, left_out)

    def spied_moments(known: Any, codes: Coded) -> Moments:
        if len(held) > checked[0]:  # a fold, and then all patients
            checked[0] = len(held)
            for some in (codes, known.teachers):
                for name in MODALITIES:
                    assert not named(some[name]) & held[-1]
            assert named(codes["image"]) == set(patients.tolist()) - held[-1]
            assert named(known.teachers["text"]) == set(case.patients.tolist()) - held[-1]
            wanted = [
                codes for codes, owner in zip(case.pairs["image"], case.patients, strict=True) if owner not in held[-1]
            ]
            assert known.moments.means()[0] == pytest.approx(np.mean(wanted, axis=0), rel=1e-5, abs=1e-5)
        else:
            checked[1] += 1
            assert named(codes["image"]) == named(codes["text"]) == set(patients.tolist())
        return moments_of(known, codes)

    monkeypatch.setattr(Sample, "without", spied)
    monkeypatch.setattr(cycle._Known, "_moments_of", spied_moments)
    run = partial(complete, form, measured, pairs, case.patients, unpaired_of(case.unpaired, patients))
    assert run("always").is_accepted
    assert checked == [len(measured.folds or []), 1] == [15, 1]
    assert set().union(*held) == set(case.patients.tolist())


def test_a_fold_whose_patients_have_all_unpaired_samples_keeps_its_closed_form() -> None:
    case = Case.of(0)
    owners = np.full(300, case.patients[0])
    found = case.completed("folds", unpaired_of(case.unpaired, owners))
    assert found.scores is not None
    folds = case.measured.folds
    columns = case.form.columns
    for fold, value in zip(folds._folds, found.scores.values, strict=True):
        if 0 in fold.held:
            rest = np.setdiff1d(np.arange(30), fold.held)
            blocks = fit_map(case.form.setting, *rows(case.pairs, rest).values())
            assert value == pytest.approx(fold.mean_log_rank(blocks, columns), abs=0.1)  # rounding may move a rank
