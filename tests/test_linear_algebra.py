"""Decompositions are right, and stay so when LAPACK's fast driver fails."""

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import torch

from cyclic_cli import linear_algebra
from cyclic_cli.alignment.maps import Factors, Setting, embed
from cyclic_cli.alignment.moments import Moments
from cyclic_cli.errors import CyclicError
from cyclic_cli.evaluation.baselines import PrincipalComponents, TextCodes

MATRIX = np.random.default_rng(0).normal(size=(30, 12)) * np.geomspace(1, 1e-3, 12)
SYMMETRIC = MATRIX.T @ MATRIX
ROUNDING = 1e-12  # of float64, some thousand times its precision for matrices of this size and of norm about 5


@pytest.fixture(params=["works", "raises", "gives NaN"])
def fast_driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """LAPACK's divide-and-conquer drivers as they are, failing, or without a result."""
    if request.param == "works":
        return "works"
    sturdy = scipy.linalg.svd

    def failing(matrix: Any, *_: Any, **__: Any) -> Any:
        if request.param == "raises":
            raise np.linalg.LinAlgError("SVD did not converge")
        return [np.full(matrix.shape, np.nan) for _ in range(3)]

    def svd(matrix: Any, *words: Any, lapack_driver: str = "gesdd", **named: Any) -> Any:
        wanted = failing if lapack_driver == "gesdd" else sturdy
        return wanted(matrix, *words, lapack_driver=lapack_driver, **named)

    monkeypatch.setattr(np.linalg, "svd", failing)
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: failing(matrix)[:2])
    monkeypatch.setattr(scipy.linalg, "svd", svd)
    monkeypatch.setattr("sklearn.utils.extmath.linalg.svd", svd)
    return str(request.param)


def test_singular_values_and_vectors_rebuild_the_matrix(fast_driver: str) -> None:
    for matrix in (MATRIX, MATRIX.T):
        left, values, right = linear_algebra.svd(matrix)
        np.testing.assert_allclose(left * values @ right, matrix, atol=ROUNDING)
        np.testing.assert_allclose(left.T @ left, np.eye(12), atol=ROUNDING)
        np.testing.assert_allclose(right @ right.T, np.eye(12), atol=ROUNDING)
        assert (np.diff(values) <= 0).all()


def test_eigenvectors_diagonalise_the_matrix(fast_driver: str) -> None:
    values, vectors = linear_algebra.eigh(SYMMETRIC)
    np.testing.assert_allclose(vectors * values @ vectors.T, SYMMETRIC, atol=ROUNDING)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(12), atol=ROUNDING)
    assert (np.diff(values) >= 0).all()


@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_matrix])
def test_a_truncated_decomposition_holds_the_largest_values(form: Any, fast_driver: str) -> None:
    values, right = linear_algebra.truncated_svd(form(MATRIX), 5)
    exact = scipy.linalg.svdvals(MATRIX.T @ MATRIX) ** 0.5  # the square root of the eigenvalues: another way
    np.testing.assert_allclose(values, exact[:5], rtol=1e-6)  # power iterations leave the square of the next ratio
    np.testing.assert_allclose(np.linalg.norm(MATRIX @ right.T, axis=0), values, rtol=1e-6)


def test_baselines_are_the_same_when_the_fast_driver_fails(fast_driver: str) -> None:
    generator = np.random.default_rng(1)
    shared = generator.normal(size=(80, 3))
    images, texts = (
        np.concatenate([shared, generator.normal(size=(80, more))], 1).astype(np.float32) for more in (4, 2)
    )
    fitted = Factors(Moments.of(images, texts))
    assert fitted.variates(0.1)[2][:3] == pytest.approx(scipy.linalg.svdvals(_whitened(images, texts))[:3], abs=1e-8)
    blocks = fitted.blocks(Setting((0.1, 3)))
    likeness = embed(blocks, "image", images) @ embed(blocks, "text", texts).T
    assert (likeness.diagonal() > np.median(likeness, axis=1)).mean() > 0.9
    assert PrincipalComponents(9).fit(images).mse(images) == pytest.approx(0, abs=1e-9)
    reports, patients = ["left effusion", "right mass"] * 10, [str(number) for number in range(20)]
    codes = TextCodes(2).fit(reports, patients).transform(["left", "mass"])
    assert abs(codes[0] @ codes[1]) < 1e-6 < codes[0] @ codes[0]


def _whitened(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """The whitened cross-covariance by Cholesky factors: the same singular values as by inverse square roots."""
    x, y = (codes.astype(np.float64) - codes.mean(0) for codes in (images, texts))
    roots = []
    for codes in (x, y):
        covariance = codes.T @ codes / len(codes)
        ridge = 0.1 * covariance.trace() / len(covariance) + 1e-12
        roots.append(np.linalg.inv(np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))))
    return np.asarray(roots[0] @ (x.T @ y / len(x)) @ roots[1].T)


@pytest.mark.parametrize("decompose", [linear_algebra.svd, linear_algebra.eigh])
def test_what_cannot_be_decomposed_is_an_error_with_a_hint(decompose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CyclicError, match="not finite"):
        decompose(np.full((3, 3), np.nan))

    def never(*_: Any, **__: Any) -> Any:
        raise np.linalg.LinAlgError("did not converge")

    for module in (np.linalg, scipy.linalg):
        monkeypatch.setattr(module, "svd", never)
        monkeypatch.setattr(module, "eigh", never)
    with pytest.raises(CyclicError, match="does not converge") as caught:
        decompose(np.eye(3))
    assert "OPENBLAS_CORETYPE" in caught.value.hint


@pytest.mark.parametrize("fails", [False, True])
def test_tensors_are_decomposed_alike(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if fails:

        def failing(*_: Any, **__: Any) -> Any:
            raise torch.linalg.LinAlgError("did not converge")

        monkeypatch.setattr(torch.linalg, "eigh", failing)
        monkeypatch.setattr(torch, "svd_lowrank", failing)
    batch = torch.from_numpy(np.stack([SYMMETRIC, SYMMETRIC[::-1, ::-1].copy()])).to(torch.complex128)
    values, vectors = linear_algebra.eigh_of_tensor(batch)
    torch.testing.assert_close(vectors * values[:, None] @ vectors.mH, batch, rtol=0, atol=ROUNDING)
    torch.manual_seed(0)
    right = linear_algebra.right_singular_vectors(torch.from_numpy(MATRIX), 5, 16, 4)
    exact = scipy.linalg.svdvals(MATRIX)[:5]
    np.testing.assert_allclose(np.linalg.norm(MATRIX @ right.numpy().T, axis=0), exact, rtol=1e-6)


def test_directions_that_a_matrix_does_not_span_are_left_out() -> None:
    rows = np.random.default_rng(2).normal(size=(6, 40)).astype(np.float32)
    values, right = linear_algebra.truncated_svd(rows - rows.mean(0), 6)
    assert (values.shape, right.shape) == ((5,), (5, 40))  # centred rows: one direction less than rows
    assert linear_algebra.truncated_svd(np.zeros((4, 4)), 2)[0].tolist() == [0.0]
