"""Fixed codes of batches of images and texts for a trained model, with features from the cache where they are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cyclic_cli.codes.cache import no_tick
from cyclic_cli.codes.coded import CodedEncoder
from cyclic_cli.codes.open_cache import OpenCache
from cyclic_cli.codes.sources import sources_of
from cyclic_cli.data.mixture import Pool
from cyclic_cli.events import Report


class CodeReader:
    """Gives the codes of images and texts. An encoder runs only for what the cache lacks, and the cache gets the rest.

    Features have the keys that training gives them, so that what training encoded is not encoded again.
    """

    def __init__(
        self,
        encoders: Mapping[str, CodedEncoder],
        terms: Mapping[str, Any],
        cache: OpenCache,
        device: torch.device,
        report: Report,
    ) -> None:
        """
        Args:
            encoders: By modality, image or text. Their pretrained encoders have the weights of their fingerprints:
                training did not move them.
            terms: By modality, `Terms` as plain types, where the code uses them.
            cache: Open while codes are read.
            device: Of the encoders.
            report: Gets Note events.
        """
        self._encoders, self._device, self._report = dict(encoders), device, report
        self._sources = {}
        for name, encoder in encoders.items():
            needed = {part.facts.source for part in encoder.parts}
            every = sources_of(name, list(encoder.pretrained.values()), terms.get(name), cache, device)
            self._sources[name] = [source for source in every if source.name in needed]

    def __contains__(self, name: object) -> bool:
        """Whether the codes of a modality can be read."""
        return name in self._encoders

    def size(self, name: str) -> int:
        """The length of the codes of a modality."""
        return int(self._encoders[name].code)

    @torch.inference_mode()
    def codes(
        self,
        name: str,
        digests: Sequence[bytes],
        load: Callable[[np.ndarray], Tensor],
        texts: Sequence[str] | np.ndarray = (),
    ) -> Tensor:
        """The codes (N, code) of some images or texts, on the device.

        Args:
            name: The modality.
            digests: Of the N contents, see `contents`.
            load: Returns images (M, C, H, W) float32 in [0, 1] by their numbers (M,). It is asked only for those that
                the features need.
            texts: N texts, of the modality of texts.

        Raises:
            CyclicError: an encoder gives numbers that are not finite.
        """
        pool = Pool([_Batch(digests, load, texts)], np.empty(len(digests), object))
        features = {source.name: source.features(pool, no_tick, self._report) for source in self._sources[name]}
        every = np.arange(len(digests))
        parts = []
        for part in self._encoders[name].parts:
            rows = features[part.facts.source][part.facts.output].rows(every)
            parts.append(part(torch.from_numpy(rows).to(self._device)))
        return torch.cat(parts, 1)


class _Batch:
    """Some images or texts as the `Samples` of a pool."""

    def __init__(
        self, digests: Sequence[bytes], load: Callable[[np.ndarray], Tensor], texts: Sequence[str] | np.ndarray
    ) -> None:
        self._digests, self.load = list(digests), load
        self.texts = np.array(texts, object)
        self.keys = np.zeros(len(digests), np.uint64)  # nobody shuffles a batch

    def __len__(self) -> int:
        return len(self._digests)

    def digests(self) -> list[bytes]:
        return self._digests
