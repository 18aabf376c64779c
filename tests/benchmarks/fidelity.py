"""Compares the grey levels of the DICOM reader with those of DCMTK's viewer, at full size and without resizing.

    python tests/benchmarks/fidelity.py FOLDER...

For every file, it prints the largest difference in grey levels of 255 outside padding, or why the file cannot be
compared. Both programs show the same frame through the same window, without overlays. DCMTK reads the file itself where
it has the codec. JPEG 2000, HTJ2K and deflated frames are first decompressed by a decoder that the reader did not use.
"""

import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.uid import ExplicitVRLittleEndian

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import InputError, Rejected
from cyclic_cli.imaging import readers

VIEWERS = {  # program of DCMTK by the part of the transfer syntax after 1.2.840.10008.1.2
    "": "dcm2pnm", ".1": "dcm2pnm", ".2": "dcm2pnm", ".1.99": "dcm2pnm", ".5": "dcm2pnm",
    ".4.50": "dcmj2pnm", ".4.51": "dcmj2pnm", ".4.57": "dcmj2pnm", ".4.70": "dcmj2pnm",
    ".4.80": "dcml2pnm", ".4.81": "dcml2pnm",
}  # fmt: skip
PERCENTILES = (0.5, 99.5)  # range where the file states no window


@dataclass(frozen=True)
class Compared:
    """The difference between two renderings of one frame."""

    largest: float  # in grey levels of 255
    many: int  # pixels that differ by more than 1 grey level
    pixels: int  # compared pixels


def compare(path: Path) -> Compared:
    """Compare the reader with DCMTK. Raises InputError where the reader fails, and RuntimeError where DCMTK fails."""
    preprocessing = Preprocessing(exact=True)
    scan = readers.open_scan(path.read_bytes(), preprocessing, allow_burned_in=True)
    picture = scan.picture(scan.frames[0])
    with tempfile.TemporaryDirectory() as folder:
        try:
            theirs, counts = _viewed(path, picture.frame, Path(folder))
        except RuntimeError:  # DCMTK's codec cannot decode this stream
            theirs, counts = _viewed(path, picture.frame, Path(folder), plain=True)
    ours = picture.pixels * 255
    if ours.shape != theirs.shape:  # pixels that are not square were resampled, which DCMTK does not do
        ours = scan.shown(picture.frame).pixels * 255
    if ours.shape != theirs.shape:
        raise RuntimeError("DCMTK shows a different size")
    difference = np.abs((np.rint(ours) if theirs.dtype == np.uint8 else ours) - theirs.astype(np.float64))[counts]
    return Compared(float(difference.max()), int((difference > 1.01).sum()), difference.size)


