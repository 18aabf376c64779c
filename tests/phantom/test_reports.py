"""Synthetic reports and the truth table state the sampled findings, with varied wording."""

import re

import pytest
from helpers.synthetic import finding_of, stream

from cyclic_cli.phantom.findings import (
    DETAILS,
    FINDINGS,
    SEVERITIES,
    TRUTH_COLUMNS,
    Finding,
    sample_finding,
    sample_findings,
    truth,
)
from cyclic_cli.phantom.reports import (
    BILATERAL_EFFUSION,
    NEGATIONS,
    SEVERITY_WORDS,
    STANDARD_NORMAL,
    WORDINGS,
    word_finding,
    write_report,
)


def many_studies(count: int) -> list[tuple[Finding, ...]]:
    return [sample_findings(stream(31, number)) for number in range(count)]


def test_frequencies_of_findings() -> None:
    studies = many_studies(2000)
    normal = sum(not findings for findings in studies) / len(studies)
    assert 0.42 <= normal <= 0.48
    for name in FINDINGS:
        share = sum(name in [finding.name for finding in findings] for findings in studies) / len(studies)
        assert 0.05 < share < 0.30, name
    assert any(len(findings) > 1 for findings in studies)


def test_pacemaker_stays_with_the_patient() -> None:
    pacemaker = finding_of("pacemaker")
    for seed in range(20):
        assert pacemaker in sample_findings(stream(seed), (pacemaker, finding_of("nodule")))


def test_truth_row() -> None:
    effusion = finding_of("pleural_effusion", side="left", severity="severe")
    row = truth((effusion,))
    assert tuple(row) == TRUTH_COLUMNS
    filled = {column: value for column, value in row.items() if value not in ("0", "")}
    assert filled == {"pleural_effusion": "1", "pleural_effusion_side": "left", "pleural_effusion_severity": "severe"}
    empty = truth(())
    assert empty["no_finding"] == "1"
    assert all(value in ("0", "") for column, value in empty.items() if column != "no_finding")


def test_about_a_fifth_of_reports_is_the_standard_text() -> None:
    reports = [
        write_report(findings, ("PA",), True, stream(41, number)) for number, findings in enumerate(many_studies(2000))
    ]
    assert 0.17 <= reports.count(STANDARD_NORMAL) / len(reports) <= 0.23
    assert len(set(reports)) > 0.7 * len(reports)


@pytest.mark.parametrize("name", FINDINGS)
def test_wordings_are_varied_and_agree_with_the_truth(name: str) -> None:
    assert len(set(WORDINGS[name])) >= 10
    assert len(set(BILATERAL_EFFUSION)) >= 10
    seen = set()
    for seed in range(400):
        finding = sample_finding(name, stream(51, seed))
        text = word_finding(finding, stream(52, seed)).lower()
        assert "{" not in text
        seen.add(text)
        words = set(re.findall(r"[a-z-]+", text))
        if "side" in DETAILS[name]:
            assert words & {"left", "right", "bilateral"} == {finding.side}, text
        if "site" in DETAILS[name]:
            assert finding.site in text
        if finding.severity:
            stated = {severity for severity in SEVERITIES if words & set(SEVERITY_WORDS[name][severity])}
            assert stated == {finding.severity}, text
    assert len(seen) >= 10


def stated_findings(text: str) -> set[tuple[str, str]]:
    """Name and side of every finding that a report states, parsed by the wordings of the grammar."""
    slots = {"side": "(?P<side>left|right|bilateral)", "site": "[a-z ]+", "severity": "[a-z-]+"}
    slots |= {name.capitalize(): pattern for name, pattern in slots.items()}
    stated = set()
    for name, wordings in [*WORDINGS.items(), ("pleural_effusion", BILATERAL_EFFUSION)]:
        for wording in wordings:
            pattern = re.sub(r"\\{(\w+)\\}", lambda slot: slots[slot[1]], re.escape(wording))
            side = "" if name == "cardiomegaly" else "bilateral" if wordings is BILATERAL_EFFUSION else None
            for match in re.finditer(r"(?:^|(?<=\s))" + pattern, text, re.IGNORECASE | re.MULTILINE):
                stated.add((name, match["side"].lower() if side is None else side))
    return stated


def test_reports_state_exactly_the_true_findings() -> None:
    stated_any = 0
    for seed in range(300):
        findings = sample_findings(stream(61, seed))
        text = write_report(findings, ("PA", "LL"), False, stream(62, seed))
        assert stated_findings(text) == {(finding.name, finding.side) for finding in findings}, text
        for finding in findings:
            assert not any(denial in text for denial in NEGATIONS[finding.name]), text
        stated_any += bool(findings)
    assert stated_any > 100


def test_reports_negate_absent_findings() -> None:
    texts = [write_report((), ("PA",), True, stream(63, seed)) for seed in range(200)]
    for name, denials in NEGATIONS.items():
        assert any(denial in text for text in texts for denial in denials), name
