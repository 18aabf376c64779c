"""`--strict-text` keeps out reports in which a name could stand unseen."""

import sqlite3

import pytest

from cyclic_cli.prepare.strict_texts import UNKNOWN_SCRIPT, UNKNOWN_WORD, keep_out_unjudged, kept_out, unknown_words
from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.privacy.vocabulary import german_nouns


@pytest.mark.parametrize(
    "text",
    [
        "Heart size is normal. No effusion at L4/5, ribs 7/8/9, score 3/5.",
        "FINDINGS: THE LUNGS ARE CLEAR. CT of the chest, T1 and T2.",
        "Dr. ___ saw the patient on ___. Mr. ___ has a 5 mm nodule.",
        "Der Herzschatten ist normal. Kein Pleuraerguss, keine Stauung im Oberlappen. Die Wirbelsäule mit Gelenken.",
        "",
    ],
)
def test_ordinary_words_are_known(text: str) -> None:
    assert not unknown_words(text)


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("Seen by Okonkwo. No effusion.", {"okonkwo"}),
        ("KOWALCZYK: NO EFFUSION", {"kowalczyk"}),
        ("Herr Li, Wu and CT.", {"li", "wu"}),
        ("Müller-Lüdenscheidt kam mit der Tochter.", {"muller", "ludenscheidt"}),
        ("Die Aufnahme zeigt keinen Erguss. Frau Baumgartner ist informiert.", {"baumgartner"}),
        ("Снимок Черепановской.", {"снимок", "черепановскои"}),
    ],
)
def test_names_are_unknown(text: str, unknown: set[str]) -> None:
    assert unknown <= unknown_words(text)


def test_german_nouns_are_ordinary_in_german_texts_only() -> None:
    assert "Harnblasenwand" not in german_nouns()
    assert not unknown_words("Die Hand ist nicht gebrochen, die Enkelin kam mit.")
    assert unknown_words("The granddaughter, Enkelin, came.") == {"enkelin"}
    assert not {"muller", "schmidt", "hannelore", "kowalczyk", "koch", "peter"} & german_nouns()


def made(texts: list[tuple[str, str]]) -> sqlite3.Connection:
    """A database after scrubbing, with a report for each patient and text."""
    db = sqlite3.connect(":memory:")
    db.executescript(
        """CREATE TABLE reports (number INTEGER PRIMARY KEY, text, line, place);
        CREATE TABLE report_patients (number INTEGER, patient);
        CREATE TABLE inputs (place, source, number);
        INSERT INTO inputs VALUES ('p', 'folder/scan.dcm', 6);
        CREATE TABLE kept_out_texts (number INTEGER PRIMARY KEY, detail);"""
    )
    for number, (patient, text) in enumerate(texts, 1):
        beside = number == len(texts)  # the last text lies beside an image
        line, place = (None, "p") if beside else (f"t.csv, line {number}", None)
        db.execute("INSERT INTO reports VALUES (?, ?, ?, ?)", (number, text, line, place))
        db.execute("INSERT INTO report_patients VALUES (?, ?)", (number, patient))
    return db


def test_words_of_ten_patients_are_known_and_the_others_are_kept_out() -> None:
    texts = [(f"patient {number}", f"Verzweifelt by Sarkoidosis. Number {number}.") for number in range(10)]
    texts += [("patient 1", "Zdzislaw came. Normal.")] * 12  # many reports of one patient
    texts += [("patient 2", "患者は正常。"), ("patient 3", "Seen by Okonkwo.")]
    db = made(texts)
    keep_out_unjudged(db, Keyer(b"a secret"))
    left = [text for (text,) in db.execute("SELECT text FROM reports ORDER BY number")]
    assert left == [text for _, text in texts[:10]] + [""] * 14
    listed = list(kept_out(db, paths=True))
    assert [line["source"] for line in listed[:1] + listed[-1:]] == ["t.csv, line 11", "folder/scan.dcm"]
    assert [line["detail"] for line in listed[-2:]] == [UNKNOWN_SCRIPT, UNKNOWN_WORD]
    assert [line["source"] for line in kept_out(db, paths=False)][-2:] == ["000023", "000007"]
    assert "Zdzislaw" not in str(listed)
    assert "Okonkwo" not in str(listed)
