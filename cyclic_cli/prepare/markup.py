"""Turns markup in reports into plain text: RTF, HTML and XML, HL7 version 2, quoted-printable, and other escapes.

Reports are exported from systems that store them in one of these forms. A name in markup (`M\\'fcller`, `M&uuml;ller`)
would be found neither by its spelling nor by its words. Each form is recognised by marks that plain reports do not
have: `< 5 mm`, `a < b` and `<DATE>` stay as they are. Every function takes time in proportion to the text's length,
whatever the text.

RTF: Word 2007 Rich Text Format Specification 1.9.1; the tables of its words are those of the package striprtf. HL7
version 2: chapter 2.7 (escape sequences) and 7.4.2 (OBX). Quoted-printable: RFC 2045, 6.7. Percent: RFC 3986, 2.1.
"""

import html
import re
from collections.abc import Iterator

_ROUNDS = 3  # an export of an export has markup in markup


def without_markup(text: str) -> str:
    """The text of a report without markup; a text that has none is returned as it is."""
    for _ in range(_ROUNDS):
        before = text
        if "\\" in text:
            text = _without_rtf(text)
        if "|" in text and _SEGMENT.search(text):
            text = _results(text)
        if "\\" in text:
            text = _HL7_ESCAPE.sub(_unescaped, text)
            text = _without_backslashes(text)
        if "=" in text and _QUOTED.search(text):
            text = _without_quoting(text)
        if "%" in text and _PERCENT.search(text):
            text = _PERCENT_RUN.sub(lambda run: _as_text(bytes.fromhex(run[0].replace("%", ""))), text)
        if "<" in text:
            text = _without_tags(text)
        if "&" in text:
            text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
        if text == before:
            break
    return text


def _as_text(content: bytes) -> str:
    """Bytes that an escape sequence stands for: UTF-8 where they are valid, else Windows-1252."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _joined(text: str) -> str:
    """The text with the halves of a character joined, which escape sequences write as two."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# -------------------------------------------------------------------------------------------------------------- RTF

_RTF_START = re.compile(r"\{\s*\\rtf\d?(?![a-z])")
_RTF = re.compile(r"\\([a-zA-Z]{1,32})(-?\d{1,9})? ?|\\'([0-9a-fA-F]{2})|\\([^a-zA-Z])|([{}])|[\r\n]+|[^\\{}\r\n]+|\\")
_RTF_PIECE = re.compile(r"\\'[89a-fA-F][0-9a-fA-F]|\\pard?(?![a-zA-Z])")  # of a document that lost its beginning


def _without_rtf(text: str) -> str:
    start = _RTF_START.search(text) or _RTF_PIECE.search(text)
    if not start:
        return text
    read = text[: start.start()] + "".join(_RtfReader(text, start.start()).parts()).strip()
    return _joined(read)


class _RtfReader:
    """Reads the text of an RTF document, from its opening brace to the matching one, and what follows.

    Args:
        text: The text that contains the document.
        start: Position of the opening brace.
    """

    def __init__(self, text: str, start: int) -> None:
        from striprtf import striprtf  # imported late: rarely needed

        self._destinations, self._characters = striprtf.destinations, striprtf.specialchars
        self._charsets = striprtf.charset_map
        self._text, self._start = text, start
        self._page = "cp1252"  # encoding of the document's bytes
        self._bytes = bytearray()  # bytes that are not decoded yet: a character may have two
        self._fonts: dict[int, str] = {}
        # Whether the group has no text, the bytes after a Unicode character, the encoding of the font, the destination.
        self._state: tuple[bool, int, str, str] = (False, 1, "", "")
        self._groups: list[tuple[bool, int, str, str]] = []
        self._font = 0  # the font that is defined
        self._to_skip = 0  # characters that stand for the last Unicode character in older readers
        self._binary_until = 0

    def parts(self) -> Iterator[str]:
        """The pieces of the text."""
        for match in _RTF.finditer(self._text, self._start):
            if match.start() < self._binary_until:
                continue
            word, number, byte, sign, brace = match.groups()
            if byte:
                if self._to_skip:
                    self._to_skip -= 1
                else:
                    self._bytes.append(int(byte, 16))
                continue
            yield self._flushed()
            if brace:
                self._to_skip = 0
                if brace == "{":
                    self._groups.append(self._state)
                elif self._groups:
                    self._state = self._groups.pop()
                if not self._groups and brace == "}":
                    yield self._text[match.end() :]
                    return
            elif word:
                yield self._shown(self._word(word, int(number) if number else None, match.end()))
            elif sign:
                yield self._shown(self._sign(sign))
            elif not match[0].startswith(("\r", "\n", "\\")):
                skipped, self._to_skip = self._to_skip, max(0, self._to_skip - len(match[0]))
                yield self._shown(match[0][skipped:])
        yield self._flushed()

    def _shown(self, part: str) -> str:
        return "" if self._state[0] else part

    def _flushed(self) -> str:
        """The bytes that were collected, as text."""
        content, self._bytes = bytes(self._bytes), bytearray()
        if not content:
            return ""
        try:
            return self._shown(content.decode(self._state[2] or self._page, "replace"))
        except LookupError:  # an encoding that Python does not have
            return self._shown("\ufffd")

    def _sign(self, sign: str) -> str:
        if sign == "*":  # a group that readers may skip
            self._state = (True, *self._state[1:])
        return {"~": " ", "_": "-", "-": "", "*": ""}.get(sign, "\n" if sign in "\r\n" else sign)

    def _word(self, word: str, number: int | None, end: int) -> str:
        """The text of a control word."""
        hidden, bytes_of_unicode, charset, destination = self._state
        if word in self._destinations:
            self._state = (True, bytes_of_unicode, charset, word)
        elif word == "ansicpg" and number:
            self._page = "utf-8" if number == 65001 else f"cp{number}"
        elif word in ("mac", "pc", "pca"):
            self._page = {"mac": "mac_roman", "pc": "cp437", "pca": "cp850"}[word]
        elif word == "uc" and number is not None:
            self._state = (hidden, max(0, number), charset, destination)
        elif word == "u" and number is not None:
            self._to_skip = bytes_of_unicode
            return chr(number % 0x10000)
        elif word == "f" and number is not None:
            self._font = number
            self._state = (hidden, bytes_of_unicode, self._fonts.get(number, ""), destination)
        elif word == "fcharset" and number is not None and destination == "fonttbl":
            self._fonts[self._font] = "" if number in (0, 1) else self._charsets.get(number, "")
        elif word == "bin" and number:
            self._binary_until = end + number
        return "\t" if word in ("cell", "nestcell") else self._characters.get(word, "")


