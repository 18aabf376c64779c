"""Writes synthetic radiographs in every common encoding, as input for benchmarks. No two files are equal."""

import io
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from cyclic_cli.phantom.dataset import write_demo

BITS = 12  # bits stored per pixel
NUMBER = "27182818284"  # identifier in the header; each file replaces it, so patients, studies and files differ


@dataclass(frozen=True)
class Kind:
    """A class of files.

    `encode` turns an image (H, W) uint16 of 12 bits into the content of a file; it is None where the user provides the
    files. `files` is the number of files to measure; a second run has twice as many. `dcmtk` is the program of DCMTK
    that shows such a file, or the reason why none does.
    """

    encode: Callable[[np.ndarray], bytes] | None
    files: int = 128
    suffix: str = ".dcm"
    dcmtk: str = "dcm2pnm"


def draw(count: int, longest: int | None = None) -> list[np.ndarray]:
    """Synthetic radiographs (H, W) uint16 of 12 bits. The longer side has 2,000 to 3,000 pixels, or `longest`."""
    images = []
    with tempfile.TemporaryDirectory() as folder:
        write_demo(Path(folder) / "drawn", count, full_size=True)
        for path in sorted(Path(folder).rglob("*.dcm")):
            header = pydicom.dcmread(path)
            levels = header.pixel_array / np.float32(2**header.BitsStored - 1)
            if header.PhotometricInterpretation == "MONOCHROME1":
                levels = 1 - levels
            images.append(_resized(levels, longest / max(levels.shape) if longest else 1))
    return [np.rint(image * (2**BITS - 1)).astype(np.uint16) for image in images]


def small(side: int) -> bytes:
    """A DICOM file of `side` × `side` 8-bit pixels, which are the last bytes of the file."""
    return _saved(_header(np.arange(side * side).reshape(side, side).astype(np.uint8), bits=8))


def write(kind: Kind, originals: Iterable[bytes], folder: Path, count: int) -> int:
    """Write `count` files, made from `originals`, to `folder`. Returns their mean size in bytes."""
    folder.mkdir(parents=True)
    size = 0
    for number, content in zip(range(count), cycle(originals), strict=False):
        path = folder / f"{number:05d}{kind.suffix}"
        path.write_bytes(numbered(content, number))
        size += path.stat().st_size
    return size // count


def numbered(content: bytes, number: int) -> bytes:
    """The file as one of another patient. A PNG or JPEG stays the same image, in a file that differs."""
    if content[128:132] != b"DICM":
        return content + b"%06d" % number  # decoders ignore bytes after the end of the image
    own = f"1{number:010d}"
    if NUMBER.encode() in content[:4096]:
        return content[:4096].replace(NUMBER.encode(), own.encode()) + content[4096:]
    header = pydicom.dcmread(io.BytesIO(content))  # deflated
    header.PatientID, header.SOPInstanceUID, header.StudyInstanceUID = own, f"2.25.{own}", f"2.25.2.{own}"
    return _saved(header)


# ------------------------------------------------------------------------------------------------- encodings


def _header(pixels: np.ndarray, bits: int = BITS, **attributes: object) -> Dataset:
    """A radiograph as a dataset with the attributes that readers need. `pixels` are (H, W) uint8, uint16 or int16."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = DigitalXRayImageStorageForPresentation, f"2.25.{NUMBER}"
    header.Modality, header.PatientID, header.StudyInstanceUID = "DX", NUMBER, f"2.25.2.{NUMBER}"
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = pixels.shape
    header.BitsAllocated, header.BitsStored, header.HighBit = 8 * pixels.itemsize, bits, bits - 1
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    header.WindowCenter, header.WindowWidth = 2 ** (bits - 1), 2**bits
    header.ImagerPixelSpacing = [0.14, 0.14]
    for name, value in attributes.items():
        setattr(header, name, value)
    header.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    header["PixelData"].VR = "OW"
    return header


def _saved(header: Dataset) -> bytes:
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _uncompressed(image: np.ndarray) -> bytes:
    return _saved(_header(image))


def _padded(image: np.ndarray) -> bytes:
    """A file where an eighth of the image's height is padding, at the top and at the bottom."""
    image = image.copy()
    edge = len(image) // 8
    image[:edge] = image[-edge:] = 0
    return _saved(_header(image, PixelPaddingValue=0))


