"""Texts become windows of tokens."""

import json

import numpy as np
import pytest
import torch
from helpers.tiny_encoders import WORDS, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cyclic_cli.errors import CyclicError
from cyclic_cli.pretrained.tokens import Tokens, lower_cased, with_frame
from cyclic_cli.pretrained.windows import over_windows

TEXTS = ["no acute findings", "", "The HEART is enlarged", "zebra"]
FRAME = 2  # special tokens around a text


def tokens(window: int = 16) -> Tokens:
    return Tokens(tiny_tokenizer().to_str(), window)


def unigram() -> Tokenizer:
    """A tokenizer as SigLIP's: pieces with the space before them, one special token behind the text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def byte_pairs() -> Tokenizer:
    """A tokenizer as RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


@pytest.mark.parametrize("make", [tiny_tokenizer, unigram, byte_pairs])
def test_tokens_are_those_of_the_tokenizer(make: type) -> None:
    tokenizer = make()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    found = Tokens(tokenizer.to_str(), 32).encode(TEXTS)
    assert found.dtype == np.int64
    for row, text in zip(found, TEXTS, strict=True):
        numbers = fast(text)["input_ids"]
        assert row.shape[0] == 1
        assert row[0][row[0] > 0].tolist() == [number + 1 for number in numbers]


@pytest.mark.parametrize("make", [tiny_tokenizer, unigram, byte_pairs])
def test_a_long_text_is_cut_into_framed_windows(make: type) -> None:
    tokenizer = make()
    text = " ".join(WORDS * 3)
    cut = Tokens(tokenizer.to_str(), 16)
    windows = cut.encode([text, "heart"])
    content = tokenizer.encode(text, add_special_tokens=False).ids
    frame = tokenizer.num_special_tokens_to_add(is_pair=False)
    joined = []
    for window in windows[0]:
        filled = (window[window > 0] - 1).tolist()
        assert len(filled) <= 16
        assert (filled[: len(cut.before)], filled[len(filled) - len(cut.behind) :]) == (cut.before, cut.behind)
        joined += filled[len(cut.before) : len(filled) - len(cut.behind)]
    assert joined == content
    assert cut.windows([text, "heart", ""]) == [-(-len(content) // (16 - frame)), 1, 1]
    assert (windows[1, 1:] == 0).all()


def test_a_text_that_just_fits_has_one_window() -> None:
    fits = tokens(len(WORDS) + FRAME)
    assert fits.windows([" ".join(WORDS), " ".join([*WORDS, "no"])]) == [1, 2]
    assert fits.encode([" ".join(WORDS)]).shape == (1, 1, len(WORDS) + FRAME)


def test_an_empty_text_has_one_window_with_a_token() -> None:
    assert tokens().encode(["", "  "]).tolist() == [[[3, tiny_tokenizer().token_to_id("[SEP]") + 1]]] * 2
    bare = json.loads(tiny_tokenizer().to_str()) | {"post_processor": None}
    assert (Tokens(json.dumps(bare), 4).encode([""]) > 0).all()
    assert tokens().encode([]).shape[0] == 0


def test_stated_padding_and_truncation_do_not_count() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.enable_padding(length=12)
    tokenizer.enable_truncation(5)
    text = " ".join(WORDS)
    assert np.array_equal(Tokens(tokenizer.to_str(), 64).encode([text]), tokens(64).encode([text]))


def test_a_window_must_have_room() -> None:
    with pytest.raises(CyclicError, match="no room"):
        tokens(FRAME)
    with pytest.raises(CyclicError, match="not a valid"):
        Tokens("{}", 16)


def test_a_frame_is_added_where_there_is_none() -> None:
    whole = tiny_tokenizer().to_str()
    bare = json.dumps(json.loads(whole) | {"post_processor": None})
    framed = with_frame(bare, "[CLS]", "[SEP]", "It")
    assert np.array_equal(Tokens(framed, 16).encode(TEXTS), Tokens(whole, 16).encode(TEXTS))
    assert with_frame(whole, "[CLS]", "[SEP]", "It") == whole
    assert Tokens(with_frame(bare, "", "[SEP]", "It"), 16).before == []
    with pytest.raises(CyclicError, match="special tokens"):
        with_frame(bare, "[BOS]", "[SEP]", "It")


def test_lower_case_is_added() -> None:
    assert byte_pairs().encode("No Acute").ids != byte_pairs().encode("no acute").ids
    lower = Tokens(lower_cased(byte_pairs().to_str(), "It"), 16)
    assert np.array_equal(lower.encode(["No Acute"]), lower.encode(["no acute"]))


def test_windows_count_by_their_tokens() -> None:
    read = over_windows(
        torch.tensor([[[5, 6, 7], [8, 0, 0]], [[9, 0, 0], [0, 0, 0]]]), lambda rows: rows[:, :1].float()
    )
    assert read.tolist() == [[(3 * 5 + 1 * 8) / 4], [9.0]]
