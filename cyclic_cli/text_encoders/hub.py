"""Pretrained encoder: a model of the `transformers` library from a local folder, with a small decoder trained here.

Nothing is downloaded, no code of the folder is run, and weights are read from safetensors files only. The folder is
needed only when a training starts. The checkpoint then stores the tokenizer and configuration (as facts) and the
weights. The code is the mean of the model's last vectors over the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.text_encoders._decoding import Decoder, GeneratingEncoder, trimmed
from cyclic_cli.text_encoders._transformers import library, without_foreign_code
from cyclic_cli.text_encoders._vocabulary import END, SPECIAL, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Config:
    folder: str = ""  # folder of the model, as `save_pretrained` writes it; needed only when a training starts
    frozen: bool = True  # whether the pretrained weights stay fixed
    width: int = 128  # dimensions of the vector of a token in the decoder
    layers: int = 2  # layers of the decoder
    heads: int = 4  # attention heads of the decoder
    prefix: int = 4  # prefix vectors that give the code to the decoder


GENERATES = True
FITTED = False
LOCAL = ("folder",)
NOT_STORED = ("_name_or_path", "auto_map", "transformers_version", "dtype", "torch_dtype")  # of the configuration


def fit(config: Config) -> tuple[Vocabulary, dict[str, Any]]:
    """Return the vocabulary of the model, and its configuration as facts.

    Raises UsageError when no folder is given, and CyclicError when the folder does not contain a tokenizer and a model.
    """
    known, folder = library(), _folder(config.folder)
    vocabulary = Vocabulary.pretrained(folder)
    try:
        settings = known.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CyclicError(
            f"{folder} does not contain a model that the transformers library can read.",
            "Save the model there with save_pretrained.",
        ) from error
    before, behind = ([token - SPECIAL for token in part] for part in vocabulary.frame)
    plain = {name: value for name, value in settings.to_dict().items() if name not in NOT_STORED}
    return vocabulary, {"model": plain, "before": before, "behind": behind}


class Encoder(GeneratingEncoder):
    """Encodes texts with a pretrained model, and decodes codes with a small transformer."""

    def __init__(self, config: Config, facts: Mapping[str, Any], vocabulary: int) -> None:
        """Make the model with random weights; `initialise` or a checkpoint sets them.

        Raises:
            CyclicError: The library is not installed, or the model does not encode texts or does not fit its tokenizer.
            UsageError: The model reads fewer tokens than texts may have.
        """
        super().__init__()
        self.folder, further = config.folder, facts["further"]
        self.encoder = _model(further["model"])
        self.encoder.requires_grad_(not config.frozen)
        self.before, self.behind = list(further["before"]), list(further["behind"])
        longest = getattr(self.encoder.config, "max_position_embeddings", None)
        needed = int(facts["limit"]) + len(self.before)
        if longest is not None and needed > longest:
            raise UsageError(
                f"The pretrained model reads {longest} tokens, not {needed}.",
                f"Set modalities.text.length to {longest - len(self.before)} or less.",
            )
        if vocabulary - SPECIAL > len(self.table):
            raise CyclicError(
                "The pretrained model has fewer tokens than its tokenizer.", "Copy both from the same source."
            )
        self.code = self.table.shape[1]
        self.decoder = Decoder(self.code, config.width, config.layers, config.heads, config.prefix, facts, vocabulary)

    @property
    def table(self) -> Tensor:
        """The pretrained embeddings (tokens, code)."""
        weight: Tensor = self.encoder.get_input_embeddings().weight
        return weight

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode of the decoder. The pretrained model stays in evaluation mode.

        Its dropout would draw random numbers that depend on the batch instead of on the text.
        """
        super().train(mode)
        self.encoder.eval()
        return self

    def initialise(self, tokens: Iterable[Tensor]) -> None:
        """Read the pretrained weights from the folder. Raises CyclicError when they are missing or incomplete."""
        folder = _folder(self.folder)
        if not any(folder.glob("model*.safetensors")):
            raise CyclicError(
                f"{folder} contains no weights in safetensors format. Pickled weights are not read.",
                "Save the model again with save_pretrained of a recent transformers library.",
            )
        try:
            loaded, report = library().AutoModel.from_pretrained(
                folder, config=self.encoder.config, local_files_only=True, trust_remote_code=False,
                use_safetensors=True, dtype=torch.float32, output_loading_info=True,
            )  # fmt: skip
            weights = _without_pooler(loaded).state_dict()
            if weights.keys() & set(report["missing_keys"]):
                raise ValueError("weights are missing")
            self.encoder.load_state_dict(weights)
        except Exception as error:  # three libraries are involved, each with its own exceptions
            raise CyclicError(f"The weights in {folder} are incomplete or damaged.", "Copy the model again.") from error

    def encode(self, tokens: Tensor) -> Tensor:
        """Return codes (N, code) of tokens (N, L), of which negative ones are ignored.

        Also accepts one-hot rows (N, L, V) as `soft_decode` returns them.
        """
        mask, vectors = self._embedded(tokens)
        if not len(tokens):  # the library cannot reshape an empty batch
            return vectors.sum(1)
        before = self.table[self.before].to(vectors.dtype).expand(len(vectors), -1, -1)
        vectors = torch.cat([before, vectors], 1)
        mask = torch.cat([mask.new_ones(before.shape[:2]), mask], 1)
        mask = mask | (torch.arange(mask.shape[1], device=mask.device) == 0)  # an empty text has one position to read
        last = self.encoder(inputs_embeds=vectors, attention_mask=mask.long()).last_hidden_state
        return (last * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    def _embedded(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return which tokens are to be read, (N, L) bool, and the vectors (N, L, code) of the tokens.

        END becomes the special token that the model expects after a text. A model without one does not read END.
        """
        if tokens.dim() == 2:
            tokens = trimmed(tokens)
            mask, ends = tokens > 0, tokens == END
            vectors = functional.embedding((tokens - SPECIAL).clamp(min=0), self.table)
            soft_ends = ends.to(vectors.dtype)
        else:
            mask, ends, soft_ends = tokens.detach().sum(2) > 0.5, tokens.detach()[:, :, END] > 0.5, tokens[:, :, END]
            vectors = tokens[:, :, SPECIAL:] @ self.table[: tokens.shape[2] - SPECIAL]
        if not self.behind:
            return mask & ~ends, vectors
        vectors = torch.where(ends[:, :, None], 0.0, vectors) + soft_ends[:, :, None] * self.table[self.behind[0]]
        return mask, vectors


def _folder(name: str) -> Path:
    if not name:
        raise UsageError(
            "The text encoder `hub` needs a pretrained model.", "Give --set modalities.text.model.folder=FOLDER."
        )
    folder = Path(name)
    if not folder.is_dir():
        raise CyclicError(
            f"There is no folder {name!r} with a pretrained model.", "Give the folder that save_pretrained wrote."
        )
    return folder


def _model(configuration: dict[str, Any]) -> Any:
    """Return a model with random weights. Raises CyclicError when the configuration is not that of an encoder."""
    try:
        settings = library().AutoConfig.for_model(**without_foreign_code(configuration))
        if settings.is_encoder_decoder:
            raise CyclicError(
                "The pretrained model is an encoder-decoder.", "Give a model with an encoder only, such as BERT."
            )
        return _without_pooler(library().AutoModel.from_config(settings, trust_remote_code=False)).eval()
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CyclicError("The configuration of the pretrained model is damaged.", "Copy it again.") from error


def _without_pooler(model: Any) -> Any:
    """Return a model without its pooling layer, whose output is not used here."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model
