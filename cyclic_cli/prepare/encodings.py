"""Decodes the bytes of tables and texts, line by line, and guesses the encoding where nobody says it.

A line that is valid UTF-8 is read as UTF-8, whatever its neighbours are. The other lines of a file are read in one
encoding that is guessed from a sample of them (see `encoding_guess.py`). A file in UTF-16, UTF-32 or ISO 2022 is read
as a whole. Bytes that fit no encoding become U+FFFD, which makes their text unreadable (see `texts.is_readable`).
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from typing import BinaryIO

SAMPLE = 2**14  # bytes of lines that are not UTF-8, from which the encoding is guessed
BLOCK = 2**16  # bytes read at once
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16", b"\x84\x31\x95\x33": "gb18030",
}  # fmt: skip
"""Byte order mark → encoding. The marks of UTF-32 come first, because they begin with those of UTF-16."""
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_ESCAPES = {b"\x1b$)C": "iso2022_kr", b"\x1b$": "iso2022_jp_2"}
"""Sequence that only the encoding has → encoding, in 7 bits. The first that is found counts."""
_BOM = "\ufeff"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Encoding:
    """How the bytes of a file become text.

    Attributes:
        name: The encoding of lines that are not UTF-8, by its name in Python; empty where all lines are UTF-8, and
            UNKNOWN where no encoding fits.
        whole: Whether the whole file has this encoding, so that its line ends are known only after decoding.
        marked: Whether the file itself names the encoding, by a byte order mark.
    """

    name: str = ""
    whole: bool = False
    marked: bool = False

    @property
    def is_guessed(self) -> bool:
        """Whether the encoding was guessed, which the user should know."""
        return bool(self.name) and not self.marked

    @property
    def described(self) -> str:
        """What was guessed, as the predicate of a note."""
        which = "" if self.whole else "lines that are not UTF-8 are "
        return which + ("in no known encoding" if self.name == UNKNOWN else f"read as {self.name}, which was guessed")

    def lines(self, stream: BinaryIO, longest: int) -> Iterator[str]:
        """The lines of a file with their line ends (LF, CR or both).

        Args:
            stream: The file, from its beginning.
            longest: Length at which a line is cut, and is not decoded.
        """
        # Latin-1 has one character for every byte, so lines can be found before they are decoded.
        encoding = self.name if self.whole else "latin-1"
        with TextIOWrapper(stream, encoding, errors="replace", newline="") as text:
            while line := text.readline(longest):
                if not (self.whole or line.isascii() or len(line) == longest):
                    line = self.decode(line.encode("latin-1"))
                yield line.lstrip(_BOM) if line.startswith(_BOM) else line

    def decode(self, line: bytes) -> str:
        """One line as text."""
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError:
            if self.name in ("", UNKNOWN):
                return line.decode("ascii", "replace")
            from cyclic_cli.prepare.encoding_guess import decode  # imported late: most files are UTF-8

            return decode(line, self.name)


def find_encoding(stream: BinaryIO) -> Encoding:
    """The encoding of a file; reads it up to the lines from which it is guessed.

    Args:
        stream: The file, from its beginning.
    """
    first = stream.read(BLOCK)
    for mark, name in _MARKS.items():
        if first.startswith(mark):
            return Encoding(name, whole=True, marked=True)
    if b"\0" in first and (wide := _wide(first)):
        return Encoding(wide, whole=True)
    sample = b""
    for lines in _whole_lines(first, stream):
        for escape, name in _ESCAPES.items():
            if escape in lines and lines.isascii():
                return Encoding(name, whole=True)
        if not _is_utf8(lines):
            sample += b"".join(line for line in lines.splitlines(keepends=True) if not _is_utf8(line))
        if len(sample) >= SAMPLE:
            break
    if not sample:
        return Encoding()
    from cyclic_cli.prepare.encoding_guess import guess

    if name := guess(sample[:SAMPLE]):
        return Encoding(name)
    return Encoding(asian, whole=True) if (asian := _wide_asian(first)) else Encoding(UNKNOWN)


def _whole_lines(block: bytes, stream: BinaryIO) -> Iterator[bytes]:
    """The content of a file from its first block on, in pieces that end with a line; only a very long line is cut."""
    rest = b""
    while block:
        lines = rest + block
        block = stream.read(BLOCK)
        end = max(lines.rfind(b"\n"), lines.rfind(b"\r")) + 1
        if not block or (not end and len(lines) > BLOCK):
            end = len(lines)
        yield lines[:end]
        rest = lines[end:]


def decoded(content: bytes) -> tuple[str, Encoding]:
    """The text of a whole file, and how it was decoded."""
    if b"\0" not in content and b"\x1b$" not in content and _is_utf8(content):
        return content.decode("utf-8-sig"), Encoding()
    encoding = find_encoding(BytesIO(content))
    return "".join(encoding.lines(BytesIO(content), len(content) + 1)), encoding


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _wide(block: bytes) -> str | None:
    """The encoding of UTF-16 or UTF-32 without a mark: the one in which the most characters are plain ASCII."""
    if block.count(b"\0") < len(block) / 4 and not re.search(rb"[\x01-\x08\x0e-\x1f]", block):
        return None  # a stray NUL: the other bytes of wide characters look like control characters
    block = block[: len(block) // 4 * 4]
    texts = {name: block.decode(name, "replace") for name in _WIDE}
    plain = {
        name: len(re.findall(r"[\t\n\r -~]", text)) for name, text in texts.items() if not re.search(r"[\0-\x08]", text)
    }
    best = max(plain, key=lambda name: plain[name], default=None)
    if best and plain[best] >= len(texts[best]) / 20 and texts[best].count("\ufffd") <= len(texts[best]) / 50:
        return best
    return _wide_asian(block)


def _wide_asian(block: bytes) -> str | None:
    """The byte order of UTF-16 without a mark and with hardly any ASCII, which only texts of East Asia have."""
    for name in ("utf-16-le", "utf-16-be"):
        text = block[: len(block) // 2 * 2].decode(name, "replace")
        asian = re.findall("[\t\n\r -~\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef]", text)
        if len(asian) > 0.95 * len(text):  # in the wrong order it is about half of them
            return name
    return None
