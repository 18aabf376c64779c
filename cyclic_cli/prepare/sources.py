"""Lists the files behind the sources that the user names: files, folders, patterns, zip archives and DICOMDIRs.

Folders are searched recursively, without hidden files and without the output folder. Files in zip archives are read
in the archive and never unpacked to disk. A DICOMDIR that the user names is replaced by the files it lists. An archive
or DICOMDIR that cannot be read becomes an input itself, so that it is rejected under its name. Inputs are produced one
at a time, so memory does not grow with their number.
"""

import glob
import lzma
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from cyclic_cli.errors import Rejected
from cyclic_cli.imaging import readers
from cyclic_cli.prepare.tables import TABLE_NAMES
from cyclic_cli.prepare.texts import side_car

LARGEST_MEMBER = 2**32  # decompressed bytes of one file of an archive
BROKEN_ARCHIVE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, LookupError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Input:
    """One file of the sources: its location, and its path relative to its source."""

    path: Path  # the file, or the zip archive that holds it
    source: str  # `relative` as UTF-8 text; with several folders as sources, prefixed with the folder's name
    relative: str  # path relative to its source
    member: str = ""  # name within the archive, as `_opened` gives it
    side_car: str = ""  # name of the text file in the same folder that holds its report

    @property
    def name(self) -> str:
        """The file's own name."""
        return PurePosixPath(self.member).name if self.member else self.path.name

    @property
    def given(self) -> str:
        """The path in the form the user gave, as text."""
        return printable(f"{self.path}/{self.member}" if self.member else self.path)

    @property
    def absolute(self) -> str:
        """The absolute path, which is the same for two relative spellings of one file."""
        path = os.path.abspath(self.path)
        return f"{path}/{self.member}" if self.member else path

    def open(self) -> BinaryIO:
        """Open the file as a stream of bytes. Raises OSError, or zipfile.BadZipFile for a damaged archive."""
        if not self.member:
            return self.path.open("rb")
        archive, members = _archive(self.path)
        return cast(BinaryIO, archive.open(members[self.member]))

    def read(self) -> bytes:
        """Read the file.

        Raises:
            Rejected: with the reason `missing`, `unreadable`, `empty`, `broken_archive` or `too_large`.
        """
        if not self.member and not _is_archive(self.path):
            return readers.content_of(self.path)
        try:
            archive, members = _archive(self.path)
            found = members[self.member]  # KeyError, a LookupError, for an archive that was an input itself
            if found.file_size > LARGEST_MEMBER:
                raise Rejected("too_large", f"more than {LARGEST_MEMBER // 2**30} GiB decompressed")
            content = archive.read(found)
        except OSError as error:
            raise Rejected("unreadable", error.strerror or "") from error
        except RuntimeError as error:  # zipfile raises it for an encrypted file
            raise Rejected("unreadable", "the archive is encrypted") from error
        except BROKEN_ARCHIVE as error:
            raise Rejected("broken_archive") from error
        if not content:
            raise Rejected("empty")
        return content

    def ends(self, length: int = 4096) -> bytes:
        """The file's size with its first and last bytes, or in an archive its size with its checksum.

        This distinguishes files of the same name without reading them whole. Empty when the file cannot be read.

        Args:
            length: Number of bytes to take from each end.
        """
        try:
            if self.member:
                found = _archive(self.path)[1][self.member]
                return b"%d %d" % (found.file_size, found.CRC)
            if not self.path.is_file():
                return b""
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                head = file.read(length)
                file.seek(max(len(head), size - length))
                return b"%d" % size + head + file.read(length)
        except (OSError, *BROKEN_ARCHIVE):
            return b""


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and os.path.isfile(path)


