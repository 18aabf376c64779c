"""How good generated reports are: word overlap with the true ones, copies of training reports, and findings.

Word overlap says little about whether a report is right, so on phantoms the findings are read out of the text and
compared with the truth. The reader has no sentence of its own: it takes the grammar that wrote the phantoms' reports,
and each sentence for that of the grammar which it resembles most.
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

WORDLESS = "_" * 20  # stands for a text without a word: no text has it
LEAST = 0.5  # likeness, 0–1, below which a sentence is none of the grammar's


def bleu(generated: Sequence[str], references: Sequence[str]) -> float | None:
    """Corpus BLEU-4 as sacreBLEU counts it (Post, WMT 2018), 0–100, blind to case; None for no texts."""
    from sacrebleu import corpus_bleu

    if len(generated) == 0:
        return None
    # `force`: reports need no warning that they look tokenised
    return float(corpus_bleu(list(generated), [list(references)], lowercase=True, force=True).score)


def alike(texts: Sequence[str]) -> Any:
    """TF-IDF of the words of texts (N, W), sparse, of unit norm: products of rows are how alike two texts are, 0–1.

    Texts without a word are like one another, and like no other.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    counted = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"\w+", dtype=np.float32)
    return counted.fit_transform([text if re.search(r"\w", text) else WORDLESS for text in texts])


def differing(text: str, base: str) -> list[tuple[str, bool]]:
    """A text in parts, each with whether it differs from a base text: sentence by sentence, from the one most like it.

    Of a sentence that resembles none, all differs. Joined, the parts are the text.
    """
    known = [[word.lower() for word in re.findall(r"\w+", sentence)] for sentence in _SENTENCES.findall(base)]
    parts: list[tuple[str, bool]] = []
    for sentence in _SENTENCES.findall(text):
        pieces = re.findall(r"\w+|\W+", sentence)
        words = [piece.lower() for piece in pieces if piece[0].isalnum() or piece[0] == "_"]
        matches = [SequenceMatcher(None, other, words, autojunk=False) for other in known]
        best = max(matches, key=lambda match: match.ratio(), default=None)
        same: set[int] = set()
        if best is not None and best.ratio() >= LEAST:
            same = {block.b + step for block in best.get_matching_blocks() for step in range(block.size)}
        number = -1
        for piece in pieces:
            is_word = piece[0].isalnum() or piece[0] == "_"
            number += is_word
            parts.append((piece, is_word and number not in same))
    return _joined(parts)


