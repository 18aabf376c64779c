"""Latent semantic analysis of texts by words and word pairs, from which no single patient can be read.

A text becomes the TF-IDF of its terms (sublinear, L2-normalised), as scikit-learn's `TfidfVectorizer` computes it.
Truncated singular value decomposition reduces it (Deerwester et al., JASIS 1990). The vocabulary holds only terms that
occur in the texts of at least ten patients (`PATIENTS`), so that it contains no name or number of a single patient.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclic_cli.codes.components import Components, EqualFeatures
from cyclic_cli.errors import CyclicError
from cyclic_cli.linear_algebra import truncated_svd
from cyclic_cli.text_encoders._vocabulary import PADDING, PATIENTS

if TYPE_CHECKING:
    from torch import Tensor

MOST = 20_000  # terms of a vocabulary; those of the most patients are kept
LSA_TEXTS = 100_000  # most texts that are decomposed
LSA_ITERATIONS = 5  # power iterations of the randomised decomposition
WORD = re.compile(r"(?u)\b\w\w+\b")  # as in scikit-learn: at least two letters or digits
NONE = f"No word occurs in the reports of {PATIENTS} training patients."


@dataclass(frozen=True)
class Terms:
    """A vocabulary of words and word pairs."""

    terms: tuple[str, ...]  # (V,) in sorted order; a pair is two words with a space between
    idf: np.ndarray  # (V,) float64: ln((1 + texts) / (1 + texts with the term)) + 1

    @classmethod
    def fit(cls, texts: Sequence[str], patients: Sequence[str]) -> Terms | None:
        """Learn from texts (N,) and the keys of their patients (N,). None: no term occurs for `PATIENTS` patients.

        Neither the order of the texts nor the names of the patients matter.
        """
        kept = _of_many_patients(texts, patients)
        if not kept:
            return None
        numbers = {term: place for place, term in enumerate(sorted(kept))}
        frequency = np.zeros(len(numbers))
        for text in texts:
            found = {numbers[term] for term in _terms(_words(text)) if term in numbers}
            frequency[list(found)] += 1
        return cls(tuple(numbers), np.log((1 + len(texts)) / (1 + frequency)) + 1)

    def __len__(self) -> int:
        return len(self.terms)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {term: number for number, term in enumerate(self.terms, start=PADDING + 1)}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the known terms of each text with repetitions, int64: places in `terms` plus 1."""
        numbers = self._numbers
        return [
            np.array([numbers[term] for term in _terms(_words(text)) if term in numbers], np.int64) for text in texts
        ]

    def matrix(self, texts: Sequence[str]) -> Any:
        """Return the TF-IDF (N, V) of texts (N,), a sparse float64 matrix. A text without a known term is zero."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectoriser = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=list(self.terms))
        vectoriser.idf_ = self.idf
        return vectoriser.transform(texts)

    def components(self, texts: Sequence[str], dims: int) -> Components:
        """Fit the latent semantic analysis of texts (N,): codes of at most `dims` dimensions and total variance one.

        Nothing is subtracted from the TF-IDF, so a text without a known term has the code zero.

        Raises:
            EqualFeatures: All texts have the same terms.
        """
        some = (
            texts if len(texts) <= LSA_TEXTS else [texts[place * len(texts) // LSA_TEXTS] for place in range(LSA_TEXTS)]
        )
        matrix = self.matrix(some)
        _, directions = truncated_svd(matrix, min(dims, *matrix.shape), LSA_ITERATIONS)
        variances = np.asarray(matrix @ directions.T).var(axis=0, ddof=1 if len(some) > 1 else 0)
        if variances.sum() < 1e-12:
            raise EqualFeatures(
                "All training reports have the same frequent words.", "Name a --text-encoder, or train on more reports."
            )
        zeros = np.zeros(len(self), np.float32)
        return Components(zeros, directions.astype(np.float32), float(np.sqrt(variances.sum())), variances)

    # ------------------------------------------------------------------------------------------ in a checkpoint

    def to_json(self) -> str:
        """Return the vocabulary as JSON for `from_json`. Equal vocabularies give equal JSON."""
        return json.dumps({"terms": self.terms, "idf": self.idf.tolist()}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Terms:
        """Return the vocabulary that `to_json` stored. Raises CyclicError when the text is anything else."""
        try:
            match json.loads(text):
                case {"terms": list(terms), "idf": list(idf), **others} if not others and _valid(terms, idf):
                    return cls(tuple(terms), np.array(idf, np.float64))
        except (ValueError, RecursionError):
            pass
        raise CyclicError(
            "The vocabulary of words in the checkpoint is damaged.", "Copy the checkpoint again, or train again."
        )


def tfidf(terms: Tensor, idf: Tensor) -> Tensor:
    """Return the TF-IDF (N, V) of terms (N, L) int64 as `Terms.encode` gives them, with PADDING after their end.

    `idf` is (V,) float32, see `Terms`.
    """
    import torch  # here alone, because models exported to ONNX encode texts where torch is not installed

    counts = torch.zeros(terms.shape[0], len(idf) + 1, device=terms.device)
    counts = counts.scatter_add_(1, terms, torch.ones_like(terms, dtype=counts.dtype))[:, PADDING + 1 :]
    weights = torch.where(counts > 0, 1 + counts.clamp(min=1).log(), 0.0) * idf
    return torch.nn.functional.normalize(weights, dim=1)


# ------------------------------------------------------------------------------------------------- learning


def _words(text: str) -> list[str]:
    found: list[str] = WORD.findall(text.lower())
    return found


def _terms(words: list[str]) -> Iterator[str]:
    """Yield the words of a text, then its pairs of neighbouring words."""
    yield from words
    for first, second in pairwise(words):
        yield f"{first} {second}"


def _of_many_patients(texts: Sequence[str], patients: Sequence[str]) -> list[str]:
    """Return the terms in the texts of at least `PATIENTS` patients, at most `MOST`.

    The words are counted first, and then only pairs of frequent words, which are far fewer than all pairs.
    """
    of_patient: dict[str, list[int]] = {}
    for place, patient in enumerate(patients):
        of_patient.setdefault(patient, []).append(place)
    counts: Counter[str] = Counter()
    for places in of_patient.values():
        counts.update({word for place in places for word in _words(texts[place])})
    counts = Counter({word: count for word, count in counts.items() if count >= PATIENTS})
    pairs: Counter[str] = Counter()
    for places in of_patient.values():
        pairs.update({pair for place in places for pair in _known_pairs(_words(texts[place]), counts)})
    counts.update({pair: count for pair, count in pairs.items() if count >= PATIENTS})
    return sorted(counts, key=lambda term: (-counts[term], term))[:MOST]


def _known_pairs(words: list[str], known: Counter[str]) -> Iterator[str]:
    """Yield the pairs of neighbouring words that are both known."""
    for first, second in pairwise(words):
        if first in known and second in known:
            yield f"{first} {second}"


def _valid(terms: list[Any], idf: list[Any]) -> bool:
    """Whether a file holds terms in sorted order that `_terms` can give, and as many positive numbers."""
    return (
        0 < len(terms) == len(idf)
        and all(isinstance(term, str) and 1 <= len(_words(term)) <= 2 for term in terms)
        and all(term == " ".join(_words(term)) for term in terms)
        and all(first < second for first, second in pairwise(terms))
        and all(type(one) in (int, float) and math.isfinite(one) and one > 0 for one in idf)
    )
