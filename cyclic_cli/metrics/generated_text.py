"""Measure generated reports: word overlap with the true reports, copies of training reports, and stated findings.

Word overlap says little about the correctness of a report. For synthetic radiographs the findings that a report states
are therefore extracted and compared with the truth. The extraction uses the grammar that generates the synthetic
reports: each sentence is read as the sentence of the grammar that is most similar to it.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, lru_cache
from math import log
from typing import Any

import numpy as np

WORDLESS = "_" * 20  # replaces a text without words; no report contains it
LEAST_SIMILARITY = 0.5  # 0–1; two sentences below it are unrelated


def bleu(generated: Sequence[str], references: Sequence[str]) -> float | None:
    """Corpus BLEU-4, 0–100, case-insensitive, computed by sacreBLEU (Post, WMT 2018); None for no texts."""
    from sacrebleu import corpus_bleu

    if len(generated) == 0:
        return None
    # `force` silences the warning that reports look tokenised
    return float(corpus_bleu(list(generated), [list(references)], lowercase=True, force=True).score)


def tfidf(texts: Sequence[str]) -> Any:
    """L2-normalised TF-IDF vectors (N, W) of texts, as a sparse matrix of words and word pairs.

    The dot product of two rows is the cosine similarity of two texts, 0–1. Texts without words have similarity 1 to one
    another, and 0 to all others.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"\w+", dtype=np.float32)
    return vectorizer.fit_transform([text if re.search(r"\w", text) else WORDLESS for text in texts])


def marked_differences(text: str, base: str) -> list[tuple[str, bool]]:
    """Split a text into parts, each with whether it differs from a base text. Joined, the parts are the text.

    Each sentence is compared with the sentence of the base text that is most similar. If none is similar, the whole
    sentence differs.
    """
    base_sentences = [[word.lower() for word in re.findall(r"\w+", sentence)] for sentence in _SENTENCES.findall(base)]
    parts: list[tuple[str, bool]] = []
    for sentence in _SENTENCES.findall(text):
        pieces = re.findall(r"\w+|\W+", sentence)
        words = [piece.lower() for piece in pieces if piece[0].isalnum() or piece[0] == "_"]
        matches = [SequenceMatcher(None, other, words, autojunk=False) for other in base_sentences]
        best = max(matches, key=lambda match: match.ratio(), default=None)
        same: set[int] = set()
        if best is not None and best.ratio() >= LEAST_SIMILARITY:
            same = {block.b + step for block in best.get_matching_blocks() for step in range(block.size)}
        number = -1
        for piece in pieces:
            is_word = piece[0].isalnum() or piece[0] == "_"
            number += is_word
            parts.append((piece, is_word and number not in same))
    return _merged(parts)


