"""Cleans the texts of reports, and finds the text file that belongs to an image (its side-car).

A text is cleaned before anything is looked for in it: headings, names, numbers and words are found only where they are
written in the usual characters. What is then still damaged is no report (see `is_readable`).
"""

import re
import unicodedata
from pathlib import Path
from typing import BinaryIO, Protocol

from cyclic_cli.imaging.readers import SUFFIXES
from cyclic_cli.privacy.words import fold, ordinary_words

SIDE_CAR = "report.txt"
"""The report of a study in the folder of its images. A `scan.txt` takes precedence for `scan.dcm`."""


class TextFile(Protocol):
    """A text file in the sources, or in a zip archive there."""

    @property
    def path(self) -> Path:
        """The file, or the archive that holds it."""

    @property
    def relative(self) -> str:
        """Its path, relative to its source."""

    @property
    def member(self) -> str:
        """Its name within the archive; empty for a file outside archives."""

    @property
    def absolute(self) -> str:
        """Its absolute path, including the name within the archive."""

    def open(self) -> BinaryIO:
        """Open its content as a stream of bytes."""


def base_name(path: Path) -> str:
    """A file's name without the suffix of an image format; the dots of a UID are kept."""
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def side_car(image: Path, texts: set[str]) -> str | None:
    """The name of an image's text file: `scan.txt` for `scan.dcm`, or else `report.txt`; None if there is neither.

    Args:
        image: The image file.
        texts: Names of the text files in its folder.
    """
    for name in (base_name(image) + ".txt", SIDE_CAR):
        if name in texts:
            return name
    return None


# ------------------------------------------------------------------------------------------------------------ texts

# Patterns are compiled when they are first used: importing this module must cost nothing.
_SPACES = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x1f\u2028\u2029"
_INVISIBLE = "\x00\x1a\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u3164\ufeff\uffa0" + "".join(
    map(chr, [*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), *range(0xFE00, 0xFE10)])
)
_LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
_PLAIN: dict[int, str | None] = (
    {ord(space): " " for space in _SPACES}
    | {ord(end): "\n" for end in _LINE_ENDS}
    | {ord(letter): None for letter in _INVISIBLE}
    | {ord(ligature): letters for ligature, letters in _LIGATURES.items()}
    | {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full-width forms of ASCII
    | dict.fromkeys(range(0xF000, 0xF100), "•")  # characters of symbol fonts
    | dict.fromkeys(range(0xE0000, 0xE0080))  # tags
)
_MAY_BE_MARKUP = r"[\\<&|=%]"
_LOOSE_ACCENT = "¨([aeiouyAEIOUY])|(?<=[aeiouyAEIOUY])¨"  # M¨uller and Mu¨ller, as PDF has them
_SPLIT_WORD = "(?<![^\\W_].)(?<=[BCDFGHJ-NP-TVWXZ])\u00a0(?=[à-ž])"
"""A space that an export put before an accented letter: `M üller`. No language has capital consonants as words."""
_UNUSUAL = (
    r"[^\t\n\r -~–’ÄÖÜÉ\u00df-\u00e1\u00e3-\u017f\u1ea0-\u1ef9"  # Latin, without signs
    r"\u0386\u0388-\u03ce\u0401\u0404\u0406\u0407\u0410-\u044f\u0451\u0454\u0456\u0457\u0490\u0491"  # Greek, Cyrillic
    r"\u05d0-\u05ea\u0621-\u063a\u0641-\u064a\u0e01-\u0e3a\u0e40-\u0e4e"  # Hebrew, Arabic, Thai
    r"、。\u3041-\u3094\u30a1-\u30fa\u30fc\u4e00-\u9fff\uac00-\ud7a3]"  # East Asia
)
"""A character that `plain` may change, or that a misread text has. Most texts have none."""
_QUESTIONED = r"(?<![\w/.=&])([^\W\d_]+)\?{1,2}([^\W\d_]+)(?!=)"  # not in a web address
_UNREADABLE = r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd\ufffe\uffff\ud800-\udfff\ue000-\uf8ff]"


