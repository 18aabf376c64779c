"""Matrix decompositions that do not fail: LAPACK's fast driver first, a slower and sturdier one where that fails.

The divide-and-conquer drivers (`gesdd`, `syevd`) are several times faster, but with some BLAS builds they report that
they did not converge on finite matrices. The QR drivers (`gesvd`, `syev`; Anderson et al., LAPACK Users' Guide, 1999)
then give the same factors up to rounding.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclic_cli.errors import CyclicError

if TYPE_CHECKING:
    import torch

OVERSAMPLED = 10  # further directions of a randomised decomposition, for the accuracy of the last ones


def svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The thin singular value decomposition of a matrix (N, P).

    Returns:
        U (N, K), singular values (K,) in falling order, and Vᵀ (K, P), K = min(N, P).

    Raises:
        CyclicError: The matrix is not finite, or neither driver converges.
    """

    def sturdy() -> Any:
        from scipy.linalg import svd as with_driver

        return with_driver(matrix, full_matrices=False, lapack_driver="gesvd")

    left, values, right = _first_finite(matrix, lambda: np.linalg.svd(matrix, full_matrices=False), sturdy)
    return left, values, right


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (P,) in rising order and eigenvectors (P, P), as columns, of a symmetric matrix (P, P).

    Raises:
        CyclicError: The matrix is not finite, or neither driver converges.
    """

    def sturdy() -> Any:
        from scipy.linalg import eigh as with_driver

        return with_driver(matrix, driver="ev")

    values, vectors = _first_finite(matrix, lambda: np.linalg.eigh(matrix), sturdy)
    return values, vectors


def truncated_svd(matrix: Any, rank: int, iterations: int | str = "auto") -> tuple[np.ndarray, np.ndarray]:
    """The largest singular values and right singular vectors, by a randomised method (Halko et al., SIAM Review 2011).

    Args:
        matrix: (N, P), an array or a sparse matrix.
        rank: K, at most min(N, P).
        iterations: Power iterations; auto: scikit-learn's rule.

    Returns:
        Singular values (K,) in falling order, and vectors (K, P). The same matrix gives the same result. Directions
        that the matrix does not span are left out: their values are rounding errors, which differ between machines.

    Raises:
        CyclicError: The matrix is not finite, or neither driver converges.
    """
    from sklearn.utils.extmath import randomized_svd

    def by(driver: str) -> Callable[[], Any]:
        return lambda: randomized_svd(
            matrix, rank, n_oversamples=OVERSAMPLED, n_iter=iterations, random_state=0, svd_lapack_driver=driver
        )  # fmt: skip

    _, values, right = _first_finite(getattr(matrix, "data", matrix), by("gesdd"), by("gesvd"))
    rounding = values[:1] * 10 * max(matrix.shape) ** 0.5 * np.finfo(values.dtype).eps
    spanned = values > rounding
    spanned[:1] = True  # of a matrix of zeros, one direction on which all is zero
    return values[spanned], right[spanned]


def eigh_of_tensor(matrix: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """`eigh` of symmetric or Hermitian tensors (..., P, P), on their device."""
    import torch

    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        several = [eigh(one) for one in matrix.reshape(-1, *matrix.shape[-2:]).cpu().numpy()]
        values, vectors = (
            torch.from_numpy(np.stack(factors)).to(matrix.device) for factors in zip(*several, strict=True)
        )
        values, vectors = values.reshape(matrix.shape[:-1]), vectors.reshape(matrix.shape)
    return values, vectors


def right_singular_vectors(rows: "torch.Tensor", rank: int, oversampled: int, iterations: int) -> "torch.Tensor":
    """The leading right singular vectors (K, P) of rows (N, P), by the randomised method of `truncated_svd`.

    K is `rank`, or the smaller side of the rows where that is less. Random numbers come from torch's generator.
    """
    import torch

    rank = min(rank, *rows.shape)
    try:
        vectors = torch.svd_lowrank(rows, min(rank + oversampled, *rows.shape), niter=iterations)[2].T
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        vectors = torch.from_numpy(truncated_svd(rows.cpu().numpy(), rank, iterations)[1]).to(rows)
    return vectors[:rank]


def _first_finite(numbers: Any, *attempts: Callable[[], Any]) -> Any:
    """The factors of the first attempt that converges to finite numbers."""
    if not np.isfinite(np.asarray(numbers)).all():
        raise CyclicError("A matrix to be decomposed has entries that are not finite.", "Check the embeddings.")
    for attempt in attempts:
        try:
            factors = attempt()
        except np.linalg.LinAlgError:
            continue
        if all(np.isfinite(factor).all() for factor in factors):
            return factors
    raise CyclicError(
        "A matrix cannot be decomposed: LAPACK does not converge.",
        "Try another BLAS, such as OPENBLAS_CORETYPE=Haswell.",
    )