def _joined(parts: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Neighbours of one kind as one part; blanks between two that differ go with them."""
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
    """Mean F1 of the longest common subsequence of words (Lin, ACL 2004), 0–1, blind to case; None for no texts."""
    from rouge_score.rouge_scorer import RougeScorer

    if len(generated) == 0:
        return None
    scorer = RougeScorer(["rougeL"])
    pairs = zip(generated, references, strict=True)
    return float(np.mean([scorer.score(reference, text)["rougeL"].fmeasure for text, reference in pairs]))


def copied(generated: Sequence[str], training_texts: Sequence[str]) -> tuple[float | None, np.ndarray]:
    """Which generated texts (N,) have the very words of a training report, whatever the case, spaces and punctuation.

    Returns:
        Their share, 0–1 (None for no texts), and the mask (N,). A text without a word is no copy.
    """
    known = {_words(text) for text in training_texts} - {()}
    mask = np.array([_words(text) in known for text in generated], dtype=bool)
    return (float(mask.mean()) if len(mask) else None), mask


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


# --- findings of phantoms -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Correctness:
    """How often texts state a finding that is there. Shares are 0–1, and None where nothing is to be divided."""

    precision: float | None
    recall: float | None
    f1: float | None
    stated: int
    present: int


def finding_scores(texts: Sequence[str], truth: Mapping[str, np.ndarray]) -> dict[str, Correctness]:
    """Compare the findings that phantom reports (N,) state with the truth, by finding.

    The same of the true reports tells how far the reader itself can be trusted.

    Args:
        texts: Generated reports.
        truth: 0 or 1 (N,) by label; NaN is left out, as are labels that are no finding of the phantoms.
    """
    from cyclic_cli.phantom.findings import FINDINGS

    read = [stated(text) for text in texts]
    scores = {}
    for name in FINDINGS:
        if name in truth:
            present = np.asarray(truth[name], dtype=np.float64)
            known = np.isin(present, (0, 1))
            said = np.array([name in findings for findings in read], dtype=bool)
            scores[name] = _correctness(said[known], present[known] == 1)
    return scores


def _correctness(said: np.ndarray, present: np.ndarray) -> Correctness:
    right, stated_, there = int((said & present).sum()), int(said.sum()), int(present.sum())
    precision = right / stated_ if stated_ else None
    recall = right / there if there else None
    f1 = 2 * right / (stated_ + there) if stated_ + there else None
    return Correctness(precision, recall, f1, stated_, there)


def stated(text: str) -> set[str]:
    """The findings that a phantom's report states in any sentence, whatever another one denies."""
    body = re.sub(r"\b(findings|impression):", ". ", text.lower())
    return {finding for sentence in re.split(r"[.\n]", body) if (finding := _finding(_marked(sentence)))}


def _marked(sentence: str) -> frozenset[str]:
    """The words of a sentence, with <side>, <site> or <severity> for those that fill the slots of a wording."""
    slots = _slots()
    return frozenset(slots.get(word, word) for word in re.findall(r"<?\w+(?:-\w+)*>?", sentence.lower()))


@cache
def _slots() -> dict[str, str]:
    """Which slot each word of the vocabulary fills."""
    from cyclic_cli.phantom.anatomy import SIDES
    from cyclic_cli.phantom.findings import LOBES, ORDINALS, ZONES
    from cyclic_cli.phantom.reports import SEVERITY_WORDS

    sites = " ".join([*(lobe for _, lobe in LOBES), *ZONES, *ORDINALS.values(), "rib", "single dual chamber"])
    severities = [word for levels in SEVERITY_WORDS.values() for words in levels.values() for word in words]
    slots = {"<side>": [*SIDES, "bilateral"], "<site>": sites.split(), "<severity>": severities}
    return {word: slot for slot, words in slots.items() for word in words}


@lru_cache(maxsize=4096)
def _finding(words: frozenset[str]) -> str:
    """The finding that a sentence states; empty where it states none.

    The likeness of two sentences is the weight of their common words over that of all their words (weighted Jaccard).
    """
    sentences, weights = _grammar()
    unknown = max(weights.values())

    def likeness(other: frozenset[str]) -> float:
        together, common = (sum(weights.get(word, unknown) for word in w) for w in (words | other, words & other))
        return common / together

    best = max(sentences, key=likeness)
    return sentences[best] if likeness(best) >= LEAST else ""


@cache
def _grammar() -> tuple[dict[frozenset[str], str], dict[str, float]]:
    """Every sentence of the grammar with the finding that it states, or none; and the weight of each word.

    The more kinds of sentences use a word, the less it weighs: log(kinds / kinds with it)². So the noun, which only a
    statement and its denial share, outweighs the rest; no word weighs more.
    """
    from cyclic_cli.phantom import reports

    spoken: list[tuple[str, str, str]] = []  # kind of sentence, finding that it states, sentence
    for name, wordings in reports.WORDINGS.items():
        spoken += [(name, name, wording) for wording in wordings]
        spoken += [(f"no {name}", "", wording) for wording in reports.NEGATIONS[name]]
    spoken += [("pleural_effusion", "pleural_effusion", wording) for wording in reports.BILATERAL_EFFUSION]
    others: list[tuple[str, ...]] = [reports.NORMAL, reports.NORMAL_IMPRESSIONS, reports.FILLERS, reports.INDICATIONS]
    others += [reports.FIRST_COMPARISONS, reports.LATER_COMPARISONS, tuple(reports.TECHNIQUES.values())]
    spoken += [("other", "", wording) for table in others for wording in table]
    sentences: dict[frozenset[str], str] = {}
    kinds: dict[str, set[str]] = {}
    for kind, finding, wording in spoken:
        words = _marked(re.sub(r"\{(\w+)\}", lambda slot: f"<{slot[1].lower()}>", wording))
        sentences[words] = finding
        for word in words:
            kinds.setdefault(word, set()).add(kind)
    count = len({kind for kind, _, _ in spoken})
    return sentences, {word: log((count + 1) / max(2, len(of))) ** 2 for word, of in kinds.items()}
