"""What text encoders that write sentences share: layers of a transformer, and a causal decoder of codes.

The decoder reads a code as a few vectors in front of the sentence (Li and Liang, "Prefix-Tuning", ACL 2021), START, and
the tokens so far. Its last layer is the table of its first (Press and Wolf, EACL 2017) and starts at the frequencies of
the tokens, so that its error starts near that of the best constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.errors import UsageError
from cyclic_cli.text_encoders._vocabulary import END, PADDING, START

EMBEDDING_SCALE = 0.02  # standard deviation of embeddings at the start


class Block(nn.Module):
    """A layer of a transformer, normalised before each part (Xiong et al., ICML 2020)."""

    def __init__(self, width: int, heads: int) -> None:
        """Raises UsageError when the heads do not divide the width."""
        super().__init__()
        if width % heads:
            raise UsageError(f"{heads} heads do not divide a width of {width}.", "Change one of them.")
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
        """
        Args:
            vectors: (N, L, width).
            mask: (N, L) bool, which of them may be looked at.
            causal: Each looks at those before it and itself alone.
            past: Keys and values (N, heads, ..., width / heads) of vectors before these, or none yet; these are added.
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
    """Codes (N, code) to sentences."""

    def __init__(
        self, code: int, width: int, layers: int, heads: int, prefix: int, facts: Mapping[str, Any], vocabulary: int
    ) -> None:
        super().__init__()
        self.prefix, self.limit, self.nats = prefix, int(facts["limit"]), float(facts["nats"])
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(EMBEDDING_SCALE * torch.randn(self.limit, width))
        self.bias = nn.Parameter(torch.tensor(facts["frequencies"]).log())
        self.enter = nn.Linear(code, prefix * width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_SCALE)

    def errors(self, code: Tensor, tokens: Tensor) -> Tensor:
        """Nats a token (N,) of tokens (N, L), each told all before it, as a share of those of their frequencies."""
        tokens = trimmed(tokens).abs()
        there = tokens != PADDING
        logits = self._logits(self._told(code, tokens)[there])
        nats = functional.cross_entropy(logits, tokens[there], reduction="none")
        total = nats.new_zeros(there.shape).masked_scatter(there, nats).sum(1)
        return total / there.sum(1).clamp(min=1) / self.nats

    def logits(self, code: Tensor, tokens: Tensor) -> Tensor:
        """Logits (N, L, V) of each token (N, L), told the code and all tokens before it."""
        return self._logits(self._told(code, tokens))

    def drawn(self, code: Tensor) -> Tensor:
        """The likeliest words one after another, as rows (N, L, V) with a one, which have the softmax's gradient.

        Rows behind the end are zeros. The straight-through estimator of Bengio et al. (arXiv 1308.3432, 2013), as ITIT
        (Li et al., arXiv 2310.03734, 2023) takes it for texts in a cycle: found without a gradient, told once with it.
        """
        tokens = self.search(code.detach(), 1, self.limit)
        soft = self.logits(code, tokens).softmax(2)
        hard = functional.one_hot(tokens, soft.shape[2]).to(soft.dtype)
        return (hard + (soft - soft.detach())) * (tokens != PADDING)[:, :, None]

    def generate(self, code: Tensor, beams: int, length: int) -> list[list[int]]:
        """The tokens of the likeliest texts found, in nats a token, by greedy search and one with `beams` at once."""
        found = self.search(code, 1, length)
        if beams > 1:
            wider = self.search(code, beams, length)
            wider = functional.pad(wider, (0, max(0, found.shape[1] - wider.shape[1])))
            found = functional.pad(found, (0, wider.shape[1] - found.shape[1]))
            with torch.no_grad():
                better = self.errors(code, wider) < self.errors(code, found)
            found = torch.where(better[:, None], wider, found)
        return [[token for token in row if token != PADDING] for row in found.tolist()]

    @torch.no_grad()
    def search(self, code: Tensor, beams: int, length: int) -> Tensor:
        """Tokens (N, L), L at most `length` and the encoder's limit, by beam search on their mean log-likelihood.

        With one beam the likeliest token follows each time.
        """
        texts, device = len(code), code.device
        past: list[list[Tensor]] = [[] for _ in self.blocks]
        vectors = self._run(self._opening(code.repeat_interleave(beams, 0)), None, past)
        tokens = torch.zeros(texts * beams, 0, dtype=torch.int64, device=device)
        scores = torch.full((texts, beams), -torch.inf, device=device)
        scores[:, 0] = 0  # one at first, since all are equal
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

    def _told(self, code: Tensor, tokens: Tensor) -> Tensor:
        return self._run(self._opening(code), tokens[:, :-1], None)[:, self.prefix :]

    def _opening(self, code: Tensor) -> Tensor:
        """What stands in front of a sentence (N, prefix + 1, width): the code, and START."""
        prefix = self.enter(code).unflatten(1, (self.prefix, -1))
        start = self.embedding.weight[START] + self.positions[0]
        return torch.cat([prefix, start.to(prefix.dtype).expand(len(code), 1, -1)], 1)

    def _run(self, opening: Tensor | None, tokens: Tensor | None, past: list[list[Tensor]] | None) -> Tensor:
        """The last layer's vectors of an opening, where there is one, and of tokens (N, L) behind what is past."""
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
        never = torch.arange(logits.shape[-1], device=logits.device) < END
        return logits.masked_fill(never, -torch.inf)


class Writing(nn.Module):
    """The half of an encoder that writes: its `decoder`."""

    decoder: Decoder

    def decode(self, code: Tensor) -> Tensor:
        """The likeliest tokens (N, L), one after another."""
        return self.decoder.search(code, 1, self.decoder.limit)

    def errors(self, code: Tensor, tokens: Tensor) -> Tensor:
        """See `Decoder.errors`."""
        return self.decoder.errors(code, tokens)

    def drawn(self, code: Tensor) -> Tensor:
        """See `Decoder.drawn`."""
        return self.decoder.drawn(code)

    def generate(self, code: Tensor, beams: int, length: int) -> list[list[int]]:
        """See `Decoder.generate`."""
        return self.decoder.generate(code, beams, length)


def trimmed(tokens: Tensor) -> Tensor:
    """Tokens (N, L) without the columns behind the longest text; while a model is exported, as they are."""
    if torch.compiler.is_exporting():
        return tokens
    longest = int((tokens != PADDING).sum(1).max()) if len(tokens) else 0
    return tokens[:, : max(longest, 1)]
