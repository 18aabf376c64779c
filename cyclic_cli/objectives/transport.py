"""Transport (KLOT): unpaired samples should be matched as the closed form matches them.

    loss = KL(P* ‖ P) = Σ_ij P*_ij log(P*_ij / P_ij)
    P = argmax over plans of Σ_ij P_ij a_i·b_j + ε H(P), and P* likewise with the closed form's embeddings and its ε*

over the N embeddings a_i and M embeddings b_j, L2-normalised, of the unpaired samples of every two modalities. Plans
are matrices (N, M) of shares with uniform marginals 1 / N and 1 / M, and H is their entropy; Sinkhorn's iteration finds
them. As ε* is smaller than ε, P* is sharper than P: the term sharpens what the closed form begins. It is the KLOT loss
of SOTAlign (Roschmann et al., ICML 2026, arXiv 2602.23353). Its gradient with respect to the similarities a_i·b_j is
(P − P*) / ε (their theorem 5.1), so nothing is back-propagated through the iteration.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cyclic_cli.objectives._pairs import mean, unpaired

NEEDS = ("embedding", "closed_form")
PER_SAMPLE = False
LEAST = -80.0  # logarithm of the smallest share of a sum that counts; processors are slow with still smaller numbers


def loss(
    outputs: dict[str, Any],
    batch: dict[str, Any],
    *,
    epsilon: float = 0.05,
    closed_form_epsilon: float = 0.005,
    steps: int = 100,
) -> Tensor:
    """Return the scalar loss, in nats and from 0, of L2-normalised outputs["embedding"], (N, D) by modality.

    `epsilon` is ε, `closed_form_epsilon` is ε* for outputs["closed_form"], of the same shapes, and `steps` is the
    number of iterations, at most.
    """
    every = zip(unpaired(outputs, batch), unpaired(outputs, batch, "closed_form"), strict=True)
    losses = []
    for (a, b), (fixed_a, fixed_b) in every:
        with torch.no_grad():
            target = log_plan(fixed_a @ fixed_b.T / closed_form_epsilon, steps)
        divergence: Tensor = _Divergence.apply(a @ b.T, target, epsilon, steps)  # type: ignore[no-untyped-call]
        losses.append(divergence)
    return mean(losses, outputs)


def log_plan(scaled: Tensor, steps: int) -> Tensor:
    """Return the logarithm (N, M) of the transport plan of similarities divided by ε, (N, M).

    This is Sinkhorn's iteration on logarithms, which neither overflow nor vanish. It ends when rounding is all that
    changes. The marginals of the columns are exact.
    """
    rows, columns = scaled.shape
    second = scaled.new_zeros(columns)
    close = 4 * torch.finfo(scaled.dtype).eps * float(scaled.abs().max())
    for _ in range(steps):
        first = -math.log(rows) - _log_sum(scaled + second, 1)
        before, second = second, -math.log(columns) - _log_sum(scaled + first[:, None], 0)
        if float((second - before).abs().max()) <= close:
            break
    return scaled + first[:, None] + second


def _log_sum(values: Tensor, dim: int) -> Tensor:
    """Return the logarithm of the sum of the exponentials of values (N, M) over a dimension."""
    largest = values.amax(dim, keepdim=True)
    return ((values - largest).clamp(min=LEAST).exp().sum(dim, keepdim=True).log() + largest).squeeze(dim)


class _Divergence(torch.autograd.Function):
    """The divergence KL(P* ‖ P) of similarities (N, M), given the logarithm of P*, ε and the number of iterations."""

    @staticmethod
    def forward(ctx: Any, similarity: Tensor, log_target: Tensor, epsilon: float, steps: int) -> Tensor:
        found, target = log_plan(similarity / epsilon, steps), log_target.exp()
        ctx.save_for_backward((found.exp() - target) / epsilon)
        return (target * (log_target - found)).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (own,) = ctx.saved_tensors
        return gradients[0] * own, None, None, None
