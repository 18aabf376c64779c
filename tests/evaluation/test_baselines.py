"""Tests of the baselines: codes and maps equal scikit-learn and scikit-image, and retrieve pairs of simulated data."""

import numpy as np
import pytest
from skimage.feature import hog
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

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


def recall_at_1(map_: baselines.Map, codes: Codes) -> float:
    own = np.arange(len(codes[0]))
    return recall_at_k(map_.images(codes[0]), map_.texts(codes[1]), own, own, own).r1


@pytest.mark.parametrize("side", [64, 40])
def test_gradient_histograms_equal_scikit_image(side: int) -> None:
    images = np.random.default_rng(0).random((3, side, side), dtype=np.float32)
    cells = (side // 8, side // 8)
    wanted = [hog(image, 8, cells, (2, 2), block_norm="L2", feature_vector=True) for image in images]
    ours = baselines.gradient_histograms(images)
    assert ours == pytest.approx(np.array(wanted), abs=1e-4)
    assert baselines.gradient_histograms(images[:, None]) == pytest.approx(ours)


def test_gradient_histograms_of_a_ramp_and_of_a_constant_image() -> None:
    ramp = np.tile(np.linspace(0, 1, 51, dtype=np.float32), (2, 37, 1))  # brighter to the right: only orientation 0
    histograms = baselines.gradient_histograms(ramp).reshape(2, 49, 4, 8)
    assert histograms[..., 0] == pytest.approx(
        0.5, abs=0.1
    )  # less in the outer cells, where half of the border is flat
    assert not histograms[..., 1:].any()
    assert not baselines.gradient_histograms(np.zeros((1, 32, 32), dtype=np.float32)).any()


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
    texts = [text for subject in subjects for text in subject for _ in range(5)]
    codes = baselines.TextCodes(2).fit(texts).transform(["Effusion, left: large.", "effusion", "rib", "unheard"])
    unit = codes[:3] / np.linalg.norm(codes[:3], axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.9 > 0.5 > unit[0] @ unit[2]
    assert not codes[3].any()
    with pytest.raises(CyclicError, match="No word occurs in two"):
        baselines.TextCodes().fit(["one report", "another text"])


def test_cca_without_regularisation_equals_scikit_learn() -> None:
    images, texts = pairs(300)
    ours = baselines.RegularisedCCA(4, 1e-9).fit(images, texts)
    scores = CCA(4, max_iter=5000, tol=1e-12).fit_transform(images, texts)
    wanted = [np.corrcoef(one, two)[0, 1] for one, two in zip(scores[0].T, scores[1].T, strict=True)]
    assert ours.correlations == pytest.approx(wanted, abs=1e-4)
    variates = (images - images.mean(axis=0)) @ ours._maps[0]
    assert np.abs(np.corrcoef(variates.T, scores[0].T)[:4, 4:]) == pytest.approx(np.eye(4), abs=0.02)
    assert variates.std(axis=0) == pytest.approx(ours.correlations, abs=1e-3)


def test_ridge_maps_equal_scikit_learn() -> None:
    images, texts = pairs(300)
    ours = baselines.RidgeMaps(0.3).fit(images, texts)
    for x, y, weights in ((images, texts, ours.image_to_text), (texts, images, ours.text_to_image)):
        alpha = 0.3 * x.var(axis=0).mean() * len(x)
        assert weights == pytest.approx(Ridge(alpha).fit(x, y).coef_.T, abs=1e-4)
    one, two = ours.images(images), ours.texts(texts)
    x, y = images - images.mean(axis=0), texts - texts.mean(axis=0)
    cosines = [
        (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
        for a, b in ((x @ ours.image_to_text, y), (x, y @ ours.text_to_image))
    ]
    assert one @ two.T == pytest.approx(sum(cosines) / 2, abs=1e-5)


@pytest.mark.parametrize("name", baselines.MAPS)
def test_maps_retrieve_partners_and_choose_good_settings(name: str) -> None:
    train, test = pairs(120, noise=1.5), pairs(200, seed=1, noise=0.5)
    chosen = baselines.fit_map(name, *train, np.arange(120) // 2)
    scores = [recall_at_1(candidate.fit(*train), test) for candidate in baselines._candidates()[name]]
    assert recall_at_1(chosen, test) >= np.median(scores)
    assert recall_at_1(chosen, test) > 20 / 200  # twenty times chance
    for embeddings in (chosen.images(test[0]), chosen.texts(test[1])):
        assert embeddings.dtype == np.float32
        assert np.linalg.norm(embeddings, axis=1) == pytest.approx(np.ones(200), abs=1e-5)


@pytest.mark.parametrize("name", baselines.MAPS)
def test_maps_of_one_patient_and_of_constant_codes(name: str) -> None:
    train = pairs(6)
    assert np.isfinite(baselines.fit_map(name, *train, np.zeros(6)).images(train[0])).all()
    constant = np.ones((6, 12), dtype=np.float32)
    assert np.isfinite(baselines.fit_map(name, constant, train[1], np.arange(6)).images(train[0])).all()


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
