"""Transformer layers and an autoregressive decoder, shared by the text encoders that can write sentences.

The decoder reads a code as a few prefix vectors (Li and Liang, "Prefix-Tuning", ACL 2021), followed by START and the
previous tokens. Its output layer shares the weights of the token embedding (Press and Wolf, EACL 2017). The bias of the
output layer is initialised with the token frequencies, so the initial error is close to that of the mean predictor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.errors import UsageError
from cyclic_cli.text_encoders._vocabulary import END, PADDING, START

LARGEST = 4096  # size of any part of a transformer
EMBEDDING_SCALE = 0.02  # initial standard deviation of token and position embeddings


def check_sizes(width: int, **counts: int) -> None:
    """Raise UsageError when the sizes of a transformer are not possible. `counts` are such as layers and heads."""
    for name, count in {"width": width, **counts}.items():
        if not 1 <= count <= LARGEST:
            raise UsageError(f"{name} cannot be {count}.", f"Give a whole number from 1 to {LARGEST}.")
    if width % counts.get("heads", 1):
        raise UsageError(
            f"The width {width} is not a multiple of the number of heads, {counts['heads']}.", "Change one of them."
        )


class Block(nn.Module):
    """A transformer layer with normalisation before attention and perceptron (pre-LN, Xiong et al., ICML 2020)."""

    def __init__(self, width: int, heads: int) -> None:
        """Raises UsageError when the heads do not divide the width."""
        super().__init__()
        check_sizes(width, heads=heads)
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.projections = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, vectors: Tensor, mask: Tensor | None = None, causal: bool = False, past: list[Tensor] | None = None
    ) -> Tensor:
        """Return new vectors (N, L, width).

        Args:
            vectors: (N, L, width).
            mask: (N, L) bool, the positions that may be attended to. None: all.
            causal: Whether each position attends only to itself and earlier positions.
            past: Cached keys and values (N, heads, earlier positions, width / heads) of the positions before `vectors`,
                or an empty list. The list is updated to include `vectors`.
        """
        projected = self.projections(self.norm(vectors)).unflatten(2, (3, self.heads, -1))
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)
        if past is not None:
            if past:
                keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
            past[:] = [keys, values]
        attended = functional.scaled_dot_product_attention(
            queries, keys, values,
            attn_mask=None if mask is None else mask[:, None, None],
            is_causal=causal and queries.shape[2] == keys.shape[2],
        )  # fmt: skip
        vectors = vectors + self.merge(attended.transpose(1, 2).flatten(2))
        return vectors + self.perceptron(vectors)


class Decoder(nn.Module):
    """Predicts and generates the tokens of sentences from codes (N, code)."""

    def __init__(
        self, code: int, width: int, layers: int, heads: int, prefix: int, facts: Mapping[str, Any], vocabulary: int
    ) -> None:
        super().__init__()
        check_sizes(width, layers=layers, heads=heads, prefix=prefix)
        self.prefix, self.limit, self.nats = prefix, int(facts["limit"]), float(facts["nats"])
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(EMBEDDING_SCALE * torch.randn(self.limit, width))
        self.bias = nn.Parameter(torch.tensor(facts["frequencies"]).log())
        self.enter = nn.Linear(code, prefix * width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_SCALE)

    def errors(self, code: Tensor, tokens: Tensor) -> Tensor:
        """Return (N,): the cross-entropy per token of tokens (N, L), relative to predicting the token frequencies.

        Each token is predicted from the code and all tokens before it.
        """
        tokens = trimmed(tokens).abs()
        present = tokens != PADDING
        logits = self._logits(self._predicting_vectors(code, tokens)[present])
        nats = functional.cross_entropy(logits, tokens[present], reduction="none")
        total = nats.new_zeros(present.shape).masked_scatter(present, nats).sum(1)
        return total / present.sum(1).clamp(min=1) / self.nats

    def logits(self, code: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits (N, L, V) of each of the tokens (N, L), given the code and all tokens before it."""
        return self._logits(self._predicting_vectors(code, tokens))

    def soft_decode(self, code: Tensor) -> Tensor:
        """Return greedily decoded texts as one-hot rows (N, L, V) that have the gradient of the softmax.

        Rows after the end of a text are zero. This is the straight-through estimator of Bengio et al. (arXiv 1308.3432,
        2013), which ITIT uses for texts in a cycle (Li et al., arXiv 2310.03734, 2023). The search has no gradient; one
        further pass over the decoded tokens gives it.
        """
        tokens = self.search(code.detach(), 1, self.limit)
        soft = self.logits(code, tokens).softmax(2)
        hard = functional.one_hot(tokens, soft.shape[2]).to(soft.dtype)
        return (hard + (soft - soft.detach())) * (tokens != PADDING)[:, :, None]

    def generate(self, code: Tensor, beams: int, length: int) -> list[list[int]]:
        """Return a list of tokens for each code: the more likely result of greedy search and beam search.

        Likelihoods are compared per token. Beam search keeps `beams` texts and is skipped when that is 1.
        """
        found = self.search(code, 1, length)
        if beams > 1:
            of_beams = self.search(code, beams, length)
            of_beams = functional.pad(of_beams, (0, max(0, found.shape[1] - of_beams.shape[1])))
            found = functional.pad(found, (0, of_beams.shape[1] - found.shape[1]))
            with torch.no_grad():
                better = self.errors(code, of_beams) < self.errors(code, found)
            found = torch.where(better[:, None], of_beams, found)
        return [[token for token in row if token != PADDING] for row in found.tolist()]

    @torch.no_grad()
    def search(self, code: Tensor, beams: int, length: int) -> Tensor:
        """Return tokens (N, L), found by beam search for the largest mean log-likelihood per token.

        L is at most `length` and the length limit of the decoder. With one beam the search is greedy.
        """
        texts, device = len(code), code.device
        past: list[list[Tensor]] = [[] for _ in self.blocks]
        vectors = self._run(self._opening(code.repeat_interleave(beams, 0)), None, past)
        tokens = torch.zeros(texts * beams, 0, dtype=torch.int64, device=device)
        scores = torch.full((texts, beams), -torch.inf, device=device)
        scores[:, 0] = 0  # all beams are equal at first, so only one counts
        lengths = torch.zeros(texts, beams, device=device)
        done = torch.zeros(texts * beams, dtype=torch.bool, device=device)
        while True:
            following = self._logits(vectors[:, -1]).float().log_softmax(1)
            following[done] = -torch.inf
            following[done, PADDING] = 0
            total = scores[:, :, None] + following.view(texts, beams, -1)
            lengths = lengths + ~done.view(texts, beams)
            chosen = (total / lengths[:, :, None]).flatten(1).topk(beams).indices
            scores = total.flatten(1).gather(1, chosen)
            beam = chosen // following.shape[1]
            lengths = lengths.gather(1, beam)
            rows = (beams * torch.arange(texts, device=device)[:, None] + beam).flatten()
            last = (chosen % following.shape[1]).view(-1, 1)
            tokens = torch.cat([tokens[rows], last], 1)
            done = ((last == END) | (last == PADDING)).flatten()
            if bool(done.all()) or tokens.shape[1] >= min(length, self.limit):
                best = beams * torch.arange(texts, device=device) + (scores / lengths).argmax(1)
                return tokens[best]
            if beams > 1:
                past = [[kept[rows] for kept in block] for block in past]
            vectors = self._run(None, last, past)

    def _predicting_vectors(self, code: Tensor, tokens: Tensor) -> Tensor:
        """Return the last layer's vectors (N, L, width) at the positions that predict the tokens (N, L)."""
        return self._run(self._opening(code), tokens[:, :-1], None)[:, self.prefix :]

    def _opening(self, code: Tensor) -> Tensor:
        """Return the vectors (N, prefix + 1, width) before a sentence: the code as prefix, and START."""
        prefix = self.enter(code).unflatten(1, (self.prefix, -1))
        start = self.embedding.weight[START] + self.positions[0]
        return torch.cat([prefix, start.to(prefix.dtype).expand(len(code), 1, -1)], 1)

    def _run(self, opening: Tensor | None, tokens: Tensor | None, past: list[list[Tensor]] | None) -> Tensor:
        """Return the last layer's vectors of an opening and of the tokens (N, L) that follow it or the cached past.

        An opening or tokens that are None are left out. `past` holds the cache of each block (see `Block.forward`).
        """
        parts = [] if opening is None else [opening]
        if tokens is not None:
            first = 1 if not past else past[0][0].shape[2] - self.prefix
            parts.append(self.embedding(tokens) + self.positions[first : first + tokens.shape[1]])
        vectors = torch.cat(parts, 1)
        for number, block in enumerate(self.blocks):
            vectors = block(vectors, causal=True, past=past[number] if past else None)
        return vectors

    def _logits(self, vectors: Tensor) -> Tensor:
        logits = functional.linear(self.norm(vectors), self.embedding.weight, self.bias)
        never_predicted = torch.arange(logits.shape[-1], device=logits.device) < END  # PADDING and START
        return logits.masked_fill(never_predicted, -torch.inf)


class GeneratingEncoder(nn.Module):
    """Base class of the text encoders that write sentences: it decodes with their `decoder`."""

    decoder: Decoder

    def decode(self, code: Tensor) -> Tensor:
        """Return greedily decoded tokens (N, L)."""
        return self.decoder.search(code, 1, self.decoder.limit)

    def errors(self, code: Tensor, tokens: Tensor) -> Tensor:
        """See `Decoder.errors`."""
        return self.decoder.errors(code, tokens)

    def soft_decode(self, code: Tensor) -> Tensor:
        """See `Decoder.soft_decode`."""
        return self.decoder.soft_decode(code)

    def generate(self, code: Tensor, beams: int, length: int) -> list[list[int]]:
        """See `Decoder.generate`."""
        return self.decoder.generate(code, beams, length)


def trimmed(tokens: Tensor) -> Tensor:
    """Return tokens (N, L) without the columns after the longest text. During ONNX export they stay as they are."""
    if torch.compiler.is_exporting():
        return tokens
    longest = int((tokens != PADDING).sum(1).max()) if len(tokens) else 0
    return tokens[:, : max(longest, 1)]
