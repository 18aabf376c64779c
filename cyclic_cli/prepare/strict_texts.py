"""Keeps out reports in which a name could stand unseen, for `cyclic prepare --strict-text`.

Scrubbing removes the identities that headers and tables name, and what identifies a person by its form. A name that no
header has, without a title or another mark, stays. In most scripts a name begins with a capital. So a scrubbed report
is kept out where a word with a capital is neither in the word lists nor in the reports of ten patients. In German,
where every noun has a capital, a list of German nouns counts too. A report in a script without capitals cannot be
judged, and is kept out.
"""

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.privacy.scrub import TITLES
from cyclic_cli.privacy.vocabulary import german_nouns
from cyclic_cli.privacy.words import fold, ordinary_words

FEWEST_PATIENTS = 10  # whose reports have a word, so that it names none of them
REASON = "unjudged_text"
UNKNOWN_WORD = "a word with a capital is neither in the word lists nor in the reports of ten patients"
UNKNOWN_SCRIPT = "in letters without capitals, names cannot be told from other words"

_CAPITALISED = re.compile(r"(?<![^\W\d_])[^\W\d_a-z][^\W\d_]+")
_WITHOUT_CAPITALS = re.compile(
    "[\u0590-\u10cf\u1100-\u13f7\u1401-\u1bff\u1c50-\u1c7f\u2d30-\u2ddf\u3005-\ua63f\ua6a0-\ua6ff\ua800-\uab2f"
    "\uabc0-\ufaff\ufb1d-\ufdff\ufe70-\ufefc\uff66-\uffdc\U00010000-\U000103ff\U00020000-\U000323af]"
)
"""Letters of scripts without capitals, such as Hebrew, Arabic, Thai, Chinese and Korean."""
_GERMAN = re.compile(r"\b(?:der|die|das|und|mit|kein|keine|keinen|nicht|ist|im|vom|zur|links|rechts|ohne|bei)\b")
_SCHEMA = """
CREATE TABLE unknown_words (word INTEGER, patient, PRIMARY KEY (word, patient)) WITHOUT ROWID;
CREATE TABLE common_words (word INTEGER PRIMARY KEY);
"""


def keep_out_unjudged(db: sqlite3.Connection, keyer: Keyer) -> None:
    """Remove scrubbed texts that cannot be judged from `reports`, and note them in `kept_out_texts`.

    Args:
        db: The database after `scrub_reports`.
        keyer: Makes the hashes by which words are counted.
    """
    db.executescript(_SCHEMA)
    for number, text in _texts(db):
        words = [keyer.number(word) for word in unknown_words(text)]
        db.executemany(
            """INSERT OR IGNORE INTO unknown_words SELECT j.value, p.patient FROM report_patients p, json_each(?) j
               WHERE p.number = ?""",
            [(json.dumps(words), number)] if words else [],
        )
    db.execute(
        "INSERT INTO common_words SELECT word FROM unknown_words GROUP BY word HAVING count(*) >= ?", (FEWEST_PATIENTS,)
    )
    for number, text in _texts(db):
        detail = UNKNOWN_SCRIPT if _WITHOUT_CAPITALS.search(text) else ""
        if not detail and not _are_common(db, map(keyer.number, unknown_words(text))):
            detail = UNKNOWN_WORD
        if detail:
            db.execute("INSERT INTO kept_out_texts VALUES (?, ?)", (number, detail))
    db.execute("UPDATE reports SET text = '' WHERE number IN (SELECT number FROM kept_out_texts)")


def unknown_words(text: str) -> set[str]:
    """The folded words of a text that have a capital and are in no word list.

    Args:
        text: A scrubbed report.
    """
    words = {fold(word) for word in _CAPITALISED.findall(text) if len(word) > 2 or not word.isupper()}
    words -= ordinary_words() | TITLES
    return words - german_nouns() if words and _GERMAN.search(text) else words


def kept_out(db: sqlite3.Connection, paths: bool) -> Iterator[dict[str, Any]]:
    """The lines of `rejected.jsonl` about the texts that were kept out.

    Args:
        db: The database after pairing.
        paths: Whether file names may be shown; otherwise numbers stand for them.
    """
    rows = db.execute(
        """SELECT r.line, i.source, coalesce(i.number + 1, r.number), k.detail FROM kept_out_texts k
           JOIN reports r USING (number) LEFT JOIN inputs i USING (place) ORDER BY k.number"""
    )
    for line, source, number, detail in rows:
        shown = (line or source) if paths else None
        yield {"source": shown or f"{number:06d}", "status": "text", "reason": REASON, "detail": detail}


def _texts(db: sqlite3.Connection) -> sqlite3.Cursor:
    return db.execute("SELECT number, text FROM reports WHERE text != '' ORDER BY number")


def _are_common(db: sqlite3.Connection, words: Iterable[int]) -> bool:
    """Whether the reports of enough patients have each of the words."""
    return all(db.execute("SELECT 1 FROM common_words WHERE word = ?", (word,)).fetchone() for word in words)