# ---------------------------------------------------------------------------------------------------- HTML and XML

_HTML = frozenset(
    "a abbr address article b big blockquote body br caption center code col dd div dl dt em font footer form h1 h2 h3 "
    "h4 h5 h6 head header hr html i img input li link main meta nav ol p pre section small span strike strong style "
    "sub sup table tbody td tfoot th thead title tr tt u ul xml".split()
)
_BREAKING = frozenset(
    "address article blockquote body br caption center dd div dl dt footer h1 h2 h3 h4 h5 h6 header hr html item li "
    "list main ol p para paragraph pre section table tbody text tr ul".split()
)
"""Elements that begin a new line; `paragraph`, `list`, `item` and `text` are those of the Clinical Document
Architecture."""
_HIDDEN = frozenset("head script style title".split())
_TAG = re.compile(
    r"<(/?)([A-Za-z][\w:.-]{0,63})((?:\s+[\w:.-]{1,64}\s{0,9}=\s{0,9}(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>]+))*"
    r"(?:\s+(?:nowrap|noshade|compact|checked|disabled))?)\s{0,99}(/?)>"
)
_COMMENT = ("<!--", "-->")
_CDATA = ("<![CDATA[", "]]>")
_DECLARATION = re.compile(r"<\?[a-zA-Z][^<>]*\?>|<!DOCTYPE[^<>\[]*>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")


def _without_tags(text: str) -> str:
    """The text without the tags of HTML, and of XML elements that are closed somewhere."""
    tags = list(_TAG.finditer(text))
    closed = {tag[2].lower() for tag in tags if tag[1] or tag[4]}
    tags = [tag for tag in tags if tag[2].lower() in closed or tag[2].lower() in _HTML]
    kept: list[str] = []
    hidden, end = "", 0  # the element whose content is left out, and the end of the last tag
    for tag in tags:
        name = tag[2].lower()
        if not hidden:
            kept.append(text[end : tag.start()])
            hidden = name if name in _HIDDEN and name in closed and not tag[1] else ""
            kept.append(
                "\n" if name.rpartition(":")[2] in _BREAKING else " " if name in ("td", "th") and not tag[1] else ""
            )
        elif name == hidden and tag[1]:
            hidden = ""
        end = tag.end()
    text = "".join([*kept, "" if hidden else text[end:]])
    for opening, closing in (_CDATA, _COMMENT):
        if opening in text:
            text = "".join(_outside(text, opening, closing, opening == _CDATA[0]))
    if tags:
        text = re.sub(r"[ \t]*\n[ \t\n]*", "\n", _DECLARATION.sub("", text)).strip()
    return text


def _outside(text: str, opening: str, closing: str, keeps_content: bool) -> Iterator[str]:
    """The parts of a text between sections, and the content of sections if it is kept."""
    end = 0
    while (start := text.find(opening, end)) >= 0 and (stop := text.find(closing, start)) >= 0:
        yield text[end:start]
        if keeps_content:
            yield text[start + len(opening) : stop]
        end = stop + len(closing)
    yield text[end:]


