"""Reads a DICOMDIR, the index of the files on a CD or in an export (PS3.3 annex F)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pydicom


def referenced_files(path: Path) -> Iterator[Path]:
    """The files that a DICOMDIR lists, whether they exist or not. Files outside its folder are left out.

    If the DICOMDIR cannot be read, its own path is yielded. It is then rejected like any other damaged file, and the
    job continues.
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
            lower = path.parent.joinpath(*map(str.lower, parts))  # some systems copy a CD with lower-case names
            yield lower if os.path.exists(lower) and not os.path.exists(file) else file