def _deflated(image: np.ndarray) -> bytes:
    header = _header(image)
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return _saved(header)


def _compressed(syntax: str, **options: object) -> Callable[[np.ndarray], bytes]:
    def encode(image: np.ndarray) -> bytes:
        header = _header(image)
        header.compress(syntax, generate_instance_uid=False, **options)
        return _saved(header)

    return encode


def _jpeg2000(syntax: str, **options: object) -> Callable[[np.ndarray], bytes]:
    encode = _compressed(syntax, **options)
    return lambda image: encode(_resized(image, min(1, 1760 / max(image.shape)), square=True))


def _jpeg_baseline(image: np.ndarray) -> bytes:
    levels = (image >> BITS - 8).astype(np.uint8)
    header = _header(levels, bits=8, LossyImageCompression="01")
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=90)
    header.PixelData = encapsulate([buffer.getvalue()])
    header["PixelData"].is_undefined_length = True
    header["PixelData"].VR = "OB"
    header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return _saved(header)


def _jpeg_lossless(image: np.ndarray) -> bytes:
    """A file encoded by JPEG process 14, selection value 1. GDCM is used, since pydicom cannot encode it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.dcm"
        path.write_bytes(_uncompressed(image))
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(path))
        if not writer.Write():
            raise RuntimeError("GDCM could not write JPEG lossless")
        return path.read_bytes()


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image << 16 - BITS).save(buffer, "PNG")
    return buffer.getvalue()


def _ct(image: np.ndarray) -> bytes:
    """A CT image of 512 × 512 signed values with a lung window."""
    values = _resized(image, 512 / max(image.shape), square=True).astype(np.int16) // 2
    attributes = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": -600, "WindowWidth": 1500}
    return _saved(_header(values, SOPClassUID=CTImageStorage, Modality="CT", PixelSpacing=[0.7, 0.7], **attributes))


def _resized(image: np.ndarray, factor: float, square: bool = False) -> np.ndarray:
    height, width = (max(1, round(side * factor)) for side in image.shape)
    if square:
        height = width = max(height, width)
    resized = Image.fromarray(image.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).astype(image.dtype)


NO_JPEG2000, DICOM_ONLY = "no: DCMTK has no JPEG 2000 decoder", "no: reads DICOM only"
KINDS = {
    "JPEG originals": Kind(None, files=512, suffix=".jpg", dcmtk=DICOM_ONLY),
    "uncompressed, 12 bits in 16": Kind(_uncompressed),
    "padded, uncompressed": Kind(_padded),
    "deflated": Kind(_deflated),
    "RLE": Kind(_compressed(RLELossless)),
    "JPEG baseline, 8 bits": Kind(_jpeg_baseline, dcmtk="dcmj2pnm"),
    "JPEG lossless, SV1": Kind(_jpeg_lossless, dcmtk="dcmj2pnm"),
    "JPEG-LS": Kind(_compressed(JPEGLSLossless), dcmtk="dcml2pnm"),
    "JPEG 2000 lossless": Kind(_jpeg2000(JPEG2000Lossless), dcmtk=NO_JPEG2000),
    "JPEG 2000 lossy": Kind(_jpeg2000(JPEG2000, j2k_cr=[20]), dcmtk=NO_JPEG2000),
    "CT 512×512, uncompressed": Kind(_ct, files=1024),
    "PNG, 16 bits": Kind(_png, suffix=".png", dcmtk=DICOM_ONLY),
}
