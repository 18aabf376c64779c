"""The vocabulary: the rule of ten patients checked by brute force, Unicode, and tampered checkpoints."""

import json
import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.text_encoders._vocabulary import END, PADDING, PATIENTS, SPECIAL, Vocabulary, padded

WORDS = "normal chest film effusion pleural left right small heart lungs clear nodule pneumothorax zygoma".split()


def reports(count: int = 60, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts of six words, and their patients. Most patients have several texts."""
    generator = random.Random(seed)
    texts = [" ".join(generator.choices(WORDS, range(len(WORDS), 0, -1), k=6)).capitalize() + "." for _ in range(count)]
    return texts, [f"p{generator.randrange(count // 2)}" for _ in range(count)]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(*reports(), size=400)


@pytest.mark.parametrize("patients", [PATIENTS - 1, PATIENTS])
def test_a_token_is_kept_when_ten_patients_use_it(patients: int) -> None:
    texts, owners = reports()
    for number in range(50):  # reports of the same patients count once
        texts.append("Sphenoidal.")
        owners.append(f"other {number % patients}")
    vocabulary = Vocabulary.train(texts, owners, 1000)
    assert (len(vocabulary.encode(["sphenoidal"], 99)[0]) == 2) == (patients == PATIENTS)


def test_every_token_occurs_in_reports_of_ten_patients() -> None:
    texts, patients = reports(200, seed=1)
    vocabulary = Vocabulary.train(texts, patients, 1000)
    tokens = [vocabulary.decode([token]) for token in range(SPECIAL + 256, vocabulary.size)]
    assert len(tokens) > 50
    for token in tokens:
        users = {owner for text, owner in zip(texts, patients, strict=True) if token in text.lower()}
        assert len(users) >= PATIENTS


def test_order_names_and_threads_do_not_matter(vocabulary: Vocabulary) -> None:
    texts, patients = reports()
    order = random.Random(3).sample(range(len(texts)), len(texts))
    other = Vocabulary.train([texts[n] for n in order], [f"{patients[n]} renamed" for n in order], 400)
    assert other.to_json() == vocabulary.to_json()
    code = (
        "from cyclic_cli.text_encoders._vocabulary import Vocabulary\n"
        f"print(Vocabulary.train(*{reports()!r}, 400).to_json())"
    )
    threads = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "4", "PYTHONHASHSEED": "7"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **threads})
    assert ran.stdout.strip() == vocabulary.to_json()


@pytest.mark.parametrize("size", [SPECIAL + 256, 280, 300])
def test_the_vocabulary_has_the_requested_size(size: int) -> None:
    assert Vocabulary.train(*reports(), size).size == size


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(UsageError, match="too small"):
        Vocabulary.train(*reports(), size=SPECIAL + 255)


def any_text(seed: int) -> str:
    generator = random.Random(seed)
    ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000)]
    characters = [chr(generator.randrange(*generator.choice(ranges))) for _ in range(100)]
    # Only characters of the old Unicode 3.2, because Python and the library may know different newer versions.
    return "".join(one for one in characters if unicodedata.ucd_3_2_0.category(one) != "Cn")


@pytest.mark.parametrize(
    "text", ["", " ", "a", "  Two  spaces\n\n", "<end> [PAD] ___", "İΣς ﬁ Ⅻ 漢字 🙂\0\u200d", *map(any_text, range(20))]
)
def test_any_text_is_restored_in_normalised_form(vocabulary: Vocabulary, text: str) -> None:
    expected = "".join(one.lower() for one in unicodedata.normalize("NFKC", text))
    tokens = vocabulary.encode([text], 10_000)[0]
    assert tokens[-1] == END
    assert (tokens[:-1] >= SPECIAL).all()
    assert vocabulary.decode(tokens) == expected
    assert Vocabulary.from_json(vocabulary.to_json()).encode([text], 10_000)[0].tolist() == tokens.tolist()


def test_texts_are_truncated_and_padded(vocabulary: Vocabulary) -> None:
    whole, short = vocabulary.encode(["Normal chest film, heart normal.", ""], 99)
    assert short.tolist() == [END]
    cut = vocabulary.encode(["Normal chest film, heart normal."], 3)
    assert cut[0].tolist() == whole[:3].tolist()
    together = padded([*cut, short], 4)
    assert together.dtype == np.int64
    assert together.tolist() == [[*whole[:3].tolist(), PADDING], [END, PADDING, PADDING, PADDING]]


MERGES = [["a", "b"], ["ab", "c"]]
FOREIGN = [
    None, 3, "", "{", "[]", "{}", '"merges"', {"merges": None}, {"merges": MERGES, "more": 1}, {"merges": ["ab"]},
    {"merges": [["a"]]}, {"merges": [["a", 1]]}, {"merges": [["a", ["b"]]]}, {"merges": MERGES[::-1]},
    {"merges": [*MERGES, ["a", "b"]]}, {"merges": [["a", " "]]}, {"merges": [["", "a"]]}, {"pretrained": "{}"},
    {"pretrained": {}}, {"pretrained": "x"}, "[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda value: str(value)[:40])
def test_a_tampered_vocabulary_is_refused(foreign: object) -> None:
    assert Vocabulary.from_json(json.dumps({"merges": MERGES})).size == SPECIAL + 258
    text = json.dumps(foreign) if isinstance(foreign, dict) else foreign
    with pytest.raises(CyclicError, match="of the checkpoint"):
        Vocabulary.from_json(text)  # type: ignore[arg-type]


def test_tokens_of_a_pretrained_tokenizer_follow_the_special_tokens(tmp_path: Path) -> None:
    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "heart": 3, "clear": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = Vocabulary.pretrained(tmp_path)
    for one in (vocabulary, Vocabulary.from_json(vocabulary.to_json())):
        assert one.size == len(words) + SPECIAL
        assert one.encode(["heart clear clear heart"], 9)[0].tolist() == [6, 7, 7, 6, END]
        assert one.decode([6, 7, END, PADDING]) == "heart clear"
        assert one.frame == ([4], [5])
    with pytest.raises(CyclicError, match=r"no tokenizer\.json"):
        Vocabulary.pretrained(tmp_path / "elsewhere")
