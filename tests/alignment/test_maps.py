"""Tests of the maps: CCA and ridge regression equal independent formulations."""

import numpy as np
import pytest
from scipy.linalg import eigh
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import Ridge

from cyclic_cli.alignment.maps import Factors, Setting, embed, fit_map
from cyclic_cli.alignment.moments import Moments


def pairs(samples: int, seed: int = 0, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Image codes (N, 12) and text codes (N, 9): noisy linear maps of four shared variables, equal for every seed."""
    maps, generator = np.random.default_rng(99), np.random.default_rng(seed)
    shared = generator.normal(size=(samples, 4))
    sides = [shared @ maps.normal(size=(4, dims)) + noise * generator.normal(size=(samples, dims)) for dims in (12, 9)]
    return sides[0].astype(np.float32), sides[1].astype(np.float32) + 3


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("swapped", [False, True])
def test_cca_solves_the_generalised_eigenproblem(swapped: bool) -> None:
    images, texts = pairs(300)[:: -1 if swapped else 1]
    x, y = (codes.astype(float) - codes.mean(axis=0, dtype=float) for codes in (images, texts))
    ridge = [0.3 * np.trace(one.T @ one / 300) / one.shape[1] * np.eye(one.shape[1]) for one in (x, y)]
    cxx, cyy, cxy = x.T @ x / 300 + ridge[0], y.T @ y / 300 + ridge[1], x.T @ y / 300
    squares, directions = eigh(cxy @ np.linalg.solve(cyy, cxy.T), cxx)  # w'Cxx w = 1
    image, text, correlations = Factors(Moments.of(images, texts)).variates(0.3)
    assert correlations[:9] == pytest.approx(np.sqrt(squares[::-1][:9]), abs=1e-7)
    wanted = directions[:, ::-1][:, :4] * correlations[:4]
    assert np.abs(image[:, :4]) == pytest.approx(np.abs(wanted), abs=1e-6)
    other = np.linalg.solve(cyy, cxy.T @ directions[:, ::-1][:, :4])  # scaled by the correlation already
    assert np.abs(text[:, :4]) == pytest.approx(np.abs(other), abs=1e-6)


def test_cca_without_regularisation_equals_scikit_learn() -> None:
    images, texts = pairs(300)
    maps = Factors(Moments.of(images, texts)).variates(0.0)
    scores = CCA(4, max_iter=5000, tol=1e-12).fit_transform(images, texts)
    wanted = [np.corrcoef(one, two)[0, 1] for one, two in zip(scores[0].T, scores[1].T, strict=True)]
    assert maps[2][:4] == pytest.approx(wanted, abs=1e-4)  # scikit-learn's power method stops earlier
    variates = (images - images.mean(axis=0)) @ maps[0][:, :4]
    assert np.abs(np.corrcoef(variates.T, scores[0].T)[:4, 4:]) == pytest.approx(np.eye(4), abs=0.02)
    assert variates.std(axis=0) == pytest.approx(maps[2][:4], abs=1e-3)


def test_ridge_equals_scikit_learn() -> None:
    images, texts = pairs(300)
    for x, y, weights in zip(
        (images, texts), (texts, images), Factors(Moments.of(images, texts)).regressions(0.3), strict=True
    ):
        alpha = 0.3 * x.var(axis=0, dtype=float).mean() * len(x)
        wanted = Ridge(alpha).fit(x.astype(float), y.astype(float)).coef_.T
        assert weights == pytest.approx(wanted, abs=1e-7)  # a relative shift of the ridge by 1e-9


def test_similarities_are_means_of_cosines() -> None:
    images, texts = pairs(300)
    factors = Factors(Moments.of(images, texts))
    x, y = images - images.mean(axis=0), texts - texts.mean(axis=0)
    forward, back = factors.regressions(1.0)
    ridge = (unit(x @ forward) @ unit(y).T + unit(x) @ unit(y @ back).T) / 2
    image, text, _ = factors.variates(0.1)
    cca = unit(x @ image[:, :4]) @ unit(y @ text[:, :4]).T
    for setting, wanted in (
        (Setting((0.1, 4)), cca),
        (Setting(ridge=1.0), ridge),
        (Setting((0.1, 4), 1.0), (cca + ridge) / 2),
    ):
        blocks = fit_map(setting, images, texts)
        assert len(blocks) == {"cca": 1, "ridge": 2, "both": 3}[setting.map]
        assert sum(block.weight**2 for block in blocks) == pytest.approx(1)
        embeddings = [embed(blocks, name, codes) for name, codes in (("image", images), ("text", texts))]
        assert np.abs(embeddings[0] @ embeddings[1].T - wanted).max() < 2e-5  # float32
        for one in embeddings:
            assert one.dtype == np.float32
            assert np.linalg.norm(one, axis=1) == pytest.approx(np.ones(300), abs=1e-5)


def test_maps_retrieve_partners_of_other_samples() -> None:
    train, test = pairs(120), pairs(200, seed=1)
    for setting in (Setting((1.0, 4)), Setting(ridge=1.0), Setting((1.0, 4), 1.0)):
        blocks = fit_map(setting, *train)
        similarity = embed(blocks, "image", test[0]) @ embed(blocks, "text", test[1]).T
        assert (similarity.argmax(axis=1) == np.arange(200)).mean() > 20 / 200  # twenty times chance


@pytest.mark.parametrize("setting", [Setting((1.0, 8)), Setting(ridge=1.0), Setting((0.0, 8), 0.0)])
def test_codes_of_lower_rank_than_their_columns(setting: Setting) -> None:
    images, texts = pairs(6)  # six pairs span five directions of twelve
    constant = np.ones((6, 12), np.float32)
    for codes in (images, constant, np.concatenate([images, images], axis=1)):
        blocks = fit_map(setting, codes, texts)
        assert np.isfinite(embed(blocks, "image", codes)).all()
        assert np.isfinite(embed(blocks, "text", texts * 100)).all()
