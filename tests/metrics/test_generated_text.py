"""BLEU and ROUGE by hand and against NLTK, copies, and the extraction of findings from synthetic reports."""

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu

from cyclic_cli.metrics import generated_text
from cyclic_cli.phantom import reports
from cyclic_cli.phantom.findings import FINDINGS, sample_finding, sample_findings

VIEWS = (("PA",), ("AP",), ("PA", "LL"))


def synthetic_reports(count: int, seed: int = 0) -> tuple[list[str], dict[str, np.ndarray]]:
    """Reports of synthetic studies, and the truth by finding."""
    generator = np.random.default_rng(seed)
    drawn = [sample_findings(generator) for _ in range(count)]
    texts = [
        reports.write_report(findings, VIEWS[place % 3], place % 2 == 0, generator)
        for place, findings in enumerate(drawn)
    ]
    names = [{finding.name for finding in findings} for findings in drawn]
    return texts, {name: np.array([name in present for present in names], dtype=float) for name in FINDINGS}


def test_bleu_equals_nltk_and_is_case_insensitive() -> None:
    references = [text.replace("\n", " ") for text in synthetic_reports(40)[0]]
    generated = [text.replace("The ", "A ").lower() for text in references[1:] + references[:1]]
    tokens = [[text.lower().replace(",", " ,").replace(":", " :").replace(".", " .").replace(";", " ;").split()
               for text in texts] for texts in (references, generated)]  # fmt: skip
    wanted = 100 * corpus_bleu([[reference] for reference in tokens[0]], tokens[1])
    assert generated_text.bleu(generated, references) == pytest.approx(wanted, abs=0.5)
    assert generated_text.bleu(
        np.array([text.upper() for text in references], dtype=object), references
    ) == pytest.approx(100)


def test_rouge_by_hand() -> None:
    """The common subsequence "small left effusion" has 3 words: precision 3/4, recall 3/5."""
    assert generated_text.rouge_l(["A small LEFT effusion."], ["small effusion, left effusion seen"]) == pytest.approx(
        2 / 3
    )
    assert generated_text.rouge_l(["none", "left rib"], ["left rib", "left rib"]) == pytest.approx(0.5)
    assert (
        generated_text.bleu([], [])
        is generated_text.rouge_l([], [])
        is generated_text.copied_reports([], ["a"])[0]
        is None
    )


@pytest.mark.parametrize(
    ("text", "copy"),
    {
        "Clear lungs.\nNo effusion.": True,
        "clear  LUNGS - no effusion": True,
        "Ｃlear lungs, no effusion!": True,
        "Clear lungs.": False,
        "Clear lungs. No effusions.": False,
        "": False,
        "...": False,
    }.items(),
)
def test_copies_have_the_same_words(text: str, copy: bool) -> None:
    share, mask = generated_text.copied_reports([text, "another"], ["Clear lungs. No effusion.", ""])
    assert mask.tolist() == [copy, False]
    assert share == copy / 2


def test_findings_are_recovered_from_synthetic_reports() -> None:
    texts, truth = synthetic_reports(2000)
    for case in (str, str.lower):
        scores = generated_text.finding_scores([case(text) for text in texts], truth)
        assert list(scores) == list(FINDINGS)
        assert min(score.f1 for score in scores.values()) >= 0.99


@pytest.mark.parametrize("name", FINDINGS)
def test_every_statement_and_every_denial_of_a_finding_is_recognised(name: str) -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        assert generated_text.stated(reports.word_finding(sample_finding(name, generator), generator)) == {name}
    for denial in reports.NEGATIONS[name]:
        assert generated_text.stated(denial) == set()


def test_other_sentences_state_no_finding() -> None:
    tables = (
        reports.NORMAL,
        reports.NORMAL_IMPRESSIONS,
        reports.FILLERS,
        reports.INDICATIONS,
        reports.LATER_COMPARISONS,
    )
    sentences = [sentence for table in tables for sentence in table]
    headed = [heading.format(sentence) for heading in reports.INDICATION_HEADINGS for sentence in reports.INDICATIONS]
    assert [text for text in [*sentences, *headed, reports.STANDARD_NORMAL, ""] if generated_text.stated(text)] == []


@pytest.mark.parametrize(
    ("text", "findings"),
    {
        "small left pneumothorax": {"pneumothorax"},
        "there is a large right sided pleural effusion .": {"pleural_effusion"},
        "Faint consolidation in the left lingula and lower lobe. No pneumothorax. No nodule": {"consolidation"},
        "IMPRESSION: 1. Marked cardiomegaly. 2. Dual chamber pacemaker.": {"cardiomegaly", "pacemaker"},
        "There is a small left": set(),
        "no evidence of a pneumothorax": set(),
        "no left pleural effusion or right pneumothorax is seen": set(),
        "A large effusion layers in the right": {"pleural_effusion"},
        "No fracture. Third right rib fracture, minimal displacement.": {"fracture"},
        "The patient was seen in the clinic": set(),
    }.items(),
)
def test_imperfect_sentences_are_understood(text: str, findings: set[str]) -> None:
    assert generated_text.stated(text) == findings


def test_scores_by_hand() -> None:
    texts = ["No pneumothorax.", *["There is a small left pneumothorax."] * 3, "Clear lungs."]
    truth = {"pneumothorax": np.array([1, 1, 0, np.nan, 0]), "nodule": np.zeros(5), "other": np.ones(5)}
    assert generated_text.finding_scores(texts, truth) == {
        "nodule": generated_text.Correctness(None, None, None, 0, 0),
        "pneumothorax": generated_text.Correctness(0.5, 0.5, 0.5, 2, 2),
    }
