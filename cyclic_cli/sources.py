"""What the user names, as inputs: files, folders, patterns, zip archives and DICOMDIRs, each file once."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Input:
    """One file offered: where it is, and its path relative to the source it came with."""

    path: Path  # the file, or the zip archive that holds it
    source: str  # as UTF-8 text; of several folders each path begins with its folder's name
    relative: str  # the same without that name
    member: str = ""  # its name within the archive

    def open(self) -> BinaryIO:
        """The bytes of the file, as a stream to be closed. Raises OSError or zipfile.BadZipFile."""
        if not self.member:
            return self.path.open("rb")
        return zipfile.ZipFile(self.path).open(self.member)  # type: ignore[return-value]
