"""Tests of the terms: equal to scikit-learn's TF-IDF, and no vocabulary holds what few patients share."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from cyclic_cli.codes.terms import Terms, tfidf
from cyclic_cli.errors import CyclicError

WORDS = "the lungs are clear with small effusion left right lower lobe no change since heart size Größe 5cm".split()


def reports(count: int = 60, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [
        ", ".join(" ".join(generator.choice(WORDS, generator.integers(2, 6))) for _ in range(3)) for _ in range(count)
    ]


def patients_of(texts: list[str], each: int = 1) -> list[str]:
    return [f"patient {place // each}" for place in range(len(texts))]


def padded(encoded: list[np.ndarray]) -> torch.Tensor:
    tokens = np.zeros((len(encoded), max(map(len, encoded)) + 1), np.int64)
    for row, one in zip(tokens, encoded, strict=True):
        row[: len(one)] = one
    return torch.from_numpy(tokens)


def test_tfidf_equals_scikit_learn() -> None:
    texts, others = reports(), [*reports(20, seed=1), "", "unheard of", "LUNGS lungs lungs"]
    terms = Terms.fit(texts, patients_of(texts))
    theirs = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=list(terms.terms)).fit(texts)
    assert terms.idf == pytest.approx(theirs.idf_, rel=1e-12)
    wanted = theirs.transform(others).toarray()
    assert terms.matrix(others).toarray() == pytest.approx(wanted, abs=1e-12)
    ours = tfidf(padded(terms.encode(others)), torch.from_numpy(terms.idf).float()).numpy()
    assert ours == pytest.approx(wanted, abs=1e-6)
    assert not ours[-3:-1].any()


def test_a_term_is_kept_from_ten_patients_on() -> None:
    texts = reports(40)
    for place in range(10):
        texts[place] += " tenth patient"
    for place in (*range(9), *range(9)):
        texts[place] += " Zuckermann, Zuckermann"  # nine patients, however often
    terms = Terms.fit(texts, patients_of(texts))
    assert {"tenth", "patient", "tenth patient"} <= set(terms.terms)
    assert not any("zuckermann" in term for term in terms.terms)
    assert "zuckermann" not in terms.to_json().lower()
    assert terms.encode(["Zuckermann"])[0].size == 0
    # Ten texts of five patients are five patients.
    assert not any("tenth" in term for term in Terms.fit(texts, patients_of(texts, each=2)).terms)
    assert list(terms.terms) == sorted(terms.terms)


def test_pairs_of_a_word_that_few_patients_share_are_left_out() -> None:
    texts = ["mister smith", *["mister jones"] * 11, *["smith"] * 11]
    terms = Terms.fit(texts, patients_of(texts))
    assert set(terms.terms) == {"mister", "jones", "mister jones", "smith"}  # "mister smith" is of one patient


def test_the_order_of_texts_and_the_names_of_patients_do_not_matter() -> None:
    texts = reports()
    order = np.random.default_rng(2).permutation(60)
    one = Terms.fit(texts, patients_of(texts, each=2))
    other = Terms.fit([texts[place] for place in order], [str(999 - place // 2) for place in order])
    assert one.to_json() == other.to_json()


def test_there_are_no_terms_of_too_few_patients() -> None:
    texts = reports()
    assert Terms.fit(texts[:9], patients_of(texts[:9])) is None
    assert Terms.fit([], []) is None
    assert Terms.fit(["word"] * 30, ["one"] * 30) is None


def test_components_equal_scikit_learn() -> None:
    texts = reports(200)
    terms = Terms.fit(texts, patients_of(texts))
    components = terms.components(texts, 5)
    matrix = terms.matrix(texts)
    wanted = TruncatedSVD(5, algorithm="arpack").fit(matrix)
    assert np.abs(components.directions @ wanted.components_.T) == pytest.approx(np.eye(5), abs=0.05)
    codes = components.encode(matrix.toarray())
    assert codes.var(axis=0, ddof=1).sum() == pytest.approx(1, abs=1e-5)
    assert not components.encode(terms.matrix(["unheard"]).toarray()).any()
    assert len(terms.components(texts, 500).variances) <= len(terms)
    with pytest.raises(CyclicError, match="the same frequent words"):
        Terms.fit(["same words"] * 12, patients_of(texts[:12])).components(["same words"] * 12, 5)


def test_json_gives_the_same_vocabulary() -> None:
    texts = reports()
    terms = Terms.fit(texts, patients_of(texts))
    read = Terms.from_json(terms.to_json())
    assert read.terms == terms.terms
    assert read.idf.tobytes() == terms.idf.tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"terms": []}, {"terms": ["b", "a"]}, {"terms": ["a a a", "b"]}, {"terms": ["aa", "aa"]}, {"terms": [1, 2]},
        {"terms": ["Aa", "bb"]}, {"idf": [1.0]}, {"idf": [1.0, -2.0]}, {"idf": [1.0, float("nan")]},
        {"idf": [1.0, "2"]}, {"more": 1}, {"idf": None},
    ],
)  # fmt: skip
def test_a_damaged_vocabulary_is_refused(change: dict) -> None:
    good = {"terms": ["aa", "aa bb"], "idf": [1.0, 2.0]}
    Terms.from_json(json.dumps(good))
    with pytest.raises(CyclicError, match="damaged"):
        Terms.from_json(json.dumps(good | change))
    with pytest.raises(CyclicError, match="damaged"):
        Terms.from_json("[" * 100_000)


class Weights(nn.Module):
    def __init__(self, idf: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("idf", torch.from_numpy(idf).float())

    def forward(self, tokens: Tensor) -> Tensor:
        return tfidf(tokens, self.idf)


def test_tfidf_is_the_same_in_onnx_runtime(tmp_path: Path) -> None:
    texts = reports()
    terms = Terms.fit(texts, patients_of(texts))
    tokens, model = padded(terms.encode(texts)), Weights(terms.idf).eval()
    sizes = {"tokens": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}
    torch.onnx.export(model, (tokens,), dynamo=True, dynamic_shapes=sizes, verbose=False).save(tmp_path / "terms.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "terms.onnx", providers=["CPUExecutionProvider"])
    for some in (tokens, padded(terms.encode(texts[:1]))):
        found = session.run(None, {session.get_inputs()[0].name: some.numpy()})[0]
        assert found == pytest.approx(model(some).numpy(), abs=1e-6)
