"""Tests of the baselines: their codes equal scikit-learn's, and their maps retrieve pairs of simulated data."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from cyclic_cli.alignment import maps as alignment
from cyclic_cli.alignment.choice import ClosedForm
from cyclic_cli.errors import CyclicError
from cyclic_cli.evaluation import baselines
from cyclic_cli.metrics.retrieval import recall_at_k

Codes = tuple[np.ndarray, np.ndarray]


def pairs(samples: int, seed: int = 0, noise: float = 0.5) -> Codes:
    """Image codes (N, 12) and text codes (N, 9): noisy linear maps of four shared variables, equal for every seed."""
    maps, generator = np.random.default_rng(99), np.random.default_rng(seed)
    shared = generator.normal(size=(samples, 4))
    sides = [shared @ maps.normal(size=(4, dims)) + noise * generator.normal(size=(samples, dims)) for dims in (12, 9)]
    return sides[0].astype(np.float32), sides[1].astype(np.float32) + 3


def recall_at_1(map_: ClosedForm, codes: Codes) -> float:
    own = np.arange(len(codes[0]))
    return recall_at_k(map_.embed("image", codes[0]), map_.embed("text", codes[1]), own, own, own).r1


def test_pixels_and_gradients_have_equal_variance_in_image_codes() -> None:
    images = np.random.default_rng(0).random((60, 1, 32, 32), dtype=np.float32)
    images *= 0.8 ** np.arange(32, dtype=np.float32)
    codes = baselines.ImageCodes(20).fit(images).transform(images)
    assert codes.shape == (60, 40)
    assert [codes[:, half].var(axis=0, ddof=1).sum() for half in (slice(20), slice(20, 40))] == pytest.approx([1, 1])
    wanted = PCA(20).fit_transform(images.reshape(60, -1))
    likeness = np.abs(np.corrcoef(codes[:, :5].T, wanted[:, :5].T)[:5, 5:])
    assert likeness == pytest.approx(np.eye(5), abs=0.1)
    assert baselines.ImageCodes(200).fit(images[:9]).transform(images).shape == (60, 16)


def test_text_codes_of_texts_on_the_same_subject_are_similar() -> None:
    subjects = [["large left effusion", "left effusion is large"], ["broken rib seen", "a rib is broken"]]
    texts = [text for subject in subjects for text in subject for _ in range(5)] + ["left effusion, Zuckermann"] * 9
    patients = [str(number) for number in range(len(texts))]
    fitted = baselines.TextCodes(2).fit(texts, patients)
    codes = fitted.transform(["Effusion, left: large.", "effusion", "rib", "unheard", "Zuckermann"])
    unit = codes[:3] / np.linalg.norm(codes[:3], axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.9 > 0.5 > unit[0] @ unit[2]
    assert not codes[3:].any()  # a word of nine patients is as unknown as one of none
    with pytest.raises(CyclicError, match="No word occurs in the reports of 10") as caught:
        baselines.TextCodes().fit(texts, [str(number % 9) for number in range(len(texts))])
    assert "--baselines" in caught.value.hint


@pytest.mark.parametrize("name", baselines.MAPS)
def test_maps_retrieve_partners_and_choose_good_settings(name: str) -> None:
    train, test = pairs(120, noise=1.5), pairs(200, seed=1, noise=0.5)
    chosen = baselines.fit_map(name, *train, np.arange(120) // 2)
    assert chosen.setting.map == name
    scores = []
    for setting in baselines.GRIDS[name]:
        blocks = alignment.fit_map(setting, *train)
        similarity = alignment.embed(blocks, "image", test[0]) @ alignment.embed(blocks, "text", test[1]).T
        scores.append((similarity.argmax(axis=1) == np.arange(200)).mean())
    assert recall_at_1(chosen, test) >= np.median(scores)
    assert recall_at_1(chosen, test) > 20 / 200  # twenty times chance


@pytest.mark.parametrize("name", baselines.MAPS)
def test_maps_of_one_patient(name: str) -> None:
    train = pairs(6)
    assert np.isfinite(baselines.fit_map(name, *train, np.zeros(6)).embed("image", train[0])).all()


def test_reconstruction_baselines_equal_scikit_learn() -> None:
    images = np.random.default_rng(0).random((50, 1, 8, 8), dtype=np.float32)
    train, test = images[:40], images[40:]
    assert baselines.mean_image_mse(train, test) == pytest.approx(np.mean((test - train.mean(axis=0)) ** 2))
    pca = PCA(5, svd_solver="full").fit(train.reshape(40, -1))
    flat = test.reshape(10, -1)
    wanted = np.mean((flat - pca.inverse_transform(pca.transform(flat))) ** 2)
    assert baselines.PrincipalComponents(5).fit(train).mse(test) == pytest.approx(wanted, rel=0.02)
    assert baselines.PrincipalComponents(64).fit(train).mse(train) == pytest.approx(0, abs=1e-6)
    codes, wanted = baselines.PrincipalComponents(3).fit(train).transform(train), pca.transform(train.reshape(40, -1))
    assert np.abs(np.corrcoef(codes.T, wanted[:, :3].T)[:3, 3:].diagonal()) == pytest.approx(np.ones(3), abs=0.02)
    assert codes.var(axis=0, ddof=1).sum() == pytest.approx(1, rel=1e-3)
