"""Hub: a pretrained model of the `transformers` library, from a local folder, reads; a small decoder writes.

Nothing is ever downloaded, no code of the folder runs, and weights are read from safetensors alone. The folder is
needed once, when training starts: its tokenizer and configuration travel in the facts, its weights in the checkpoint.
The code is the mean of the model's last vectors over the tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.text_encoders._decoding import Decoder, Writing, trimmed
from cyclic_cli.text_encoders._vocabulary import END, SPECIAL, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Config:
    folder: str = ""  # of the model, as `save_pretrained` writes it; needed to start training alone
    frozen: bool = True  # the pretrained model stays as it is
    width: int = 128  # of the decoder
    layers: int = 2
    heads: int = 4
    prefix: int = 4  # vectors of the code in front of a sentence


GENERATES = True
FITTED = False
LOCAL = ("folder",)  # settings that no checkpoint holds
NOT_STORED = ("_name_or_path", "auto_map", "transformers_version", "dtype", "torch_dtype")  # of a configuration


def fit(config: Config) -> tuple[Vocabulary, dict[str, Any]]:
    """The tokenizer and the configuration of the model. Raises CyclicError when the folder does not hold them."""
    library, folder = _library(), _folder(config.folder)
    vocabulary = Vocabulary.pretrained(folder)
    try:
        settings = library.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CyclicError(f"{folder} has no model that transformers knows.", "Save it again there.") from error
    before, behind = ([token - SPECIAL for token in part] for part in vocabulary.frame)
    plain = {name: value for name, value in settings.to_dict().items() if name not in NOT_STORED}
    return vocabulary, {"model": plain, "before": before, "behind": behind}


class Encoder(Writing):
    """The pretrained encoder, and the decoder."""

    def __init__(self, config: Config, facts: Mapping[str, Any], vocabulary: int) -> None:
        """Raises CyclicError without the library, or for a model that is no encoder of such texts."""
        super().__init__()
        self.folder, further = config.folder, facts["further"]
        self.encoder = _encoder(further["model"])
        self.encoder.requires_grad_(not config.frozen)
        self.before, self.behind = list(further["before"]), list(further["behind"])
        longest = getattr(self.encoder.config, "max_position_embeddings", None)
        needed = int(facts["limit"]) + len(self.before)
        if longest is not None and needed > longest:
            raise UsageError(f"The pretrained model reads {longest} tokens, not {needed}.", "Set a lower length.")
        if vocabulary - SPECIAL > len(self.table):
            raise CyclicError("The pretrained model has fewer tokens than its tokenizer.", "Copy both from one source.")
        self.code = self.table.shape[1]
        self.decoder = Decoder(self.code, config.width, config.layers, config.heads, config.prefix, facts, vocabulary)

    @property
    def table(self) -> Tensor:
        """The pretrained embeddings (tokens, code)."""
        weight: Tensor = self.encoder.get_input_embeddings().weight
        return weight

    def train(self, mode: bool = True) -> Encoder:
        """The pretrained part never drops units: that would draw random numbers that no text owns."""
        super().train(mode)
        self.encoder.eval()
        return self

    def initialise(self, tokens: Iterable[Tensor]) -> None:
        """Take the pretrained weights from the folder. Raises CyclicError when it does not hold all of them."""
        library, folder = _library(), _folder(self.folder)
        if not any(folder.glob("model*.safetensors")):
            raise CyclicError(
                f"{folder} has no weights as safetensors; pickled ones are not read.",
                "Save it again with save_pretrained of transformers.",
            )
        try:
            loaded, report = library.AutoModel.from_pretrained(
                folder, config=self.encoder.config, local_files_only=True, trust_remote_code=False,
                use_safetensors=True, dtype=torch.float32, output_loading_info=True,
            )  # fmt: skip
            weights = _without_pooler(loaded).state_dict()
            if weights.keys() & set(report["missing_keys"]):
                raise ValueError("weights are missing")
            self.encoder.load_state_dict(weights)
        except Exception as error:  # of three libraries
            raise CyclicError(f"The weights in {folder} are not whole.", "Copy the model again.") from error

    def encode(self, tokens: Tensor) -> Tensor:
        """Codes (N, code) of tokens (N, L), those below 0 unread, or of rows (N, L, V) that `drawn` gave."""
        there, vectors = self._embedded(tokens)
        if not len(tokens):  # which the library cannot reshape
            return vectors.sum(1)
        before = self.table[self.before].to(vectors.dtype).expand(len(vectors), -1, -1)
        vectors = torch.cat([before, vectors], 1)
        there = torch.cat([there.new_ones(before.shape[:2]), there], 1)
        there = there | (torch.arange(there.shape[1], device=there.device) == 0)  # something to read in every text
        last = self.encoder(inputs_embeds=vectors, attention_mask=there.long()).last_hidden_state
        return (last * there[:, :, None]).sum(1) / there.sum(1, keepdim=True)

    def _embedded(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What is to be read (N, L) of tokens, and their vectors (N, L, code); END is what the model has for it."""
        if tokens.dim() == 2:
            tokens = trimmed(tokens)
            there, ends = tokens > 0, tokens == END
            vectors = functional.embedding((tokens - SPECIAL).clamp(min=0), self.table)
            ends_softly = ends.to(vectors.dtype)
        else:
            there, ends, ends_softly = tokens.detach().sum(2) > 0.5, tokens.detach()[:, :, END] > 0.5, tokens[:, :, END]
            vectors = tokens[:, :, SPECIAL:] @ self.table[: tokens.shape[2] - SPECIAL]
        if not self.behind:
            return there & ~ends, vectors
        vectors = torch.where(ends[:, :, None], 0.0, vectors) + ends_softly[:, :, None] * self.table[self.behind[0]]
        return there, vectors


def _folder(name: str) -> Path:
    if not name:
        raise UsageError(
            "The text encoder hub needs a pretrained model.", "Give --set modalities.text.model.folder=FOLDER."
        )
    folder = Path(name)
    if not folder.is_dir():
        raise CyclicError(
            f"There is no folder {name!r} of a pretrained model.", "Name the one that save_pretrained wrote."
        )
    return folder


def _library() -> Any:
    """The library, told to keep off the network and to be silent. Raises CyclicError when it is not installed."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # before its first import
    try:
        import transformers
    except ImportError:
        raise CyclicError(
            "The text encoder hub needs the transformers library.", "pip install 'cyclic-cli[hub]'."
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _encoder(configuration: dict[str, Any]) -> Any:
    """A model of a configuration, with random weights. Raises CyclicError when it is none, or reads and writes."""
    library = _library()
    try:
        settings = library.AutoConfig.for_model(**configuration)
        if settings.is_encoder_decoder:
            raise CyclicError("The pretrained model is no encoder.", "Give one that is, such as a BERT.")
        return _without_pooler(library.AutoModel.from_config(settings, trust_remote_code=False)).eval()
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CyclicError("The configuration of the pretrained model is damaged.", "Copy it again.") from error


def _without_pooler(model: Any) -> Any:
    """A model without the layer behind the last, which nothing here reads."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model
