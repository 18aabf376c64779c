"""Known words: the rule of ten patients by brute force, tokenizers of every kind, models without a list of words."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from cyclic_cli.errors import CyclicError
from cyclic_cli.inference.onnx_model import OnnxModel
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.text_encoders import _known_words
from cyclic_cli.text_encoders._known_words import listed, of_many_patients, unknown, unknown_to, words_of
from cyclic_cli.text_encoders._vocabulary import PATIENTS, Vocabulary

STORED = Path(__file__).parents[1] / "stored"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("No EFFUSION, no Crohn's disease; Crohn’s.", ["no", "effusion", "crohn", "disease"]),
        ("T2 5mm x-ray 42 ½ … ?! ❤️\n", ["t", "mm", "x", "ray"]),
        ("E\u0301panchement Großer ﬁbrosis", ["épanchement", "großer", "fibrosis"]),
        ("胸腔 किताब", ["胸", "腔", "किताब"]),
        ("", []),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_words_of_ten_patients_are_known() -> None:
    generator = random.Random(0)
    names = "effusion nodule heart zygoma smith normal left".split()
    texts = [" ".join(generator.choices(names, [1, 2, 4, 8, 16, 32, 64], k=2)) for _ in range(120)]
    patients = [f"p{generator.randrange(40)}" for _ in range(120)]
    users = {name: {who for text, who in zip(texts, patients, strict=True) if name in text} for name in names}
    wanted = sorted(name for name in names if len(users[name]) >= PATIENTS)
    assert 0 < len(wanted) < len(names)
    assert of_many_patients(texts, patients) == wanted
    order = generator.sample(range(120), 120)
    assert of_many_patients([texts[n] for n in order], [patients[n] for n in order]) == wanted


def test_the_list_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["common usual", *["common usual rare"] * 10, "common"]
    monkeypatch.setattr(_known_words, "MOST", 2)
    assert of_many_patients(texts, [f"p{n}" for n in range(12)]) == ["common", "usual"]


def wordpiece() -> Tokenizer:
    tokens = ["[UNK]", "effusion", "left", "e", "##f", "##usion", "x", "##y", "##z"]
    tokenizer = Tokenizer(models.WordPiece({token: n for n, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def cased_wordpiece() -> Tokenizer:
    tokens = ["[UNK]", "Effusion", "LEFT", "x"]
    tokenizer = Tokenizer(models.WordPiece({token: n for n, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def byte_level(add_prefix_space: bool) -> Tokenizer:
    """Byte-pair encoding as in GPT-2 and RoBERTa; "usion" is a token that begins no word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    trainer = trainers.BpeTrainer(
        vocab_size=1000, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([" effusion left"] * 3 + [" fusion"] * 2, trainer)
    return tokenizer


def clip() -> Tokenizer:
    """Byte-pair encoding whose tokens mark the end of a word."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=1000, min_frequency=2, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(["effusion left x y z"] * 3, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    """As in SentencePiece; "usion" is a token that begins no word."""
    pieces = [("<unk>", 0.0), ("▁effusion", -1.0), ("▁left", -1.0), ("usion", -2.0), ("▁", -3.0)]
    pieces += [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxy"]  # z is unknown
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def llama() -> Tokenizer:
    """Byte-pair encoding whose normaliser puts a mark before the text, besides those in place of spaces."""
    tokenizer = byte_level(False)
    rules = json.loads(tokenizer.to_str())
    rules = json.loads(json.dumps(rules).replace("\\u0120", "\\u2581"))
    rules["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(rules))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


TOKENIZERS = {
    "wordpiece": wordpiece(), "cased": cased_wordpiece(), "byte level": byte_level(False),
    "byte level with a space": byte_level(True), "clip": clip(), "unigram": unigram(), "llama": llama(),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_whole_tokens_of_a_tokenizer_are_known(kind: str) -> None:
    tokenizer = TOKENIZERS[kind].to_str()
    assert unknown("Effusion LEFT xyzzy usion 42", [], [tokenizer]) == ["xyzzy", "usion"]
    assert unknown("effusion xyzzy", ["xyzzy"], [tokenizer]) == []
    assert unknown("effusion xyzzy", ["xyzzy"]) == ["effusion"]
    assert unknown("effusion left", [], [TOKENIZERS["clip"].to_str(), tokenizer]) == []


def test_a_damaged_tokenizer_is_refused() -> None:
    with pytest.raises(CyclicError, match="damaged"):
        unknown("effusion", [], ["{}"])


def test_longer_forms_of_known_words_are_known() -> None:
    texts, patients = ["Small effusion.", "No effusion in lung."] * 30, [f"p{n}" for n in range(60)]
    vocabulary, words = Vocabulary.train(texts, patients, 2048), of_many_patients(texts, patients)
    assert unknown_to(vocabulary, "Effusions of both lungs", words) == ["of", "both"]
    assert unknown_to(vocabulary, "Lungenentzündung, innere Organe", words) == ["lungenentzündung", "innere", "organe"]


def test_models_of_earlier_versions_know_what_is_more_than_bytes() -> None:
    for model in (TorchModel(STORED / "image-text.safetensors", "cpu"), OnnxModel(STORED / "onnx")):
        assert model.unknown_words("Large left pleural effusion, fluid; heart and device: 12.") == []
        assert model.unknown_words("xyzzy effusion 漢") == ["xyzzy", "漢"]


def test_without_common_words_nothing_is_refused() -> None:
    texts, patients = ["Small effusion."] * 9, [f"p{n}" for n in range(9)]
    vocabulary, words = Vocabulary.train(texts, patients, 2048), of_many_patients(texts, patients)
    assert words == []
    assert unknown_to(vocabulary, "xyzzy", words) == []


def test_a_pretrained_vocabulary_knows_its_tokens(tmp_path: Path) -> None:
    wordpiece().save(str(tmp_path / "tokenizer.json"))
    vocabulary = Vocabulary.pretrained(tmp_path)
    assert unknown_to(vocabulary, "Effusion of xyzzy", []) == ["of", "xyzzy"]
    assert unknown_to(vocabulary, "Effusion of xyzzy", ["of"]) == ["xyzzy"]


def test_long_lists_are_cut() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(n) for n in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
