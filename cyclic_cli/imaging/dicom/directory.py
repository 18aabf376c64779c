"""A DICOMDIR: the index of a CD or an export, which lists the files of a file-set (PS3.3 annex F)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pydicom


def referenced_files(path: Path) -> Iterator[Path]:
    """The files that a DICOMDIR lists, there or not. One that would lie outside of its folder is left out.

    A DICOMDIR that cannot be read is all there is: it is rejected as any other damaged file, and ends no job.
    """
    try:
        records = pydicom.dcmread(path)["DirectoryRecordSequence"].value
        listed = [record.get("ReferencedFileID") for record in records]
    except Exception:  # a damaged file makes the parser raise almost anything
        yield path
        return
    for names in listed:
        parts = [names] if isinstance(names, str) else [str(name) for name in names or []]
        if parts and not any(part in ("", ".", "..") or "/" in part or "\\" in part for part in parts):
            file = path.parent.joinpath(*parts)
            lower = path.parent.joinpath(*map(str.lower, parts))  # as some systems copy a CD
            yield lower if os.path.exists(lower) and not os.path.exists(file) else file
