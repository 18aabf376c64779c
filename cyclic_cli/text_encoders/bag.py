"""Bag-of-tokens encoder: it represents which tokens a text has, not their order. It suits small datasets.

A text becomes the vector log(1 + count) · log(1 / fraction of the texts with the token), L2-normalised. Its code is
initialised by latent semantic analysis: the projection on the leading right singular vectors of the training texts
(Deerwester et al., JASIS 1990). The decoder predicts the frequency of each token in a text, and is initialised as a
regression on these codes. Encoder and decoder each have a small network that adds to the linear map. It initially adds
zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.linear_algebra import right_singular_vectors
from cyclic_cli.text_encoders._vocabulary import PADDING


@dataclass(frozen=True, kw_only=True)
class Config:
    latent: int = 128  # dimensions of the code
    hidden: int = 256  # hidden units of the networks that add to the linear maps; 0: no networks


GENERATES = False
FITTED = True
TEXTS = 20_000  # maximum number of texts for the initialisation
RIDGE = 1e-3  # ridge regularisation of the regression, added to the variances of the code
FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0)  # candidate factors for the slopes of the regression
FACTOR_TEXTS = 2000  # maximum number of texts on which the factors are compared
OVERSAMPLED = 16  # extra directions that make the last singular vectors accurate
ITERATIONS = 4  # power iterations of the randomised decomposition


class Encoder(nn.Module):
    """Encodes and decodes token counts with linear maps and residual networks."""

    weights: Tensor  # (V,) inverse document frequencies

    def __init__(self, config: Config, facts: Mapping[str, Any], vocabulary: int) -> None:
        super().__init__()
        self.code = config.latent
        self.nats, self.length = float(facts["nats"]), float(facts["length"])
        self.register_buffer("weights", -torch.tensor(facts["documents"]).log())
        self.into_code = nn.Linear(vocabulary, config.latent)
        self.after = ResidualNetwork(config.latent, config.hidden)
        self.before = ResidualNetwork(config.latent, config.hidden)
        self.out_of_code = nn.Linear(config.latent, vocabulary)
        nn.init.zeros_(self.out_of_code.weight)
        with torch.no_grad():
            self.out_of_code.bias.copy_(torch.tensor(facts["frequencies"]).log())

    @torch.no_grad()
    def initialise(self, tokens: Iterable[Tensor]) -> None:
        """Initialise from batches of tokens (N, L). Dimensions of the code that the texts do not span stay 0."""
        counts = torch.cat(list(self._first_counts(tokens)))
        bags = self._bags(counts)
        directions = right_singular_vectors(bags, self.code, OVERSAMPLED, ITERATIONS)
        self.into_code.weight.zero_()[: len(directions)] = directions
        self.into_code.bias.zero_()
        codes = bags @ directions.T
        mean = codes.mean(0)
        shares = functional.normalize(counts, p=1, dim=1)
        # To first order in the code, frequencies · exp(slope · code) is linear, so the slopes follow from a regression.
        covariance = (codes - mean).T @ (codes - mean)
        covariance.diagonal().add_(RIDGE * len(codes))
        slopes = torch.linalg.solve(covariance, (codes - mean).T @ shares).T  # (V, code)
        slopes /= (self.out_of_code.bias.exp() + 1 / len(codes))[:, None]
        self._set_slopes(slopes, codes[:FACTOR_TEXTS] - mean, shares[:FACTOR_TEXTS])
        self.out_of_code.bias.sub_(self.out_of_code.weight[:, : len(mean)] @ mean)

    def _first_counts(self, tokens: Iterable[Tensor]) -> Iterator[Tensor]:
        seen = 0
        for batch in tokens:
            if seen < TEXTS:
                yield _counts(batch, len(self.weights))
            seen += len(batch)

    def _set_slopes(self, slopes: Tensor, codes: Tensor, shares: Tensor) -> None:
        """Set the decoder's slopes (V, code) with the factor that gives the smallest error on some texts.

        Codes are (N, code), and shares (N, V) are the frequencies of the tokens in each text. With the factor 0 the
        decoder predicts the mean frequencies.
        """

        def error(factor: float) -> float:
            logits = codes @ (factor * slopes).T + self.out_of_code.bias
            return -float((shares * logits.log_softmax(1)).sum())

        self.out_of_code.weight.zero_()[:, : slopes.shape[1]] = min(FACTORS, key=error) * slopes

    def encode(self, tokens: Tensor) -> Tensor:
        """Return codes (N, code) of tokens (N, L), of which negative ones are ignored, or of float counts (N, V)."""
        counts = tokens if tokens.is_floating_point() else _counts(tokens.clamp(min=0), len(self.weights))
        code: Tensor = self.after(self.into_code(self._bags(counts)))
        return code

    def decode(self, code: Tensor) -> Tensor:
        """Return the logarithm (N, V) of the predicted frequency of each token in the text."""
        return self.out_of_code(self.before(code)).log_softmax(1)

    def errors(self, code: Tensor, tokens: Tensor) -> Tensor:
        """Return (N,): the cross-entropy per token, relative to predicting the mean frequencies."""
        shares = functional.normalize(_counts(tokens.abs(), len(self.weights)), p=1, dim=1)
        return -(shares * self.decode(code)).sum(1) / self.nats

    def soft_decode(self, code: Tensor) -> Tensor:
        """Return the expected token counts (N, V) of a text of mean length."""
        return self.length * self.decode(code).exp()

    def _bags(self, counts: Tensor) -> Tensor:
        return functional.normalize(counts.log1p() * self.weights, dim=1)


class ResidualNetwork(nn.Module):
    """Adds the output of a network with one hidden layer to its input. The output is initially zero."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        last = nn.Linear(hidden, width)
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last) if hidden else None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors if self.layers is None else vectors + self.layers(vectors)


def _counts(tokens: Tensor, vocabulary: int) -> Tensor:
    """Return how often each token occurs in texts (N, L), as (N, V) float32. PADDING is not counted."""
    counts = torch.zeros(tokens.shape[0], vocabulary, device=tokens.device)
    return counts.scatter_add_(1, tokens, (tokens != PADDING).float())
