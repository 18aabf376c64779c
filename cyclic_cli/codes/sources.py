"""Where the features of samples come from: pretrained encoders, cheap functions of images, terms of texts.

Features of encoders, and histograms of images, are computed once and kept in the cache (`codes/cache.py`). Pixels and
terms are read from the dataset each time, which is as fast.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from cyclic_cli.codes.cache import FeatureCache
from cyclic_cli.codes.components import Components, fit_components
from cyclic_cli.codes.image_features import SOURCES
from cyclic_cli.codes.terms import Terms
from cyclic_cli.data.mixture import Pool, Subset
from cyclic_cli.distributed import Ranks
from cyclic_cli.events import Report
from cyclic_cli.pretrained.encoder import PretrainedEncoder
from cyclic_cli.pretrained.fingerprint import LIBRARY
from cyclic_cli.pretrained.stored import GRAPH
from cyclic_cli.pretrained.tokens import Tokens

BATCH = 32  # images or texts that go through an encoder together
ROWS = 1024  # rows of features that are read together
OWN = "cyclic"  # kind of an encoder that this program trained
VERSION = 2  # of all that leads from content to features here; a change of their numbers needs a new one

Items = Pool | Subset
Tick = Callable[[int, int], None]  # called with the samples done, and their number


class Rows(Protocol):
    """Features (N, F) of N samples, read by their numbers."""

    dims: int  # F

    def __len__(self) -> int:
        """Return N."""

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Features (M, F) float32 of the samples with the numbers (M,)."""


@dataclass(frozen=True)
class Share:
    """The samples of a modality whose features this process reads."""

    pool: Items  # the samples of all processes
    numbers: np.ndarray  # (n,) those of this process, rising
    ranks: Ranks

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def items(self) -> Subset:
        """The samples. A process without any reads sample 0, to know the number of features, and does not count it."""
        return Subset(self.pool, self.numbers if len(self) else np.arange(1))


class Source(Protocol):
    """Gives features of samples."""

    name: str  # a fingerprint, or a name of a cheap function
    title: str  # for people
    is_cheap: bool
    is_foreign: bool  # whether it learned from other data than these, as pretrained encoders did

    def features(self, pool: Items, tick: Tick, report: Report) -> Mapping[str, Rows]:
        """The features of all samples of a pool, by name of the output."""

    def components(self, rows: Rows, output: str, dims: int, share: Share) -> Components:
        """The principal components of one output, at most `dims`, fitted to the samples of all processes.

        `rows` are the features of the items of this process's `share`. All processes call it together.
        """


class _Principal:
    """Fits principal components to features as they are."""

    title: str
    is_foreign = False

    def components(self, rows: Rows, output: str, dims: int, share: Share) -> Components:
        def batches() -> Iterator[np.ndarray]:
            for first in range(0, len(share), ROWS):
                yield rows.rows(np.arange(first, min(first + ROWS, len(share))))

        name = f"{output} of {self.title}" if output != self.title else output
        return fit_components(batches, rows.dims, dims, name, share.ranks)


class EncoderSource(_Principal):
    """A pretrained encoder."""

    is_cheap = False

    def __init__(
        self, encoder: PretrainedEncoder, cache: FeatureCache, device: torch.device, family_is_unique: bool
    ) -> None:
        """`family_is_unique` tells whether the modality has no other encoder of the same family."""
        self.encoder, self.cache, self.device = encoder.to(device), cache, device
        self.name, self.title = encoder.facts.fingerprint, encoder.facts.family
        self.is_foreign = encoder.facts.kind != OWN
        if not family_is_unique:
            self.title += f" {self.name[:6]}"

    @cached_property
    def _tokens(self) -> Tokens:
        facts = self.encoder.facts
        return Tokens(facts.tokenizer, facts.window or 0)

    def features(self, pool: Items, tick: Tick, report: Report) -> Mapping[str, Rows]:
        facts = self.encoder.facts
        dims = {output.name: output.dims for output in facts.outputs}
        made_by = facts.settings.get(LIBRARY, "")
        key = f"{facts.fingerprint} {VERSION} {self.encoder.place(self.device)} {torch.__version__} {made_by}"
        return self.cache.features(
            key, dims, pool.digests(), lambda numbers: self._compute(pool, numbers), BATCH, tick, report, self._about
        )

    @property
    def _about(self) -> dict[str, str]:
        """What `info --cache` says about the features."""
        facts = self.encoder.facts
        # The family of a graph is the name of its file, which may name somebody.
        name = GRAPH if facts.kind == GRAPH else f"{facts.family} ({facts.kind})"
        place = self.encoder.place(self.device)
        return {"encoder": name, "modality": facts.modality, "device": place, "torch": torch.__version__}

    def _compute(self, pool: Items, numbers: np.ndarray) -> dict[str, np.ndarray]:
        if self.encoder.facts.modality == "text":
            content = torch.from_numpy(self._tokens.encode(pool.texts(numbers)))
        else:
            content = pool.load(numbers)
        return _computed(self.encoder, content.to(self.device))


