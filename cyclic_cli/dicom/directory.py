"""A DICOMDIR: the index of a CD or an export, which lists the files of a file-set (PS3.3 annex F)."""

from collections.abc import Iterator
from pathlib import Path

import pydicom

from cyclic_cli.errors import CyclicError


def referenced_files(path: Path) -> Iterator[Path]:
    """The files that a DICOMDIR lists, there or not. One that would lie outside of its folder is left out.

    Raises:
        CyclicError: the file is no DICOMDIR.
    """
    try:
        records = pydicom.dcmread(path)["DirectoryRecordSequence"].value
        listed = [record.get("ReferencedFileID") for record in records]
    except Exception as error:  # a damaged file makes the parser raise almost anything
        raise CyclicError(f"{path} is no readable DICOMDIR.", "Name the folder it lies in instead.") from error
    for names in listed:
        parts = [names] if isinstance(names, str) else [str(name) for name in names or []]
        if parts and not any(part in ("", ".", "..") or "/" in part or "\\" in part for part in parts):
            file = path.parent.joinpath(*parts)
            lower = path.parent.joinpath(*map(str.lower, parts))  # as some systems copy a CD
            yield lower if lower.exists() and not file.exists() else file
