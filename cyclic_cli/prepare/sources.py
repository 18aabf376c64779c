"""What the user names, as inputs: files, folders, patterns, zip archives and DICOMDIRs.

A folder is read recursively, but for hidden files and the output itself. The files of a zip archive are read where they
lie, never unpacked to disk; a DICOMDIR that is named stands for the files it lists. One of either that cannot be read
is an input itself, so that it is rejected by name. Inputs come one by one, so that a million files need no more memory
than ten.
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
from cyclic_cli.prepare.tables import TABLE_NAMES, side_car

LARGEST_MEMBER = 2**32  # bytes of one file of an archive, unpacked
BROKEN_ARCHIVE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, LookupError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Input:
    """One file offered: where it is, and its path relative to the source it came with."""

    path: Path  # the file, or the zip archive that holds it
    source: str  # as UTF-8 text; of several folders each path begins with its folder's name
    relative: str  # the same without that name
    member: str = ""  # its name within the archive, as `_opened` gives it
    side_car: str = ""  # name of the text file in its folder that is its report

    @property
    def name(self) -> str:
        """The file's own name."""
        return PurePosixPath(self.member).name if self.member else self.path.name

    @property
    def given(self) -> str:
        """Its path as the user gave it, as text."""
        return printable(f"{self.path}/{self.member}" if self.member else self.path)

    @property
    def absolute(self) -> str:
        """Where the file is: two names of one file give the same."""
        path = os.path.abspath(self.path)
        return f"{path}/{self.member}" if self.member else path

    def open(self) -> BinaryIO:
        """The file as a stream of bytes. Raises OSError, and zipfile.BadZipFile for a damaged archive."""
        if not self.member:
            return self.path.open("rb")
        archive, members = _archive(self.path)
        return cast(BinaryIO, archive.open(members[self.member]))

    def read(self) -> bytes:
        """The file's content. Raises Rejected: missing, unreadable, empty, broken_archive, too_large."""
        if not self.member and not _is_archive(self.path):
            return readers.content_of(self.path)
        try:
            archive, members = _archive(self.path)
            found = members[self.member]  # an archive that could not be opened has no member
            if found.file_size > LARGEST_MEMBER:
                raise Rejected("too_large", f"more than {LARGEST_MEMBER // 2**30} GiB unpacked")
            content = archive.read(found)
        except OSError as error:
            raise Rejected("unreadable", error.strerror or "") from error
        except RuntimeError as error:  # what zipfile raises for an encrypted file
            raise Rejected("unreadable", "the archive is encrypted") from error
        except BROKEN_ARCHIVE as error:
            raise Rejected("broken_archive") from error
        if not content:
            raise Rejected("empty")
        return content

    def ends(self, length: int = 4096) -> bytes:
        """Size, first and last bytes, which tell it from others of its name; empty where it cannot be read."""
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