def _merged(parts: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Merge adjacent parts of the same kind; blanks between two parts that differ are counted as differing."""
    joined: list[tuple[str, bool]] = []
    for place, (piece, differs) in enumerate(parts):
        between = not piece.strip() and 0 < place < len(parts) - 1 and parts[place - 1][1] and parts[place + 1][1]
        if joined and joined[-1][1] == (differs or between):
            joined[-1] = (joined[-1][0] + piece, joined[-1][1])
        else:
            joined.append((piece, differs or between))
    return joined


_SENTENCES = re.compile(r"[^.;\n]+[.;\n]*|[.;\n]+")


def rouge_l(generated: Sequence[str], references: Sequence[str]) -> float | None:
    """Mean ROUGE-L: F1 of the longest common subsequence of words, 0–1, case-insensitive (Lin, ACL 2004).

    None for no texts.
    """
    from rouge_score.rouge_scorer import RougeScorer

    if len(generated) == 0:
        return None
    scorer = RougeScorer(["rougeL"])
    pairs = zip(generated, references, strict=True)
    return float(np.mean([scorer.score(reference, text)["rougeL"].fmeasure for text, reference in pairs]))


def copied_reports(generated: Sequence[str], training_texts: Sequence[str]) -> tuple[float | None, np.ndarray]:
    """Find generated texts (N,) with the same words as a training report; case, spaces and punctuation are ignored.

    Returns:
        The share of copies, 0–1 (None for no texts), and their mask (N,). A text without words is not a copy.
    """
    training_words = {_words(text) for text in training_texts} - {()}
    mask = np.array([_words(text) in training_words for text in generated], dtype=bool)
    return (float(mask.mean()) if len(mask) else None), mask


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


# ------------------------------------------------------------------------------- findings of synthetic radiographs


@dataclass(frozen=True)
class Correctness:
    """Correctness of one finding in texts. Scores are 0–1, and None where the denominator is 0."""

    precision: float | None
    recall: float | None
    f1: float | None
    stated: int  # texts that state the finding
    present: int  # samples that have the finding


def finding_scores(texts: Sequence[str], truth: Mapping[str, np.ndarray]) -> dict[str, Correctness]:
    """Compare the findings that reports state with the truth, by finding.

    Scores of the true reports measure the accuracy of the extraction itself.

    Args:
        texts: N reports of synthetic radiographs.
        truth: 0 or 1 (N,) by label. NaN is left out, as are labels that are not findings of synthetic radiographs.
    """
    from cyclic_cli.phantom.findings import FINDINGS

    stated_findings = [stated(text) for text in texts]
    scores = {}
    for name in FINDINGS:
        if name in truth:
            present = np.asarray(truth[name], dtype=np.float64)
            known = np.isin(present, (0, 1))
            states = np.array([name in findings for findings in stated_findings], dtype=bool)
            scores[name] = _correctness(states[known], present[known] == 1)
    return scores


def _correctness(states: np.ndarray, present: np.ndarray) -> Correctness:
    correct, stated_count, present_count = int((states & present).sum()), int(states.sum()), int(present.sum())
    return Correctness(
        precision=correct / stated_count if stated_count else None,
        recall=correct / present_count if present_count else None,
        f1=2 * correct / (stated_count + present_count) if stated_count + present_count else None,
        stated=stated_count,
        present=present_count,
    )


def stated(text: str) -> set[str]:
    """The findings that a synthetic report states in any sentence, even if another sentence denies them."""
    body = re.sub(r"\b(findings|impression):", ". ", text.lower())
    return {finding for sentence in re.split(r"[.\n]", body) if (finding := _finding(_words_and_slots(sentence)))}


def _words_and_slots(sentence: str) -> frozenset[str]:
    """The words of a sentence; words that fill a slot of the grammar are replaced by <side>, <site> or <severity>."""
    slots = _slots()
    return frozenset(slots.get(word, word) for word in re.findall(r"<?\w+(?:-\w+)*>?", sentence.lower()))


@cache
def _slots() -> dict[str, str]:
    """The slot that each word of the grammar's slot vocabulary fills."""
    from cyclic_cli.phantom.anatomy import SIDES
    from cyclic_cli.phantom.findings import LOBES, ORDINALS, ZONES
    from cyclic_cli.phantom.reports import SEVERITY_WORDS

    sites = " ".join([*(lobe for _, lobe in LOBES), *ZONES, *ORDINALS.values(), "rib", "single dual chamber"])
    severities = [word for levels in SEVERITY_WORDS.values() for words in levels.values() for word in words]
    slots = {"<side>": [*SIDES, "bilateral"], "<site>": sites.split(), "<severity>": severities}
    return {word: slot for slot, words in slots.items() for word in words}


@lru_cache(maxsize=4096)
def _finding(words: frozenset[str]) -> str:
    """The finding that a sentence states; empty if it states none.

    The similarity of two sentences is the weight of their common words divided by the weight of all their words
    (weighted Jaccard index).
    """
    sentences, weights = _grammar()
    unknown = max(weights.values())

    def similarity(other: frozenset[str]) -> float:
        union, common = (sum(weights.get(word, unknown) for word in part) for part in (words | other, words & other))
        return common / union

    best = max(sentences, key=similarity)
    return sentences[best] if similarity(best) >= LEAST_SIMILARITY else ""


@cache
def _grammar() -> tuple[dict[frozenset[str], str], dict[str, float]]:
    """Every sentence of the grammar with the finding that it states (empty for none), and the weight of each word.

    The weight is a squared inverse document frequency, log((kinds + 1) / kinds with the word)², over kinds of
    sentences. A finding's noun occurs in two kinds only, the statement and its denial, and has the largest weight.
    Words of a single kind get the same weight and not more.
    """
    from cyclic_cli.phantom import reports

    wordings_of_kinds: list[tuple[str, str, str]] = []  # kind of sentence, finding that it states, sentence
    for name, wordings in reports.WORDINGS.items():
        wordings_of_kinds += [(name, name, wording) for wording in wordings]
        wordings_of_kinds += [(f"no {name}", "", wording) for wording in reports.NEGATIONS[name]]
    wordings_of_kinds += [("pleural_effusion", "pleural_effusion", wording) for wording in reports.BILATERAL_EFFUSION]
    others: list[tuple[str, ...]] = [reports.NORMAL, reports.NORMAL_IMPRESSIONS, reports.FILLERS, reports.INDICATIONS]
    others += [reports.FIRST_COMPARISONS, reports.LATER_COMPARISONS, tuple(reports.TECHNIQUES.values())]
    wordings_of_kinds += [("other", "", wording) for table in others for wording in table]
    sentences: dict[frozenset[str], str] = {}
    kinds: dict[str, set[str]] = {}
    for kind, finding, wording in wordings_of_kinds:
        words = _words_and_slots(re.sub(r"\{(\w+)\}", lambda slot: f"<{slot[1].lower()}>", wording))
        sentences[words] = finding
        for word in words:
            kinds.setdefault(word, set()).add(kind)
    count = len({kind for kind, _, _ in wordings_of_kinds})
    return sentences, {word: log((count + 1) / max(2, len(of))) ** 2 for word, of in kinds.items()}
