"""The modality of texts: its statistics computed by hand, its random numbers, and damaged facts."""

import json
from collections import Counter
from math import log
from typing import Any

import numpy as np
import pytest
import torch

from cyclic_cli import registry
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.modalities import text as modality
from cyclic_cli.modalities.text import Config, Encoder, Samples
from cyclic_cli.text_encoders._vocabulary import END, PATIENTS, Vocabulary

NO_DATASET: Any = None  # the texts are in the index
Index = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def index() -> Index:
    """Forty-five reports of fifteen patients. Some are equal, and one has a word that no other report has."""
    sides, sizes, signs = ("Left", "Right", "No"), ("small", "large", "minor"), ("effusion", "nodule")
    texts = [f"{sides[n % 3]} {sizes[n % 7 % 3]} {signs[n % 2]}. Heart normal." for n in range(44)]
    patients = [f"p{n % 15}" for n in range(45)]
    return {
        "text": np.array([*texts, "Zebra."], object), "patient": np.array(patients, object),
        "sample": np.array([f"{n:032x}" for n in range(45)], object), "has_text": np.ones(45, bool),
    }  # fmt: skip


def reordered(index: Index, order: Any) -> Index:
    return {name: column[order] for name, column in index.items()}


@pytest.fixture(scope="module")
def facts(index: Index) -> dict[str, Any]:
    return json.loads(json.dumps(modality.fit(NO_DATASET, index, Config())))  # as a checkpoint stores them


def samples_of(index: Index, facts: dict[str, Any], **settings: Any) -> Samples:
    return Samples(NO_DATASET, index, Config(**settings), facts)


def test_frequencies_by_hand(index: Index, facts: dict[str, Any]) -> None:
    vocabulary = Vocabulary.from_json(facts["tokenizer"])
    counts = [Counter(tokens.tolist()) for tokens in vocabulary.encode(index["text"].tolist(), 128)]
    users: dict[int, set[str]] = {}
    for count, patient in zip(counts, index["patient"], strict=True):
        for token in count:
            users.setdefault(token, set()).add(patient)
    shares = [sum(count[token] / count.total() for count in counts) / 45 for token in range(vocabulary.size)]
    rare = {token for token in range(vocabulary.size) if len(users.get(token, ())) < PATIENTS}
    together = sum(shares[token] for token in rare) / len(rare)
    shared = [together if token in rare else share for token, share in enumerate(shares)]
    smooth = [(45 * share + 1 / len(shares)) / 46 for share in shared]
    assert facts["frequencies"] == pytest.approx(smooth)
    assert sum(smooth) == pytest.approx(1)
    nats = [-sum(times * log(smooth[token]) for token, times in count.items()) / count.total() for count in counts]
    assert facts["nats"] == pytest.approx(sum(nats) / 45)
    assert facts["length"] == pytest.approx(sum(count.total() for count in counts) / 45)
    for token in set(range(vocabulary.size)) - rare:
        assert facts["documents"][token] == pytest.approx(sum(token in count for count in counts) / 45)


def test_words_of_ten_patients_are_stored(index: Index, facts: dict[str, Any]) -> None:
    texts = zip(index["text"].tolist(), index["patient"].tolist(), strict=True)
    users: dict[str, set[str]] = {}
    for text, patient in texts:
        for word in text.lower().replace(".", "").split():
            users.setdefault(word, set()).add(patient)
    assert facts["words"] == sorted(word for word, who in users.items() if len(who) >= PATIENTS)
    assert "heart" in facts["words"]
    assert "zebra" not in facts["words"]


def test_words_of_few_patients_do_not_change_the_facts(index: Index, facts: dict[str, Any]) -> None:
    other = {**index, "text": np.where(index["text"] == "Zebra.", "Jazzy.", index["text"])}
    assert len({facts["frequencies"][token] for token in map(ord, "zqZ\x07")}) == 1
    again = modality.fit(NO_DATASET, other, Config())
    assert again["tokenizer"] == facts["tokenizer"]
    assert again["documents"] == pytest.approx(facts["documents"])


def test_fit_does_not_depend_on_the_order(index: Index, facts: dict[str, Any]) -> None:
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(45)
        assert modality.fit(NO_DATASET, reordered(index, order), Config()) == facts