def plain(text: str) -> str:
    """A report as plain text: without markup and invisible characters, and with every letter as one character.

    Text that was decoded in the wrong encoding is repaired where this is certain. Full-width letters and digits become
    those of ASCII, as do ligatures; accents are composed (Unicode NFC).
    """
    if re.search(_MAY_BE_MARKUP, text):
        from cyclic_cli.prepare.markup import without_markup  # imported late: rarely needed

        text = without_markup(text)
    if not re.search(_UNUSUAL, text):
        return text.strip()
    text = re.sub(_SPLIT_WORD, "", _repaired(text))
    if "¨" in text:
        text = re.sub(_LOOSE_ACCENT, lambda match: f"{match[1] or ''}\u0308", text)
    return unicodedata.normalize("NFC", text.translate(_PLAIN)).strip()


def is_readable(text: str) -> bool:
    """Whether a plain text has no damaged places, in which a name could not be recognised.

    Damaged are replacement characters, control characters, private characters, what `plain` cannot repair of a text
    that was decoded in the wrong encoding, and words with a question mark in place of a letter (`M?ller`).
    """
    if "?" in text and any(map(_is_damaged_word, re.finditer(_QUESTIONED, text))):
        return False
    return not re.search(_UNUSUAL, text) or not (re.search(_UNREADABLE, text) or re.search(_MISREAD, text))


def _is_damaged_word(match: re.Match[str]) -> bool:
    """Whether the second part goes on with a word, and neither is one: `M?ller`, but not `fracture?dislocation`."""
    return match[2][0].islower() and ordinary_words().isdisjoint(map(fold, match.groups()))


# --------------------------------------------------------------------------- texts decoded in the wrong encoding

_MISREAD = "[ÂÃ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â€|[√¬][\u00a0-\u00ff†•∂∑∏πª∫Ω√]|[├┬][─-╬▀-▟\u00a0-\u00ff]"
"""What umlauts in UTF-8 look like when they are read as Windows-1252 or Latin-1, Mac Roman, or code page 437 or 850."""
_LOST_SPACE = r"(?<![^\W_])Ã (?=[a-z])"  # à, whose second byte became a space
_RUN = "[^\x00-\x7f]+"
_REREAD = ("cp1252", "mac_roman", "cp437", "cp850", "cp1251", "cp1250")
_ENOUGH = 3  # characters of a text that are all UTF-8 by chance in no language
_C1 = {chr(byte): bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(0x80, 0xA0)}
_C1_BYTE = {chr(byte): bytes([byte]) for byte in range(0x80, 0xA0)}
_REPEATS = 3  # a text may be misread several times


def _repaired(text: str) -> str:
    """The text with its bytes read as UTF-8 where they were read as something else."""
    for _ in range(_REPEATS):
        before, text = text, _reread(text)
        if text == before:
            break
    return re.sub("[\x80-\x9f]", lambda sign: _C1[sign[0]], text)


def _reread(text: str) -> str:
    """The text read again: as a whole where all of it was misread in one encoding, else those parts that were."""
    runs = set(re.findall(_RUN, text))
    is_misread = bool(re.search(_MISREAD, text))
    for encoding in _REREAD:
        meant = _all_meant(runs, encoding)
        if meant and (is_misread or sum(map(len, meant.values())) >= _ENOUGH):
            return re.sub(_RUN, lambda run, meant=meant: meant[run[0]], text)  # type: ignore[misc]
    if is_misread:
        text = re.sub(_RUN, lambda run: _meant(run[0], "cp1252") or _meant(run[0], "mac_roman") or run[0], text)
    return re.sub(_LOST_SPACE, "à ", text) if "Ã " in text else text


def _all_meant(runs: set[str], encoding: str) -> dict[str, str]:
    """Run → the run as it was meant; empty where one of them was not misread in this encoding."""
    meant = {}
    for run in runs:
        meant[run] = _meant(run, encoding)
        if not meant[run]:
            return {}
    return meant


def _meant(run: str, encoding: str) -> str:
    """A run of characters beyond ASCII read again; empty where its bytes are no UTF-8."""
    try:
        if encoding == "cp1252":  # Latin-1 has control characters in place of some of its characters
            return b"".join(_C1_BYTE.get(sign) or sign.encode("cp1252") for sign in run).decode("utf-8")
        return run.encode(encoding).decode("utf-8")
    except UnicodeError:
        return ""