# -------------------------------------------------------------------------------------------------------------- HL7

_SEGMENT = re.compile(r"(?:^|[\r\n\x0b])(?:MSH\|\^|(?:OBX|PID)\|\d*\|)")
_SEGMENT_NAME = re.compile(r"[A-Z][A-Z0-9]{2}\|")
_VALUE = {"OBX": 5, "NTE": 3}
"""Segment → number of the field that holds text."""
_NOT_TEXT = frozenset("ED RP PL XPN XCN XAD XTN XON CX EI DT TM DTM TS".split())
"""Types of values that are no part of a report: files, persons, addresses, numbers of records, dates."""
_CODED = frozenset(("CE", "CWE", "CNE", "CF"))
_HL7_ESCAPE = re.compile(
    r"\\(?:\.(?P<layout>br|sp|in|ti|fi|nf|sk|ce)[ +]?-?\d{0,4}|(?P<sign>[HNFSTREP])|X(?P<hex>(?:[0-9A-Fa-f]{2}){1,64})|"
    r"C[0-9A-Fa-f]{4}|M[0-9A-Fa-f]{4,6})\\|\\\.br(?![a-z])"
)
_SIGNS = {"F": "|", "S": "^", "T": "&", "R": "~", "E": "\\", "P": "#"}


def _results(message: str) -> str:
    """The texts of the results in an HL7 message. Its other segments are about the patient, the visit and the order."""
    kept: list[str] = []
    in_text = True
    for line in re.split(r"[\r\n\x0b\x1c]+", message):
        if not _SEGMENT_NAME.match(line):
            if in_text:  # a line end within a text; in a file it would be base64
                kept.append(line)
            continue
        fields = line.split("|")
        number = _VALUE.get(fields[0], len(fields))
        kind = fields[2] if fields[0] == "OBX" and len(fields) > 2 else ""
        in_text = kind not in _NOT_TEXT
        if in_text and number < len(fields):
            kept += [_component(value, kind) for value in fields[number].split("~")]
    return "\n".join(line for line in kept if line.strip())


def _component(value: str, kind: str) -> str:
    """A value; of a coded one its name."""
    parts = value.split("^")
    return (parts[1] if len(parts) > 1 and parts[1] else parts[0]) if kind in _CODED else value


def _unescaped(match: re.Match[str]) -> str:
    if match["hex"]:
        return _as_text(bytes.fromhex(match["hex"])).replace("\r", "\n")
    if match["sign"]:
        return _SIGNS.get(match["sign"], "")
    return " " if match["layout"] in ("in", "ti", "sk") else "" if match["layout"] in ("fi", "nf") else "\n"


# -------------------------------------------------------------------------------------------------- quoted-printable

_QUOTED = re.compile(
    r"=[CD][0-9A-F]=[89AB][0-9A-F]|=E[0-9A-F]=[89AB][0-9A-F]=[89AB][0-9A-F]"  # UTF-8
    r"|[A-Za-z](?:=[C-F][0-9A-F]){1,2}(?=[a-z])|=3D|=20(?=\r?$)|^.{70,75}=\r?$",
    re.MULTILINE,
)
_QUOTED_RUN = re.compile(r"(?:=(?:3D|2E|09|20(?=\s|$)|[A-F][0-9A-F](?:=[89][0-9A-F])*))+")
_SOFT_BREAK = re.compile(r"=[ \t]*\r?\n")


def _without_quoting(text: str) -> str:
    """A text in quoted-printable, decoded. What no encoder writes, such as `TE=80`, stays."""
    text = _SOFT_BREAK.sub("", text)
    return _QUOTED_RUN.sub(lambda run: _as_text(bytes.fromhex(run[0].replace("=", ""))), text)


# ----------------------------------------------------------------------------------------------------- other escapes

_PERCENT = re.compile(r"%[CD][0-9A-Fa-f]%[89ABab][0-9A-Fa-f]|%[Ee][0-9A-Fa-f]%[89ABab][0-9A-Fa-f]%[89ABab][0-9A-Fa-f]")
_PERCENT_RUN = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_CODE = re.compile(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})")
_WRITTEN_LINE_END = re.compile(r"\\n(?![a-z])")  # `\new` may be a folder
_WRITTEN_SPACE = re.compile(r"(?:\\r)?\\n|\\[rt]")


def _without_backslashes(text: str) -> str:
    """The text with the escapes of JSON and programming languages resolved (`M\\u00fcller\\nBefund`)."""
    coded = _CODE.sub(lambda match: chr(int(match[1] or match[2], 16)), text)
    if coded != text:
        text = _joined(coded)
    return _WRITTEN_SPACE.sub("\n", text) if _WRITTEN_LINE_END.search(text) else text