def test_samples_are_the_tokens_of_their_texts(index: Index, facts: dict[str, Any]) -> None:
    vocabulary = Vocabulary.from_json(facts["tokenizer"])
    loaded = samples_of(index, facts).load(np.array([7, 44, 7]))
    assert loaded.shape == (3, 128)
    assert loaded.dtype == torch.int64
    for row, number in zip(loaded.tolist(), [7, 44, 7], strict=True):
        text = index["text"][number]
        tokens = vocabulary.encode([text], 128)[0].tolist()
        assert row == tokens + [0] * (128 - len(tokens))
        assert vocabulary.decode(row) == text.lower()
    assert samples_of(index, facts, length=3).load(np.arange(45)).shape == (45, 3)
    assert samples_of(reordered(index, slice(0)), facts).load(np.arange(0)).shape == (0, 128)


def test_keys_depend_on_the_text_only(index: Index, facts: dict[str, Any]) -> None:
    order = np.random.default_rng(1).permutation(45)
    keys = samples_of(index, facts).keys
    assert keys.dtype == np.uint64
    assert (samples_of({**index, "text": index["text"][order]}, facts).keys == keys[order]).all()
    assert len(set(keys.tolist())) == len(set(index["text"].tolist()))


def test_dropout_depends_on_seed_epoch_and_text_only(index: Index, facts: dict[str, Any]) -> None:
    texts = samples_of(index, facts, dropout=0.3)
    whole, keys = texts.load(np.arange(45)), texts.keys
    augmented = texts.augmented(whole, keys, 5, 2)
    assert (augmented.abs() == whole).all()
    assert (augmented[whole == END] == END).all()
    words = whole > END
    assert float((augmented[words] < 0).double().mean()) == pytest.approx(0.3, abs=0.07)
    some = np.array([40, 3])
    assert torch.equal(texts.augmented(whole[some], keys[some], 5, 2), augmented[some])
    for seed, epoch in ((5, 3), (6, 2)):
        assert not torch.equal(texts.augmented(whole, keys, seed, epoch), augmented)
    assert torch.equal(samples_of(index, facts, dropout=0).augmented(whole, keys, 5, 2), whole)


@pytest.mark.parametrize("settings", [{"dropout": 1.0}, {"dropout": -0.1}, {"length": 0}], ids=str)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Config(**settings)


@pytest.mark.parametrize("arch", ["bag", "transformer"])
def test_initial_codes_have_mean_0_and_spread_1(arch: str, index: Index, facts: dict[str, Any]) -> None:
    torch.manual_seed(0)
    texts = samples_of(index, facts)
    model = Encoder(Config(arch=arch), facts)
    model.initialise(texts.load(some) for some in np.split(np.arange(45), 3))
    with torch.no_grad():
        codes = model.encode(texts.load(np.arange(45)))
        assert codes.shape == (45, model.code)
        assert codes.mean(0).abs().max() < 1e-4
        assert float(codes.square().mean()) == pytest.approx(1, abs=1e-3)
        assert model.encode(model.soft_decode(codes)).shape == codes.shape
        if model.generates:
            assert all(len(text) < 200 for text in model.write(codes[:2], beams=2, length=5))


DAMAGE: list[dict[str, Any]] = [
    {"tokenizer": "{}"}, {"frequencies": [0.1]}, {"frequencies": None}, {"documents": []}, {"nats": 0.0},
    {"nats": float("nan")}, {"limit": 2**40}, {"limit": "x"}, {"length": None}, {"further": []},
    {"words": "heart"}, {"words": [1]}, {"words": None},
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_damaged_facts_are_refused(damage: dict[str, Any], facts: dict[str, Any]) -> None:
    with pytest.raises(CyclicError, match="checkpoint"):
        Encoder(Config(), {**facts, **damage})


def test_stored_settings_contain_no_folder() -> None:
    config = Config(arch="hub", model={"folder": "/secret/place", "frozen": False})
    assert modality.portable(config) == Config(arch="hub", model={"frozen": False})
    for name in registry.names("text_encoders"):
        assert modality.portable(Config(arch=name)) == Config(arch=name)
