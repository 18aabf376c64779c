"""Bag of tokens: which words a text has, not their order; for datasets too small to learn sentences from.

Texts become log(1 + count) · log(1 / share of texts with the token), of unit norm, and their codes start as latent
semantic analysis: projections on the singular vectors of the training texts of the largest values (Deerwester et al.,
JASIS 1990). The decoder gives the share of each token and starts as a regression on those codes. On either side a small
network adds to the linear map, at first nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.text_encoders._vocabulary import PADDING


@dataclass(frozen=True, kw_only=True)
class Config:
    latent: int = 128  # numbers in the code
    hidden: int = 256  # units of the networks beside the linear maps; 0: none


GENERATES = False
FITTED = True
TEXTS = 20_000  # that the start is taken from, at most
RIDGE = 1e-3  # of the regression, added to the variances of the code
TRIED = 2000  # of those, that say which factor of the regression's slopes is best
OVERSAMPLED = 16  # directions, for the accuracy of the last ones
FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Encoder(nn.Module):
    """Linear maps into and out of a code, and what a hidden layer adds."""

    weights: Tensor  # (V,) inverse document frequencies

    def __init__(self, config: Config, facts: Mapping[str, Any], vocabulary: int) -> None:
        super().__init__()
        self.code = config.latent
        self.nats, self.length = float(facts["nats"]), float(facts["length"])
        self.register_buffer("weights", -torch.tensor(facts["documents"]).log())
        self.into_code = nn.Linear(vocabulary, config.latent)
        self.after = Addition(config.latent, config.hidden)
        self.before = Addition(config.latent, config.hidden)
        self.out_of_code = nn.Linear(config.latent, vocabulary)
        nn.init.zeros_(self.out_of_code.weight)
        with torch.no_grad():
            self.out_of_code.bias.copy_(torch.tensor(facts["frequencies"]).log())

    @torch.no_grad()
    def initialise(self, tokens: Iterable[Tensor]) -> None:
        """Start from batches of tokens (N, L); numbers of the code that the texts do not span are 0."""
        counts = torch.cat(list(self._first_counts(tokens)))
        bags = self._bags(counts)
        directions = _right_singular(bags, self.code)
        self.into_code.weight.zero_()[: len(directions)] = directions
        self.into_code.bias.zero_()
        codes = bags @ directions.T
        mean = codes.mean(0)
        shares = functional.normalize(counts, p=1, dim=1)
        # To first order, frequencies · exp(slope · code) are shares whose relative change is linear in the code.
        covariance = (codes - mean).T @ (codes - mean)
        covariance.diagonal().add_(RIDGE * len(codes))
        slopes = torch.linalg.solve(covariance, (codes - mean).T @ shares).T  # (V, code)
        slopes /= (self.out_of_code.bias.exp() + 1 / len(codes))[:, None]
        self._take_best(slopes, codes[:TRIED] - mean, shares[:TRIED])
        self.out_of_code.bias.sub_(self.out_of_code.weight[:, : len(mean)] @ mean)

    def _first_counts(self, tokens: Iterable[Tensor]) -> Iterator[Tensor]:
        seen = 0
        for batch in tokens:
            if seen < TEXTS:
                yield _counts(batch, len(self.weights))
            seen += len(batch)

    def _take_best(self, slopes: Tensor, codes: Tensor, shares: Tensor) -> None:
        """Set the decoder's slopes, shortened as far as gives the least error: at 0 it is that of the frequencies."""

        def error(factor: float) -> float:
            logits = codes @ (factor * slopes).T + self.out_of_code.bias
            return -float((shares * logits.log_softmax(1)).sum())

        self.out_of_code.weight.zero_()[:, : slopes.shape[1]] = min(FACTORS, key=error) * slopes

    def encode(self, tokens: Tensor) -> Tensor:
        """Codes (N, code) of tokens (N, L), those below 0 unread, or of counts (N, V) float."""
        counts = tokens if tokens.is_floating_point() else _counts(tokens.clamp(min=0), len(self.weights))
        code: Tensor = self.after(self.into_code(self._bags(counts)))
        return code

    def decode(self, code: Tensor) -> Tensor:
        """The logarithm (N, V) of each token's share of the text."""
        return self.out_of_code(self.before(code)).log_softmax(1)

    def errors(self, code: Tensor, tokens: Tensor) -> Tensor:
        """Cross-entropy a token (N,) as a share of that of the frequencies."""
        shares = functional.normalize(_counts(tokens.abs(), len(self.weights)), p=1, dim=1)
        return -(shares * self.decode(code)).sum(1) / self.nats

    def drawn(self, code: Tensor) -> Tensor:
        """The counts (N, V) that are to be expected of a text of the usual length."""
        return self.length * self.decode(code).exp()

    def _bags(self, counts: Tensor) -> Tensor:
        return functional.normalize(counts.log1p() * self.weights, dim=1)


class Addition(nn.Module):
    """Vectors and what a hidden layer adds to them, at first nothing."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        last = nn.Linear(hidden, width)
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last) if hidden else None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors if self.layers is None else vectors + self.layers(vectors)


def _right_singular(rows: Tensor, number: int) -> Tensor:
    """The right singular vectors (K, V) of rows (N, V) with the largest values (Halko et al., SIAM Review 2011)."""
    number = min(number, *rows.shape)
    _, _, vectors = torch.svd_lowrank(rows, min(number + OVERSAMPLED, *rows.shape), niter=4)
    return vectors[:, :number].T


def _counts(tokens: Tensor, vocabulary: int) -> Tensor:
    """How often texts (N, L) have each token: (N, V) float32; PADDING counts nothing."""
    counts = torch.zeros(len(tokens), vocabulary, device=tokens.device)
    return counts.scatter_add_(1, tokens, (tokens != PADDING).float())