def _archive(path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    return _opened(os.path.abspath(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=1)  # one is enough: the files of an archive are read one after another
def _opened(path: str, _: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """An open archive and its files by name.

    A zip archive may hold several files of one name; the second is called `name (2)`. The second argument, the time of
    the last change, keeps a changed archive from being taken from the cache.
    """
    archive = zipfile.ZipFile(path)
    members: dict[str, zipfile.ZipInfo] = {}
    times: Counter[str] = Counter()
    for found in archive.infolist():
        name = found.filename
        while name in members:
            times[found.filename] += 1
            name = f"{found.filename} ({times[found.filename] + 1})"
        if not found.is_dir():
            members[name] = found
    return archive, members


def walk(sources: list[Path], out: Path) -> Iterator[Input]:
    """Every file behind the sources, in no particular order; a file that is named twice is given twice.

    Args:
        sources: Files (which need not exist), folders, glob patterns, zip archives and DICOMDIRs.
        out: The output folder, which is skipped.
    """
    folders = {source for source in sources if source.is_dir()}
    common = _common_folder([source for source in sources if source not in folders])
    for source in sources:
        if source in folders:
            prefix = f"{printable(source.resolve().name)}/" if len(folders) > 1 else ""
            yield from _files_in(source, out, prefix)
        else:
            for path in _matches(source):
                text = _side_car_of(path.name, _texts_beside(str(path.parent)))
                yield from _inputs_of(path, _relative(path, common), text)


def expand(sources: list[Path], out: Path) -> list[Input]:
    """The files behind the sources, each once and sorted, without report tables and side-cars."""
    found = {item.absolute: item for item in walk(sources, out) if item.relative not in TABLE_NAMES}
    for item in list(found.values()):
        found.pop(beside(item, item.side_car), None)
    return sorted(found.values(), key=lambda item: (item.source, item.absolute))


def stream(paths: Iterable[Path], out: Path | None) -> Iterator[Input]:
    """The files behind paths, one path after another. Report tables, and text files in folders, are left out.

    Args:
        paths: As the sources of `walk`.
        out: The output folder, which is skipped; None for no output folder.
    """
    for path in paths:
        for item in walk([path], out or Path(os.devnull)):
            is_text = item.name.lower().endswith(".txt") and item.path != path
            if not is_text and item.name not in TABLE_NAMES:
                yield item


def beside(item: Input, name: str) -> str:
    """The absolute path of the file with a given name in the input's folder; empty for an empty name."""
    return f"{os.path.dirname(item.absolute)}/{name}" if name else ""


def printable(path: Path | str) -> str:
    """A path as UTF-8 text. File names may be any bytes; bytes that are not UTF-8 are written as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _common_folder(sources: list[Path]) -> Path:
    """The deepest folder that contains all files with absolute paths; their paths are given relative to it."""
    folders = [source.parent for source in sources if source.is_absolute()]
    return Path(os.path.commonpath(folders)) if folders else Path()


def _files_in(folder: Path, out: Path, prefix: str) -> Iterator[Input]:
    """The files in a folder, recursively, without `out` and hidden files."""
    errors: list[OSError] = []
    for within, inner, names in os.walk(folder, onerror=errors.append):
        inner[:] = [name for name in sorted(inner) if not _is_hidden(name) and not _is_same(Path(within, name), out)]
        texts = _texts(names)
        for path in (Path(within, name) for name in sorted(names) if not _is_hidden(name)):
            yield from _inputs_of(path, path.relative_to(folder).as_posix(), _side_car_of(path.name, texts), prefix)
    for error in errors:  # a folder that cannot be listed becomes an input, so that it is rejected as unreadable
        path = Path(error.filename)
        yield from _inputs_of(path, path.relative_to(folder).as_posix(), "", prefix)


def _inputs_of(path: Path, relative: str, text: str, prefix: str = "") -> Iterator[Input]:
    """The inputs behind one file: the file itself, or the files in a zip archive that can be read.

    Args:
        path: The file.
        relative: Its path relative to its source.
        text: Name of its side-car; empty for none.
        prefix: Put before the relative path in `Input.source`.
    """
    members: dict[str, zipfile.ZipInfo] | None = None
    if _is_archive(path):
        with suppress(OSError, *BROKEN_ARCHIVE):
            _, members = _archive(path)
    if members is not None:
        folders: dict[str, set[str]] = {}
        for member in members:
            folders.setdefault(os.path.dirname(member), set()).add(os.path.basename(member))
        for member in members:
            name = os.path.basename(member)
            if not any(map(_is_hidden, member.split("/"))):
                within = printable(f"{relative}/{member}")
                member_text = _side_car_of(name, _texts(folders[os.path.dirname(member)]))
                yield Input(path, prefix + within, within, member, member_text)
    else:
        yield Input(path, prefix + printable(relative), printable(relative), "", text)


def _texts(names: list[str] | set[str]) -> set[str]:
    return {name for name in names if name.lower().endswith(".txt")}


def _matches(source: Path) -> Iterator[Path]:
    """The files that match a pattern or that a DICOMDIR lists, or else the file itself, whether or not it exists."""
    if glob.has_magic(str(source)) and not source.exists():
        yield from (Path(match) for match in glob.iglob(str(source), recursive=True) if os.path.isfile(match))
    elif source.name == "DICOMDIR" and source.is_file():
        from cyclic_cli.imaging.dicom.directory import referenced_files  # imported late: rarely needed

        yield from referenced_files(source)
    else:
        yield source


def _relative(path: Path, common: Path) -> str:
    """The relative path of a file that the user named.

    An absolute path is given relative to `common`. A relative path stays as it is, or becomes the file's name when it
    leads out of the working folder.
    """
    if path.is_absolute() and path.is_relative_to(common):
        return path.relative_to(common).as_posix()
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


def _side_car_of(name: str, texts: set[str]) -> str:
    """The side-car of a file among the text files of its folder; empty if it has none or is a text file itself."""
    return "" if name.lower().endswith(".txt") else side_car(Path(name), texts) or ""


@lru_cache(maxsize=64)
def _texts_beside(folder: str) -> set[str]:
    return _texts(os.listdir(folder)) if os.path.isdir(folder) else set()


def _is_hidden(name: str) -> bool:
    """Whether a file is hidden or was left by a file manager, such as Thumbs.db."""
    return (name.startswith(".") and name not in (".", "..")) or name in ("Thumbs.db", "desktop.ini", "__MACOSX")


def _is_same(path: Path, other: Path) -> bool:
    return os.path.abspath(path) == os.path.abspath(other)