@lru_cache(maxsize=1)  # the files of an archive come one after another
def _opened(path: str, _: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """An archive and its files by name; the second file of one name, which a zip may hold, is called `name (2)`."""
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
    """Every file behind the sources, in no order; one that is named twice comes twice.

    Args:
        sources: Files, there or not, folders, glob patterns, zip archives and DICOMDIRs.
        out: The output's folder, which is no input.
    """
    folders = {source for source in sources if source.is_dir()}
    common = _common_folder([source for source in sources if source not in folders])
    for source in sources:
        if source in folders:
            prefix = f"{printable(source.resolve().name)}/" if len(folders) > 1 else ""
            yield from _files_in(source, out, prefix)
        else:
            for path in _matches(source):
                own = _own_text(path.name, _texts_beside(str(path.parent)))
                yield from _offered(path, _relative(path, common), own)


def expand(sources: list[Path], out: Path) -> list[Input]:
    """The files behind sources, each once, sorted, without report tables and side-cars."""
    found = {item.absolute: item for item in walk(sources, out) if item.relative not in TABLE_NAMES}
    for item in list(found.values()):
        found.pop(beside(item, item.side_car), None)
    return sorted(found.values(), key=lambda item: (item.source, item.absolute))


def stream(paths: Iterable[Path], out: Path | None) -> Iterator[Input]:
    """The files behind paths, one path after another, without report tables, and of folders without text files."""
    for path in paths:
        for item in walk([path], out or Path(os.devnull)):
            is_text = item.name.lower().endswith(".txt") and item.path != path
            if not is_text and item.name not in TABLE_NAMES:
                yield item


def beside(item: Input, name: str) -> str:
    """The `absolute` of a file of that name in an input's folder; empty for no name."""
    return f"{os.path.dirname(item.absolute)}/{name}" if name else ""


def printable(path: Path | str) -> str:
    """A path as UTF-8 text. On disk a name is any bytes; those that are no text read `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _common_folder(sources: list[Path]) -> Path:
    """The folder that holds every file named by an absolute path, which their paths are then relative to."""
    folders = [source.parent for source in sources if source.is_absolute()]
    return Path(os.path.commonpath(folders)) if folders else Path()


def _files_in(folder: Path, out: Path, prefix: str) -> Iterator[Input]:
    """The files of a folder, recursively but for `out` and for hidden files."""
    closed: list[OSError] = []
    for within, inner, names in os.walk(folder, onerror=closed.append):
        inner[:] = [name for name in sorted(inner) if not _is_hidden(name) and not _is_same(Path(within, name), out)]
        texts = _texts(names)
        for path in (Path(within, name) for name in sorted(names) if not _is_hidden(name)):
            yield from _offered(path, path.relative_to(folder).as_posix(), _own_text(path.name, texts), prefix)
    for error in closed:  # a folder that cannot be listed is not passed over: it is rejected as unreadable
        path = Path(error.filename)
        yield from _offered(path, path.relative_to(folder).as_posix(), "", prefix)


def _offered(path: Path, relative: str, beside_it: str, prefix: str = "") -> Iterator[Input]:
    """A file as an input; of a zip archive the files within, if it can be read."""
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
                own = _own_text(name, _texts(folders[os.path.dirname(member)]))
                yield Input(path, prefix + within, within, member, own)
    else:
        yield Input(path, prefix + printable(relative), printable(relative), "", beside_it)


def _texts(names: list[str] | set[str]) -> set[str]:
    return {name for name in names if name.lower().endswith(".txt")}


def _matches(source: Path) -> Iterator[Path]:
    """The files of a pattern or of a DICOMDIR, or the file itself, there or not."""
    if glob.has_magic(str(source)) and not source.exists():
        yield from (Path(match) for match in glob.iglob(str(source), recursive=True) if os.path.isfile(match))
    elif source.name == "DICOMDIR" and source.is_file():
        from cyclic_cli.imaging.dicom.directory import referenced_files  # here: few need it

        yield from referenced_files(source)
    else:
        yield source


def _relative(path: Path, common: Path) -> str:
    """A named file's path relative to `common`, its name where it climbs out of the working folder."""
    if path.is_absolute() and path.is_relative_to(common):
        return path.relative_to(common).as_posix()
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


def _own_text(name: str, texts: set[str]) -> str:
    """The side-car of a file among the text files of its folder; empty where it has none, or is text itself."""
    return "" if name.lower().endswith(".txt") else side_car(Path(name), texts) or ""


@lru_cache(maxsize=64)
def _texts_beside(folder: str) -> set[str]:
    return _texts(os.listdir(folder)) if os.path.isdir(folder) else set()


def _is_hidden(name: str) -> bool:
    """What file managers leave behind, such as .DS_Store, is no input."""
    return (name.startswith(".") and name not in (".", "..")) or name in ("Thumbs.db", "desktop.ini", "__MACOSX")


def _is_same(path: Path, other: Path) -> bool:
    return os.path.abspath(path) == os.path.abspath(other)
