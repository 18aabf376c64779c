"""Tests of the choice: folds, scores, parts and settings, and what happens with few pairs."""

import json
from typing import Any

import numpy as np
import pytest
from helpers.thread_processes import in_threads

from cyclic_cli.alignment import folds as folding
from cyclic_cli.alignment.choice import ClosedForm, choose, choose_by, grids_for, measure
from cyclic_cli.alignment.folds import Folds, Ranking, Scores, held_out, similarities
from cyclic_cli.alignment.layers import mutual_knn
from cyclic_cli.alignment.maps import Setting, fit_map
from cyclic_cli.alignment.moments import Moments, Pairs
from cyclic_cli.errors import CyclicError
from cyclic_cli.metrics.retrieval import first_hits, l2_normalised


def pairs(samples: int, seed: int = 0, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Image codes (N, 12) and text codes (N, 9): noisy linear maps of four shared variables, equal for every seed."""
    maps, generator = np.random.default_rng(99), np.random.default_rng(seed)
    shared = generator.normal(size=(samples, 4))
    sides = [shared @ maps.normal(size=(4, dims)) + noise * generator.normal(size=(samples, dims)) for dims in (12, 9)]
    return sides[0].astype(np.float32), sides[1].astype(np.float32) + 3


def recall_at_1(chosen: ClosedForm, images: np.ndarray, texts: np.ndarray) -> float:
    similarity = chosen.embed("image", images) @ chosen.embed("text", texts).T
    return float((similarity.argmax(axis=1) == np.arange(len(images))).mean())


def columns(images: int = 12, texts: int = 9) -> dict[str, np.ndarray]:
    return {"image": np.arange(images), "text": np.arange(texts)}


# ------------------------------------------------------------------------------------------------- folds


def test_ranks_are_those_of_the_evaluation() -> None:
    generator = np.random.default_rng(0)
    a, b = (l2_normalised(generator.normal(size=(60, 5))) for _ in range(2))
    b[10:20] = b[9]  # ties
    for groups in (np.arange(60), generator.integers(0, 20, 60), np.zeros(60, int)):
        wanted = np.mean([np.log(first_hits(*pair, groups, groups)).mean() for pair in ((a, b), (b, a))])
        assert Ranking(groups).mean_log_rank(a @ b.T) == pytest.approx(wanted, abs=1e-6)


def test_folds_share_out_the_patients() -> None:
    generator = np.random.default_rng(0)
    patients = generator.integers(0, 23, 200)
    held = list(held_out(patients, generator))
    assert len(held) == 5
    assert sorted(np.concatenate(held)) == list(range(200))
    of = [set(patients[one]) for one in held]
    assert sum(map(len, of)) == len(set(patients))  # no patient in two folds
    assert max(map(len, held)) < 2 * min(map(len, held))
    assert [len(list(held_out(np.arange(count), generator))) for count in (1, 2, 4, 5, 9)] == [0, 2, 4, 5, 5]


def test_of_many_patients_some_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "RANKED", 7)
    held = list(held_out(np.arange(100) // 2, np.random.default_rng(0)))
    assert [len(one) for one in held] == [14] * 5
    assert len(set(np.concatenate(held).tolist())) == 70
    images, texts = pairs(100)
    folds = Folds(Pairs(images, texts), np.arange(100) // 2, np.arange(100), Moments.of(images, texts))
    assert all((fold.moments.count, len(fold.groups)) == (86, 7) for fold in folds._folds)


def test_scores_equal_fits_without_the_fold() -> None:
    images, texts = pairs(90, noise=2)
    patients, groups = np.arange(90) // 3, np.arange(90) // 2
    settings = [Setting((1.0, 4)), Setting((1.0, 4), 3.0), Setting(ridge=0.3), Setting((0.1, 2))]
    chosen = {"image": np.array([0, 1, 2, 5, 7]), "text": np.array([2, 3, 4])}
    folds = Folds(Pairs(images, texts), patients, groups, Moments.of(images, texts))
    found = folds.scores(settings, chosen)
    assert len(folds) == 15
    assert len(found[settings[0]].values) == 3 * len(folds.scores(settings, chosen, repeats=1)[settings[0]].values)
    images, texts = images[:, chosen["image"]], texts[:, chosen["text"]]
    place = 0
    for repeat in range(3):
        for held in held_out(patients, np.random.default_rng((0, repeat))):
            fitted = np.setdiff1d(np.arange(90), held)
            for setting in settings:
                blocks = fit_map(setting, images[fitted], texts[fitted])
                wanted = Ranking(groups[held]).mean_log_rank(similarities(blocks, images[held], texts[held]))
                # Rounding may move one of the items of a fold by one rank.
                assert found[setting].values[place] == pytest.approx(wanted, abs=0.05)
            place += 1


def test_standard_errors_are_corrected_for_overlapping_folds() -> None:
    values = np.array([1.0, 2.0, 1.5, 1.2, 1.9])
    scores = Scores(values, np.full(5, 10), 0.25)
    assert scores.mean == pytest.approx(1.52)
    assert scores.error == pytest.approx(np.sqrt((1 / 5 + 1 / 4) * np.var(values, ddof=1)))
    assert Scores(values - 0.1, scores.sizes, 0.25).better_than(scores)  # the same difference in every fold
    assert not scores.better_than(scores)
    noisy = Scores(values - 0.1 + np.array([1, -1, 1, -1, 0]), scores.sizes, 0.25)
    assert not noisy.better_than(scores)


# ------------------------------------------------------------------------------------------------- the choice


def test_the_chosen_map_retrieves_and_says_what_it_is() -> None:
    train, test = pairs(120, noise=1.0), pairs(200, seed=1)
    chosen = choose(*train, np.arange(120) // 2)
    assert recall_at_1(chosen, *test) > 20 / 200  # twenty times chance
    found = json.loads(json.dumps(chosen.to_json()))
    assert (found["pairs"], found["patients"], found["folds"]) == (120, 60, 15)
    assert found["map"] == chosen.setting.map
    assert found["mean_log_rank"] == pytest.approx(found["mean_log_rank_of"][found["map"]])
    assert found["standard_error"] > 0
    assert found["parts"] == {"image": ["code"], "text": ["code"]}
    again = choose(*train, np.arange(120) // 2)
    assert again.embed("image", test[0]).tobytes() == chosen.embed("image", test[0]).tobytes()
    assert [one.shape[1] for one in (chosen.embed("image", test[0]), chosen.embed("text", test[1]))] == [
        found["dims"]
    ] * 2


def test_processes_choose_as_one_does() -> None:
    images, texts = pairs(120)
    shares = np.arange(70), np.arange(0), np.arange(70, 120)  # of three processes

    def process(ranks: Any) -> ClosedForm:
        own = shares[ranks.rank]
        measured = measure(Pairs(images[own], texts[own], own, ranks), np.arange(120))
        return ranks.agreed(lambda: choose_by(measured))

    alone = choose(images, texts, np.arange(120))
    for one in in_threads(3, process):
        assert (one.setting, one.counts) == (alone.setting, alone.counts)
        # Products of codes are summed in float64 in another order, and the maps are float32.
        assert one.embed("text", texts) == pytest.approx(alone.embed("text", texts), abs=1e-6)


def test_weak_regularisation_is_tried_with_many_pairs_alone() -> None:
    weakest = [min(one.cca[0] for one in grids_for(pairs)["cca"] if one.cca) for pairs in (999, 1000)]
    assert weakest == [0.3, 0.03]


@pytest.mark.parametrize("map_", grids_for(60))
def test_only_the_given_settings_are_chosen(map_: str) -> None:
    chosen = choose(*pairs(60), np.arange(60), grids={map_: grids_for(60)[map_]})
    assert chosen.setting in grids_for(60)[map_]
    assert set(chosen.scores) == {map_}


def test_strong_noise_asks_for_strong_regularisation() -> None:
    grids = {"cca": tuple(Setting((strength, 4)) for strength in (10.0, 0.001))}
    generator = np.random.default_rng(0)
    images, texts = pairs(40, noise=1)
    images = np.concatenate([images, generator.normal(size=(40, 60)).astype(np.float32)], axis=1)
    assert choose(images, texts, np.arange(40), grids=grids).setting == Setting((10.0, 4))


def parts_of(noise: bool) -> tuple[np.ndarray, np.ndarray, dict[str, dict[str, slice]]]:
    """Codes whose encoder sees two of four shared variables, and a cheap part that sees all or none of them."""
    images, texts = pairs(150, noise=0.3)
    cheap = np.random.default_rng(5).normal(size=images.shape).astype(np.float32) * 3 if noise else images
    known = images @ np.random.default_rng(6).normal(size=(12, 2)).astype(np.float32)
    slices = {"image": {"encoder": slice(0, 2), "pixels": slice(2, 14)}, "text": {"terms": slice(0, 9)}}
    return np.concatenate([known, cheap], axis=1), texts, slices


@pytest.mark.parametrize("noise", [True, False])
def test_a_cheap_part_is_kept_beside_an_encoder_where_it_helps(noise: bool) -> None:
    images, texts, slices = parts_of(noise)
    chosen = choose(images, texts, np.arange(150), parts=slices)
    assert chosen.parts == {"image": ("encoder",) if noise else ("encoder", "pixels"), "text": ("terms",)}
    assert chosen.columns["image"].tolist() == list(range(2 if noise else 14))
    assert chosen.blocks[0].mean["image"].shape == (2 if noise else 14,)
    assert chosen.embed("image", images).shape == chosen.embed("text", texts).shape  # it selects the columns itself


def test_without_an_encoder_all_cheap_parts_are_kept() -> None:
    images, texts, slices = parts_of(True)
    slices["image"] = {"gradients": slices["image"]["encoder"], "pixels": slices["image"]["pixels"]}
    assert choose(images, texts, np.arange(150), parts=slices).parts["image"] == ("gradients", "pixels")


# ------------------------------------------------------------------------------------------------- few pairs


@pytest.mark.parametrize("patients", [1, 2, 9])
def test_few_patients_get_the_default(patients: int) -> None:
    images, texts = pairs(18)
    chosen = choose(images, texts, np.arange(18) % patients)
    assert chosen.rule.startswith("default")
    assert chosen.setting == Setting((30.0, 64), 3.0)  # the strongest
    assert chosen.to_json()["mean_log_rank"] is None
    assert json.loads(json.dumps(chosen.to_json(), allow_nan=False))["folds"] == 0
    assert recall_at_1(chosen, images, texts) > 2 / 18
    cca = choose(images, texts, np.arange(18) % patients, grids={"cca": grids_for(18)["cca"]})
    assert cca.setting == Setting((30.0, 64))
    assert choose(images, texts, np.arange(18) % 10).counts["folds"] == 15
    assert np.isfinite(choose(images[:2], texts[:2], np.arange(2)).embed("image", images)).all()


def test_the_default_is_weaker_with_more_pairs() -> None:
    images, texts = pairs(1500)
    assert choose(images, texts, np.arange(1500) % 3).setting == Setting((1.0, 64), 1.0)


def test_no_pairs_and_equal_codes_are_refused() -> None:
    images, texts = pairs(6)
    for count in (0, 1):
        with pytest.raises(CyclicError, match="needs pairs") as caught:
            choose(images[:count], texts[:count], np.arange(count))
        assert "--paired-fraction" in caught.value.hint
    with pytest.raises(CyclicError, match="text codes of all known pairs are equal"):
        choose(images, np.ones_like(texts), np.arange(6))
    images[2, 2] = np.nan
    with pytest.raises(CyclicError, match="image codes of all known pairs are equal, or not finite"):
        choose(images, texts, np.arange(6))


# ------------------------------------------------------------------------------------------------- layers


def test_mutual_knn_of_the_definition() -> None:
    images, texts = pairs(80)

    def nearest(codes: np.ndarray, row: int, k: int) -> set[int]:
        unit = l2_normalised(codes.astype(float) - codes.mean(axis=0, dtype=float))
        order = np.argsort(-(unit @ unit[row]))
        return set([one for one in order if one != row][:k])

    wanted = np.mean([len(nearest(images, row, 5) & nearest(texts, row, 5)) / 5 for row in range(80)])
    assert mutual_knn(images, texts, 5) == pytest.approx(wanted)
    assert mutual_knn(images, images) == 1
    noise = np.random.default_rng(3).normal(size=(80, 12))
    assert mutual_knn(images, texts) > 2 * mutual_knn(noise, texts)
    assert mutual_knn(images[:1], texts[:1]) == mutual_knn(images, texts, patients=np.zeros(80)) == 0


def test_mutual_knn_takes_rows_that_differ_by_rounding_as_equal() -> None:
    generator = np.random.default_rng(0)
    a, b = (generator.normal(size=(20, 30))[np.arange(80) % 20] for _ in range(2))
    wanted = mutual_knn(a, b)
    for _ in range(5):
        rounded = a * (1 + 1e-7 * generator.normal(size=a.shape))
        assert mutual_knn(rounded, b) == wanted


def test_mutual_knn_leaves_out_samples_of_the_same_patient() -> None:
    generator = np.random.default_rng(0)
    patients = np.arange(80) // 4
    own = generator.normal(size=(20, 30))[patients] * 3  # tells the patient, and nothing else
    a, b = (own + generator.normal(size=(80, 30)) for _ in range(2))
    alike, apart = mutual_knn(a, b, 3), mutual_knn(own, generator.normal(size=(80, 30)), 3)
    assert alike > 0.5 > mutual_knn(a, b, 3, patients) > 0
    assert apart < 0.2