def _viewed(path: Path, frame: int, folder: Path, plain: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """DCMTK's rendering of a frame (H, W), as uint8 or as luminance for colour, and the mask of non-padding pixels."""
    header = pydicom.dcmread(path, force=True)
    if "PixelData" not in header:
        raise RuntimeError("DCMTK shows no float pixel data")
    syntax = str(header.file_meta.get("TransferSyntaxUID", "1.2.840.10008.1.2"))
    viewer = VIEWERS.get(syntax.removeprefix("1.2.840.10008.1.2"))
    enhanced = "PerFrameFunctionalGroupsSequence" in header or "SharedFunctionalGroupsSequence" in header
    if viewer is None or enhanced or plain:
        header = _plain_copy(header, frame)
        frame, viewer, path = 0, "dcm2pnm", folder / "plain.dcm"
        header.save_as(path, enforce_file_format=True)
    counts = np.ones((header.Rows, header.Columns), dtype=bool)
    words: list[str] = []
    if str(header.PhotometricInterpretation).startswith("MONOCHROME"):
        stored = _stored(header, frame)
        if "PixelPaddingValue" in header:
            ends = [header.PixelPaddingValue, header.get("PixelPaddingRangeLimit", header.PixelPaddingValue)]
            low, high = sorted(np.array(ends).astype(stored.dtype))
            outside = (stored < low) | (stored > high)
            counts = outside if outside.any() else counts
        words = _window(header, stored[counts])
    view = folder / "view.pnm"
    command = [viewer, "+opb", "-O", "+F", str(frame + 1), *words, str(path), str(view)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if not view.exists():
        raise RuntimeError(f"{viewer}: {(ran.stderr.strip().splitlines() or ['no picture'])[-1]}")
    shown = np.asarray(Image.open(view))
    return (shown @ np.array([0.299, 0.587, 0.114]) if shown.ndim == 3 else shown), counts


def _stored(header: Dataset, frame: int) -> np.ndarray:
    return np.asarray(pydicom.pixels.pixel_array(header, index=frame))


def _window(header: Dataset, stored: np.ndarray) -> list[str]:
    """DCMTK's options for the window of the file, or for the reader's percentiles where the file states none."""
    if header.get("VOILUTSequence"):
        return ["+Wl", "1"]
    if header.get("WindowCenter") is not None and header.get("WindowWidth"):
        center, width = (np.atleast_1d(header[name].value)[0] for name in ("WindowCenter", "WindowWidth"))
        if header.get("VOILUTFunction") == "LINEAR_EXACT":  # DCMTK supports only LINEAR and SIGMOID
            center, width = float(center) + 0.5, float(width) + 1
        return ["+Ww", str(center), str(width), "+Wfs" if header.get("VOILUTFunction") == "SIGMOID" else "+Wfl"]
    if header.get("ModalityLUTSequence"):
        values = np.asarray(pydicom.pixels.apply_modality_lut(stored, header), dtype=np.float64)
    else:
        values = stored * float(header.get("RescaleSlope") or 1) + float(header.get("RescaleIntercept") or 0)
    low, high = np.percentile(values, PERCENTILES)
    if high <= low:
        low, high = values.min(), values.max()
    return ["+Ww", str((low + high + 1) / 2), str(high - low + 1)]


def _plain_copy(header: Dataset, frame: int) -> Dataset:
    """One frame as an uncompressed file with the attributes of its functional groups.

    It is decompressed by a different decoder than the reader's.
    """
    content = _decompressed(header, frame, str(header.file_meta.TransferSyntaxUID))
    content = content.astype(content.dtype.newbyteorder("<"))
    plain = Dataset()
    shared, own = (header.get(f"{whose}FunctionalGroupsSequence") or [] for whose in ("Shared", "PerFrame"))
    parts = [header]
    for group in [*shared[:1], *own[frame : frame + 1]]:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            parts += list(group.get(name) or [])
    for part in parts:
        for element in part:
            if element.tag.group == 0x0028 and element.VR != "UN":
                plain.add(element)
    plain.PhotometricInterpretation = "RGB" if content.ndim == 3 else header.PhotometricInterpretation
    plain.PlanarConfiguration = 0
    plain.NumberOfFrames = 1
    plain.BitsAllocated = 8 * content.dtype.itemsize
    plain.BitsStored = min(header.BitsStored, plain.BitsAllocated)
    plain.HighBit = plain.BitsStored - 1
    plain.SOPClassUID, plain.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "2.25.1"
    plain.file_meta = FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plain.PixelData = content.tobytes() + b"\0" * (content.nbytes % 2)
    plain["PixelData"].VR = "OB" if content.dtype.itemsize == 1 else "OW"
    return plain


def _decompressed(header: Dataset, frame: int, syntax: str) -> np.ndarray:
    """Decode (H, W) or (H, W, 3): GDCM for JPEG 2000, OpenJPH for HTJ2K, zlib for deflated frames, else pydicom."""
    if syntax in ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"):
        return np.asarray(pydicom.pixels.pixel_array(header, index=frame, decoding_plugin="gdcm"))
    count = int(header.get("NumberOfFrames") or 1)
    if syntax.startswith("1.2.840.10008.1.2.4.20"):
        import imagecodecs

        return np.asarray(imagecodecs.htj2k_decode(get_frame(header.PixelData, frame, number_of_frames=count)))
    if syntax == "1.2.840.10008.1.2.8.1":
        plain = zlib.decompress(get_frame(header.PixelData, frame, number_of_frames=count), -15)
        kind = ("u" if not header.PixelRepresentation else "i") + str(header.BitsAllocated // 8)
        pixels = header.Rows * header.Columns
        return np.frombuffer(plain, "<" + kind, pixels).reshape(header.Rows, header.Columns)
    return np.asarray(pydicom.pixels.pixel_array(header, index=frame))


def report(paths: list[Path]) -> Iterator[str]:
    """Yield one line of text per file."""
    for path in paths:
        try:
            compared = compare(path)
            yield f"{path.name:45} {compared.largest:6.2f}  {compared.many} of {compared.pixels} pixels by more than 1"
        except Rejected as error:
            yield f"{path.name:45} rejected: {error.reason}"
        except InputError as error:
            yield f"{path.name:45} skipped: {error.message}"
        except Exception as error:
            yield f"{path.name:45} not compared: {type(error).__name__} {error}"


if __name__ == "__main__":
    for line in report(sorted(path for name in sys.argv[1:] for path in Path(name).rglob("*") if path.is_file())):
        print(line)
