"""Decodes text files, and finds the text file that belongs to an image (its side-car)."""

import codecs
from pathlib import Path
from typing import BinaryIO, Protocol

from cyclic_cli.imaging.readers import SUFFIXES

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


def as_text(content: bytes) -> str:
    """Decode bytes as UTF-8, as UTF-16 with a byte order mark, or else as Windows-1252, which accepts any bytes."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


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
