"""Batching of `cyclic embed`: encoder inputs of several chunks go through the model together."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclic_cli.inference.embed_inputs import Chunk
from cyclic_cli.inference.typed_texts import is_unread

if TYPE_CHECKING:
    from cyclic_cli.inference.load import Model


class BatchEncoder:
    """Embeds chunks in batches."""

    def __init__(self, model: "Model", size: int | None) -> None:
        """`size` is the number of images or texts per batch.

        None takes the model's own batch size, which is halved each time it does not fit into the memory of the device.
        """
        self.model, self.size, self._may_shrink = model, size or model.batch, size is None

    def encode(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, np.ndarray]]:
        """Each chunk with its embeddings (N, D) float32, in order. Sets the `unread_texts` of the chunk.

        A chunk of no inputs closes the current batch.
        """
        held: list[Chunk] = []
        for chunk in chunks:
            held.append(chunk)
            if not chunk.input_count or sum(len(one.encoder_inputs) for one in held) >= self.size:
                yield from self._encode_together(held)
                held = []
        yield from self._encode_together(held)

    def _encode_together(self, chunks: list[Chunk]) -> Iterator[tuple[Chunk, np.ndarray]]:
        encoder_inputs = [encoder_input for chunk in chunks for encoder_input in chunk.encoder_inputs]
        embeddings: dict[int, np.ndarray] = {}
        for kind in ("image", "text"):
            places = [place for place, encoder_input in enumerate(encoder_inputs) if encoder_input.kind == kind]
            encoded = self._encode_modality(kind, [encoder_inputs[place].value for place in places])
            embeddings |= dict(zip(places, encoded, strict=True))
        first = 0
        for chunk in chunks:
            own = [embeddings[place] for place in range(first, first + len(chunk.encoder_inputs))]
            texts = [encoder_input.value for encoder_input in chunk.encoder_inputs if encoder_input.kind == "text"]
            chunk.unread_texts = sum(is_unread(self.model, text) for text in texts)
            yield chunk, np.stack(own) if own else np.empty((0, 0), np.float32)
            first += len(chunk.encoder_inputs)

    def _encode_modality(self, kind: str, values: list[Any]) -> list[np.ndarray]:
        """The embeddings (D,) of images or of texts, in batches that are halved when memory runs out."""
        embeddings: list[np.ndarray] = []
        while len(embeddings) < len(values):
            batch = values[len(embeddings) : len(embeddings) + self.size]
            try:
                encoded = self.model.embed_images(np.stack(batch)) if kind == "image" else self.model.embed_texts(batch)
            except RuntimeError as error:
                # by name, because torch may not be installed
                if type(error).__name__ != "OutOfMemoryError" or not self._may_shrink or self.size == 1:
                    raise
                self.size //= 2
            else:
                embeddings += list(encoded)
        return embeddings