class HistogramSource(_Principal):
    """Histograms of images: of oriented gradients or of grey levels."""

    is_cheap = True

    def __init__(self, name: str, cache: FeatureCache) -> None:
        """`name` is gradients or levels."""
        self.name = self.title = name
        self.cache = cache
        self._sizes: tuple[dict[str, int], str] | None = None  # number of features by output, C×H×W: of all images

    def features(self, pool: Items, tick: Tick, report: Report) -> Mapping[str, Rows]:
        def compute(numbers: np.ndarray) -> dict[str, np.ndarray]:
            return _computed(SOURCES[self.name], pool.load(numbers))

        if self._sizes is None:
            image = pool.load(np.arange(1))
            dims = {name: one.shape[1] for name, one in _computed(SOURCES[self.name], image).items()}
            self._sizes = dims, "×".join(map(str, image.shape[1:]))
        dims, shape = self._sizes
        key = f"{self.name} {VERSION} {shape} {torch.__version__}"
        about = {"encoder": self.name, "modality": "image", "device": "cpu", "torch": torch.__version__}
        return self.cache.features(key, dims, pool.digests(), compute, BATCH, tick, report, about)


class PixelSource(_Principal):
    """Pixels of images, averaged to a small side."""

    name, title, is_cheap = "pixels", "pixels", True

    def features(self, pool: Items, tick: Tick, report: Report) -> Mapping[str, Rows]:
        return {"pixels": _Computed(lambda numbers: _computed(SOURCES["pixels"], pool.load(numbers))["pixels"], pool)}


class TermSource:
    """Words and word pairs of texts."""

    is_foreign = False
    name, title, is_cheap = "terms", "terms", False  # words help beside every encoder: it does not know rare terms

    def __init__(self, terms: Terms) -> None:
        self.terms = terms

    def features(self, pool: Items, tick: Tick, report: Report) -> Mapping[str, Rows]:
        def rows(numbers: np.ndarray) -> np.ndarray:
            return np.asarray(self.terms.matrix(pool.texts(numbers)).toarray(), np.float32)

        return {"terms": _Computed(rows, pool)}

    def components(self, rows: Rows, output: str, dims: int, share: Share) -> Components:
        """Fitted by the first process: every process has all texts."""
        pool = share.pool
        return share.ranks.agreed(lambda: self.terms.components(pool.texts(np.arange(len(pool))), dims))


def sources_of(
    modality: str, encoders: Sequence[PretrainedEncoder], terms: Any, cache: FeatureCache, device: torch.device
) -> list[Source]:
    """All sources of features of a modality.

    Args:
        modality: image or text.
        encoders: Pretrained encoders, in the order of their parts.
        terms: `Terms` of the training reports as plain types; None: there are none, or images are meant.
        cache: Keeps features.
        device: On which the encoders run.
    """
    families = [one.facts.family for one in encoders]
    found: list[Source] = [EncoderSource(one, cache, device, families.count(one.facts.family) == 1) for one in encoders]
    if modality == "image":
        return [*found, PixelSource(), *(HistogramSource(one, cache) for one in ("gradients", "levels"))]
    return [*found, TermSource(Terms.from_json(terms))] if terms else found


class _Computed:
    """Features that are computed where they are read."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], pool: Items) -> None:
        """`function` returns the features (M, F) of the samples of the pool with the numbers (M,)."""
        self.function, self.pool = function, pool
        self.dims = int(function(np.arange(1)).shape[1])

    def __len__(self) -> int:
        return len(self.pool)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        return self.function(numbers)


@torch.inference_mode()
def _computed(function: Callable[[torch.Tensor], Mapping[str, torch.Tensor]], content: torch.Tensor) -> Any:
    return {name: one.float().cpu().numpy() for name, one in function(content).items()}
