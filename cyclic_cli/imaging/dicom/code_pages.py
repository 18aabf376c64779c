"""Reads text values whose character set is missing or wrong, by every code page in which they read as words.

Old modalities write names in the code page of their operating system, and often state another character set or none.
The right page cannot be told from a name alone: `Иванов` in Windows-1251 is also a word in KOI8-R, in wrong case. So
all plausible readings are taken. A wrong reading is not a word of any report, so it removes nothing from one.
"""

import re
import unicodedata
from functools import lru_cache

CODE_PAGES = (
    "utf_8", "gb18030", "big5hkscs", "cp932", "euc_jp", "cp949",  # Chinese, Japanese, Korean
    "cp1252", "iso8859_15", "mac_roman", "cp850", "cp437",  # Western European
    "cp1250", "iso8859_2", "cp852", "mac_latin2",  # Central European
    "cp1251", "koi8_u", "cp866", "iso8859_5", "mac_cyrillic",  # Cyrillic
    "cp1253", "iso8859_7", "cp737", "mac_greek",  # Greek
    "cp1254", "cp857", "cp1257", "iso8859_4", "cp775", "cp1258",  # Turkish, Baltic, Vietnamese
    "cp1255", "cp862", "cp1256", "cp720", "iso8859_6", "cp864",  # Hebrew, Arabic
    "cp874",  # Thai
)  # fmt: skip
"""Code pages of Windows, DOS, macOS and Unix for the scripts in which names are written."""
LONGEST = 256  # bytes; a longer value is not a name, and is read by its stated character set and as UTF-8 only
REMEMBERED = 4096  # values; the headers of a study repeat the same ones

_WORDS = re.compile(r"[^\W\d_]+")
_BETWEEN = re.compile(r"[\s\d^=,.;:()/'’´`&+_\\・·-]*")
"""What may stand between the words of a name or a remark."""
_EAST_ASIAN = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "IDEOGRAPHIC", "HALFWIDTH", "FULLWIDTH"}


@lru_cache(maxsize=REMEMBERED)
def readings_of(value: bytes) -> frozenset[str]:
    """Every text that the bytes of a value may stand for: as UTF-8, and by each code page that gives words.

    Args:
        value: The value of an element, without padding.
    """
    pages = CODE_PAGES if len(value) <= LONGEST else CODE_PAGES[:1]
    decoded = {page: _decoded(value, page) for page in pages}
    return frozenset(text for page, text in decoded.items() if text and (page == "utf_8" or _reads_as_words(text)))


def _decoded(value: bytes, page: str) -> str:
    """The text in the usual form of its letters (NFKC); empty where the bytes are not valid in this code page."""
    try:
        return unicodedata.normalize("NFKC", value.decode(page))
    except UnicodeDecodeError:
        return ""


def _reads_as_words(text: str) -> bool:
    """Whether a text has words of one script each, in the usual case, and nothing but punctuation between them."""
    if not _BETWEEN.fullmatch(_WORDS.sub("", _without_marks(text))):
        return False
    return all(_is_word(word) for word in _WORDS.findall(text))


def _is_word(word: str) -> bool:
    """Whether a word is written in one script, and not in mixed case as other code pages make it (`иВАНОВ`)."""
    scripts = {_script(letter) for letter in word}
    usual_case = word[1:] == word[1:].lower() or word == word.upper() or any(word[at:].istitle() for at in (2, 3))
    return len(scripts) == 1 and usual_case


def _script(letter: str) -> str:
    """The script of a letter, by the first word of its Unicode name; the East Asian scripts count as one."""
    first = unicodedata.name(letter, "").partition(" ")[0].partition("-")[0]
    return "CJK" if first in _EAST_ASIAN else first


def _without_marks(text: str) -> str:
    """The text without combining marks, such as the vowels of Thai."""
    return "".join(letter for letter in text if unicodedata.category(letter)[0] != "M")
