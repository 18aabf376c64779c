"""DICOM files with known grey levels, and a function that reads them."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.data import get_testdata_file

from cyclic_cli.config import Preprocessing
from cyclic_cli.imaging.dicom.header import Facts, Identities
from cyclic_cli.imaging.dicom.reading import DicomFile

RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16) * 16
"""Stored values of an image, 0 to 4080, with 12 bits."""
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
"""Attributes of a window over the full range of 12 bits."""
RAMP_IN_WINDOW = np.clip((RAMP - 2047.5) / 4095 + 0.5, 0, 1)
"""Grey levels of RAMP through WINDOW."""


def read(path: Path, **settings: Any) -> tuple[np.ndarray, Facts, Identities]:
    """Grey levels and facts of the first selected frame, and the identities in the header."""
    file = DicomFile(path.read_bytes(), Preprocessing(**settings))
    shown = file.shown(file.frames[0])
    return shown.pixels, shown.facts, file.identities


def bundled(name: str) -> Path:
    """A file that is installed with pydicom. Nothing is downloaded."""
    return Path(str(get_testdata_file(name, download=False)))
