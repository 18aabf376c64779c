"""DICOM files: read the way a viewer shows them, and radiographs written. The only module that knows pydicom.

From stored value to grey level in [0, 1], in the order of the standard (PS3.3 C.11, PS3.4 N.2):

1. decode one frame (the middle one), with the first installed decoder that manages; YBR becomes RGB
2. find the padding: Pixel Padding Value up to Pixel Padding Range Limit, in stored values (PS3.3 C.7.5.1.1.2)
3. modality transform: Modality LUT, else Rescale Slope and Intercept (PS3.3 C.11.1); for enhanced images of this frame
4. values of interest: VOI LUT, else the first window (LINEAR, LINEAR_EXACT or SIGMOID, PS3.3 C.11.2), else the
   range from the 0.5th to the 99.5th percentile of what is not padding
5. photometric interpretation: MONOCHROME1 is inverted after the window, never before; padding becomes black
6. colour (RGB, PALETTE COLOR) skips 2 to 5 and becomes luminance (ITU-R BT.601)

What is unusual: nothing of the header leaves this module but an allow-list (`Facts`), of it only terms that the
standard defines, and the identities that `identity.Keyer` turns into keys. pydicom's own warnings quote values
from the header, so they are silenced here. What is written depends on no clock, host or chance.
"""

import hashlib
import logging
import os
import re
import sys
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.config
import pydicom.multival
import pydicom.pixels
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from cyclic_cli.errors import InputError, Rejected, Skipped
from cyclic_cli.storage import replacing

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

PERCENTILES = (0.5, 99.5)  # of the pixels that are not padding, where the file states no window
LARGEST_FRAME = 2**30  # samples; the largest film of this field has about 2**25
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's mode L

NOT_IMAGES = {
    "1.2.840.10008.1.3.10": "DICOMDIR",
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.5": "surface segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "label map segmentation",
    "1.2.840.10008.5.1.4.1.1.66": "raw data object",
    "1.2.840.10008.5.1.4.1.1.66.1": "spatial registration",
}
"""SOP classes that are valid and hold no image to learn from (PS3.4 B.5), with what they are."""
NOT_IMAGE_FAMILIES = {
    "1.2.840.10008.5.1.4.1.1.11.": "presentation state",
    "1.2.840.10008.5.1.4.1.1.88.": "structured report",
    "1.2.840.10008.5.1.4.1.1.9.": "waveform",
    "1.2.840.10008.5.1.4.1.1.104.": "encapsulated document",
    "1.2.840.10008.5.1.4.1.1.481.": "radiotherapy object",
}

MODALITIES = set(
    "AR BI BMD CR CT DG DX EC EPS ES GM HD IO IVOCT IVUS LS MG MR NM OAM OCT OP OPM OPT OPV OT PT PX RF RG SM TG US "
    "XA XC".split()
)  # PS3.3 C.7.3.1.1.1, those of images
VIEWS = set("AP PA LL RL RLD LLD RLO LLO MLO CC LM ML LAO RAO LPO RPO FB SIO ISO LMO XCC XCCL XCCM".split())
BODY_PARTS = set(
    "ABDOMEN ABDOMENPELVIS ANKLE ARM BACK BLADDER BRAIN BREAST BRONCHUS CALCANEUS CAROTID CERVICALSPINE CHEST "
    "CHESTABDOMEN CLAVICLE COCCYX COLON CSPINE ELBOW EYE FEMUR FINGER FOOT FOREARM HAND HEAD HEADNECK HEART HIP "
    "HUMERUS JAW KIDNEY KNEE LARYNX LEG LIVER LSPINE LUMBARSPINE LUNG MAXILLA NECK ORBIT PANCREAS PELVIS PROSTATE "
    "RIB SCAPULA SHOULDER SINUS SKULL SPINE SPLEEN SSPINE STERNUM STOMACH TESTIS THIGH THORACICSPINE THORAX THUMB "
    "TIBIA TIBIAFIBULA TOE TSPINE UTERUS WHOLEBODY WRIST ZYGOMA".split()
)  # PS3.16 annex L
PHOTOMETRIC = {"MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420",
               "YBR_ICT", "YBR_RCT"}  # fmt: skip  # PS3.3 C.7.6.3.1.2


@dataclass(frozen=True)
class Facts:
    """What of a header may be kept. A term the standard does not define reads `other`, a missing one is empty."""

    modality: str = ""
    body_part: str = ""
    view: str = ""
    sex: str = ""
    age: str = ""  # a band of five years: "40-44"; "90+"
    photometric: str = ""
    bits: int = 0  # stored per sample
    pixel_spacing: float = 0.0  # mm between rows, 0 where unknown
    height: int = 0  # pixels of the original
    width: int = 0


@dataclass(frozen=True)
class Identities:
    """Who and what a header says this is. Held in memory only, to be turned into keys; never written or shown."""

    patient: tuple[str, ...] = ()  # Patient ID and, where present, its issuer
    study: str = ""
    instance: str = ""

    def __repr__(self) -> str:
        return "Identities(hidden)"


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes are DICOM: marked after a preamble, or a data set that starts without one."""
    if head[128:132] == b"DICM":
        return True
    little = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"
    big = head[:2] in (b"\x00\x02", b"\x00\x08") and head[2:3] == b"\x00"
    explicit = head[4:6].isalpha() and head[4:6].isupper()  # a value representation such as UL or CS
    implicit = len(head) >= 8 and int.from_bytes(head[4:8], "little") < 256  # the length of a short first element
    return (little or big) and (explicit or (little and implicit))


def read(path: Path) -> tuple[np.ndarray, Facts, Identities]:
    """Read the middle frame of a DICOM file as a viewer would show it.

    Returns:
        Pixels (H, W) float32 in [0, 1], 0 black; the header's allowed facts; the header's identities.

    Raises:
        Skipped: a valid object without an image to learn from.
        Rejected: broken_header, no_pixels, too_large, no_decoder or broken_pixels.
    """
    with _quiet():
        header = _parse(path)
        try:
            _refuse_what_is_no_image(header)
            frame = _frame_number(header)
            stored = _decode(header, frame)
            pixels = _render(header, stored, frame)
            return pixels, _facts(header, pixels.shape), _identities(header)
        except InputError as error:
            with suppress(Exception):  # the part that names them may be damaged too
                error.identities = _identities(header)
            raise
        except Exception as error:  # attributes are parsed when they are first read, and may be anything
            raise Rejected("broken_header", f"an attribute is missing or wrong ({type(error).__name__})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep decoders' complaints off the terminal: C libraries write them straight to file descriptor 2."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _parse(path: Path) -> Dataset:
    try:
        header = pydicom.dcmread(path, force=True)
    except OSError as error:
        raise Rejected("unreadable", error.strerror or "") from error
    except Exception as error:  # a damaged file makes the parser raise almost anything
        raise Rejected("broken_header", f"the file cannot be parsed ({type(error).__name__})") from error
    if "TransferSyntaxUID" not in header.file_meta:  # no file meta: it is what the parser found it to be
        implicit, little = header.original_encoding
        header.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        )
    return header


def _refuse_what_is_no_image(header: Dataset) -> None:
    sop_class = str(header.get("SOPClassUID", "") or header.file_meta.get("MediaStorageSOPClassUID", ""))
    if sop_class in NOT_IMAGES:
        raise Skipped(NOT_IMAGES[sop_class])
    for family, kind in NOT_IMAGE_FAMILIES.items():
        if sop_class.startswith(family) and sop_class != "1.2.840.10008.5.1.4.1.1.481.1":  # RT Image is a film
            raise Skipped(kind)
    if not any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise Rejected("no_pixels")
    samples = [_whole(header, name) for name in ("Rows", "Columns")] + [_whole(header, "SamplesPerPixel", 1)]
    if min(samples) < 1:
        raise Rejected("broken_header", "Rows, Columns or Samples per Pixel is missing or zero")
    if np.prod([float(number) for number in samples]) > LARGEST_FRAME:
        raise Rejected("too_large", f"{samples[1]}×{samples[0]} pixels are declared")


def _whole(header: Dataset, name: str, default: int = 0) -> int:
    try:
        return int(header.get(name, default) or default)
    except (TypeError, ValueError):
        raise Rejected("broken_header", f"{name} is not a number") from None


def _frame_number(header: Dataset) -> int:
    return max(1, _whole(header, "NumberOfFrames", 1)) // 2


def _decode(header: Dataset, frame: int) -> np.ndarray:
    """One frame's stored values: (H, W), or (H, W, 3) with YBR already turned into RGB."""
    try:
        stored = pydicom.pixels.pixel_array(header, index=frame)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # decoders raise almost anything on damaged data, panics of Rust included
        words = str(error)
        if "missing dependencies" in words or "does not support" in words:
            raise Rejected("no_decoder", f"transfer syntax {header.file_meta.TransferSyntaxUID.name}") from error
        raise Rejected("broken_pixels", f"the pixel data cannot be decoded ({type(error).__name__})") from error
    return stored


def _render(header: Dataset, stored: np.ndarray, frame: int) -> np.ndarray:
    """Steps 2 to 6 of the module's list: stored values to (H, W) float32 in [0, 1]."""
    photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        if header.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
            _swap_palette(header)
        colour = apply_color_lut(stored, header)
        return _luminance(colour, 2 ** (8 * colour.dtype.itemsize) - 1)
    if stored.ndim == 3:
        return _luminance(stored, 2 ** _whole(header, "BitsStored", 8 * stored.dtype.itemsize) - 1)
    padding = _padding(header, stored)
    groups = _frame_groups(header, frame)
    modality = _modality(header, groups, stored)
    grey = _values_of_interest(header, groups, modality, padding)
    if stored.dtype.kind == "f":
        np.nan_to_num(grey, copy=False)
    if photometric == "MONOCHROME1":
        np.subtract(1, grey, out=grey)
    if padding is not None:
        grey[padding] = 0
    return grey


def _swap_palette(header: Dataset) -> None:
    """Turn a palette's 16-bit words, which pydicom hands out as they stand in the file, to little endian."""
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTableData"
        words = header.get(name)
        if isinstance(words, bytes) and int(header[f"{colour}PaletteColorLookupTableDescriptor"].value[2]) > 8:
            header[name].value = np.frombuffer(words, ">u2").astype("<u2").tobytes()


def _luminance(colour: np.ndarray, largest: int) -> np.ndarray:
    """(H, W, 3) integers up to `largest` to (H, W) float32 in [0, 1]."""
    return np.clip(colour[..., :3].astype(np.float32) @ LUMINANCE / np.float32(largest), 0, 1)


def _padding(header: Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Where the image was padded to its rectangle: (H, W) bool, or None."""
    if "PixelPaddingValue" not in header or stored.dtype.kind == "f":
        return None
    # US and SS are both possible, and files disagree with themselves: compare in the stored values' own kind.
    value = np.array(int(header.PixelPaddingValue)).astype(stored.dtype)
    limit = np.array(int(header.get("PixelPaddingRangeLimit", header.PixelPaddingValue))).astype(stored.dtype)
    mask = (stored >= min(value, limit)) & (stored <= max(value, limit))
    return mask if mask.any() and not mask.all() else None


def _frame_groups(header: Dataset, frame: int) -> list[Dataset]:
    """The functional groups that hold for a frame of an enhanced image: its own, then the shared ones."""
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    return ([own[frame]] if frame < len(own) else []) + list(shared[:1])


def _group(groups: list[Dataset], name: str) -> Dataset | None:
    for group in groups:
        if group.get(name):
            return group[name].value[0]  # type: ignore[no-any-return]
    return None


def _modality(header: Dataset, groups: list[Dataset], stored: np.ndarray) -> np.ndarray:
    """Stored values to what they mean (Hounsfield units, optical density ...): (H, W) float32."""
    transform = _group(groups, "PixelValueTransformationSequence")
    return np.asarray(apply_modality_lut(stored, transform or header), dtype=np.float32)


def _values_of_interest(
    header: Dataset, groups: list[Dataset], values: np.ndarray, padding: np.ndarray | None
) -> np.ndarray:
    """The stated VOI LUT or window, else robust percentiles: (H, W) float32 in [0, 1]."""
    stated = _group(groups, "FrameVOILUTSequence") or header
    if stated.get("VOILUTSequence"):
        return _voi_lut(stated.VOILUTSequence[0], values)
    center, width = _first(stated.get("WindowCenter")), _first(stated.get("WindowWidth"))
    if center is not None and width is not None and width > 0:
        return window(values, center, width, str(stated.get("VOILUTFunction", "LINEAR") or "LINEAR"))
    shown = values if padding is None else values[~padding]
    shown = shown[np.isfinite(shown)]
    if shown.size == 0:
        raise Rejected("blank")
    low, high = (float(value) for value in np.percentile(shown, PERCENTILES))
    if high <= low:  # nearly everything has one value: a mark on an empty field
        low, high = float(shown.min()), float(shown.max())
    scaled = (values - np.float32(low)) / np.float32(max(high - low, 1e-30))
    return np.clip(np.nan_to_num(scaled, nan=0.0), 0, 1, dtype=np.float32)


def _voi_lut(item: Dataset, values: np.ndarray) -> np.ndarray:
    """PS3.3 C.11.2.1.1: values below the first mapped one take the first entry, above the last one the last."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    count = entries or 2**16
    data = item["LUTData"].value
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    table = table.astype(np.uint16)[:count]
    if first > 2**15 - 1 and values.min() < 0:
        first -= 2**16  # the descriptor was read unsigned although the values are signed
    index = np.clip(values - first, 0, len(table) - 1).astype(np.int64)
    return np.clip(table[index] / np.float32(2**bits - 1), 0, 1).astype(np.float32)


def window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Values to [0, 1] by a window (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: (H, W) float, after the modality transform.
        center: Window Center, in the same unit.
        width: Window Width, above 0; LINEAR asks for at least 1.
        function: LINEAR, LINEAR_EXACT or SIGMOID; anything else counts as LINEAR.
    """
    shifted = values.astype(np.float32) - np.float32(center)
    if function == "SIGMOID":
        return (1 / (1 + np.exp(-4 * shifted / np.float32(width)))).astype(np.float32)
    if function == "LINEAR_EXACT":
        return np.clip(shifted / np.float32(width) + 0.5, 0, 1)
    if width <= 1:  # the formula divides by width - 1; a width of 1 is a threshold at center - 0.5
        return (shifted > -0.5).astype(np.float32)
    return np.clip((shifted + 0.5) / np.float32(width - 1) + 0.5, 0, 1)


def _first(value: Any) -> float | None:
    """The first of possibly several numbers; None where there is none."""
    if isinstance(value, pydicom.multival.MultiValue | list | tuple):
        value = value[0] if len(value) else None
    try:
        return None if value in (None, "") else float(value)
    except (TypeError, ValueError):
        return None


def _facts(header: Dataset, shape: tuple[int, ...]) -> Facts:
    spacing = header.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    sex = str(header.get("PatientSex") or "").strip().upper()
    return Facts(
        modality=_term(header, "Modality", MODALITIES),
        body_part=_term(header, "BodyPartExamined", BODY_PARTS),
        view=_term(header, "ViewPosition", VIEWS),
        sex=sex if sex in {"", "M", "F", "O"} else "other",
        age=_age_band(str(header.get("PatientAge") or "")),
        photometric=_term(header, "PhotometricInterpretation", PHOTOMETRIC),
        bits=_whole(header, "BitsStored", 0),
        pixel_spacing=_first(spacing) or 0.0,
        height=shape[0],
        width=shape[1],
    )


def _term(header: Dataset, name: str, defined: set[str]) -> str:
    value = str(header.get(name) or "").strip().upper()
    return value if not value or value in defined else "other"


def _age_band(age: str) -> str:
    """PatientAge (`045Y`, `006M`) as a band of five years; everybody from 90 on is together."""
    found = re.fullmatch(r"(\d{3})([DWMY])", age.strip())
    if not found:
        return ""
    years = int(found[1]) if found[2] == "Y" else int(found[1]) // {"D": 365, "W": 52, "M": 12}[found[2]]
    return "90+" if years >= 90 else f"{years // 5 * 5}-{years // 5 * 5 + 4}"


def _identities(header: Dataset) -> Identities:
    def text(name: str) -> str:
        return str(header.get(name) or "").strip()

    patient = (text("PatientID"), text("IssuerOfPatientID"))
    return Identities(
        patient=tuple(part for part in patient if part) if patient[0] else (),
        study=text("StudyInstanceUID"),
        instance=text("SOPInstanceUID"),
    )


# ---------------------------------------------------------------------------------------------------- writing

TRANSFER_SYNTAXES = {"explicit": ExplicitVRLittleEndian, "rle": RLELossless, "jpeg2000": JPEG2000Lossless}
"""Names accepted by `write_radiograph` for the transfer syntaxes (PS3.5 section 10 and annex A)."""

_SOP_CLASSES = {"CR": ComputedRadiographyImageStorage, "DX": DigitalXRayImageStorageForPresentation}
_VIEW_CODES = {
    "PA": ("272479007", "postero-anterior"),
    "AP": ("399348003", "antero-posterior"),
    "LL": ("399173006", "left lateral"),
}
"""SNOMED CT codes and meanings of the views, from context group 4010 (PS3.16)."""


def derived_uid(*parts: object) -> str:
    """A UID under 2.25 (PS3.5 annex B.2) that depends on `parts` alone."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}"


def write_radiograph(
    path: Path,
    pixels: np.ndarray,
    *,
    modality: str,
    photometric: str,
    bits_stored: int,
    transfer_syntax: str,
    windows: tuple[tuple[float, float], ...],
    pixel_spacing: float,
    view: str,
    patient_id: str,
    patient_name: str,
    patient_sex: str,
    patient_age: int,
    study_uid: str,
    series_uid: str,
    image_uid: str,
    study_date: str,
    study_time: str,
    series_number: int = 1,
    image_number: int = 1,
) -> None:
    """Write one chest radiograph.

    `pixels` (rows, columns) are the stored values, below 2**`bits_stored`. `modality` is CR or DX,
    `photometric` MONOCHROME1 or MONOCHROME2, `transfer_syntax` a key of `TRANSFER_SYNTAXES`, `view` PA, AP or
    LL. Each of `windows` is a (centre, width) in stored values (PS3.3 section C.11.2); DX demands at least
    one. `pixel_spacing` is in mm at the detector, `patient_age` in years; dates and times are DICOM text
    (YYYYMMDD, HHMMSS). The file appears under its name only when complete.
    """
    if modality == "DX" and not windows:
        raise ValueError("a DX image for presentation must state a window")
    dataset = Dataset()
    _add_patient(dataset, patient_id, patient_name, patient_sex, patient_age)
    _add_study(dataset, study_uid, study_date, study_time)
    dataset.SOPClassUID, dataset.SOPInstanceUID = _SOP_CLASSES[modality], image_uid
    dataset.Modality, dataset.SeriesInstanceUID, dataset.SeriesNumber = modality, series_uid, series_number
    dataset.InstanceNumber = image_number
    dataset.BodyPartExamined, dataset.ViewPosition = "CHEST", view
    dataset.PatientOrientation = ["P", "F"] if view == "LL" else ["L", "F"]
    _add_pixels(dataset, pixels, photometric, bits_stored, windows)
    if modality == "DX":
        _add_dx(dataset, photometric, pixel_spacing, view)
    else:
        dataset.ImageType = ["ORIGINAL", "PRIMARY"]
        dataset.ImagerPixelSpacing = [pixel_spacing, pixel_spacing]
        dataset.AcquisitionDate, dataset.AcquisitionTime = study_date, study_time
    _save(dataset, path, TRANSFER_SYNTAXES[transfer_syntax])


def _add_patient(dataset: Dataset, patient_id: str, patient_name: str, sex: str, age: int) -> None:
    """Patient and Patient Study modules (PS3.3 sections C.7.1.1 and C.7.2.2)."""
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName, dataset.PatientID = patient_name, patient_id
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "", sex, f"{age:03d}Y"


def _add_study(dataset: Dataset, study_uid: str, date: str, time: str) -> None:
    """General Study and General Equipment modules (PS3.3 sections C.7.2.1 and C.7.5.1), and the image's date."""
    dataset.StudyInstanceUID, dataset.StudyDate, dataset.StudyTime = study_uid, date, time
    dataset.StudyID = f"{int(study_uid.rsplit('.', 1)[1]) % 10**8:08d}"
    dataset.StudyDescription = "Chest radiograph"
    dataset.ReferringPhysicianName, dataset.AccessionNumber = "", ""
    dataset.Manufacturer = "Cyclic synthetic phantom"
    dataset.ContentDate, dataset.ContentTime = date, time


def _add_pixels(
    dataset: Dataset, pixels: np.ndarray, photometric: str, bits_stored: int, windows: tuple[tuple[float, float], ...]
) -> None:
    """Image Pixel and VOI LUT modules (PS3.3 sections C.7.6.3 and C.11.2)."""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits_stored, bits_stored - 1
    dataset.PixelRepresentation = 0
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    if windows:
        dataset.WindowCenter = [centre for centre, _ in windows]
        dataset.WindowWidth = [width for _, width in windows]
        if len(windows) > 1:
            dataset.WindowCenterWidthExplanation = ["NORMAL", "WIDE", "NARROW"][: len(windows)]
    dataset.PixelData = np.ascontiguousarray(pixels, dtype="<u2").tobytes()
    dataset["PixelData"].VR = "OW"


def _add_dx(dataset: Dataset, photometric: str, pixel_spacing: float, view: str) -> None:
    """DX Series, Anatomy, Image, Detector, Positioning and Acquisition Context modules (PS3.3 section C.8.11)."""
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]
    dataset.ImageLaterality = "U"
    dataset.AnatomicRegionSequence = Sequence([_code("816094009", "SCT", "Chest")])
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = -1 if photometric == "MONOCHROME2" else 1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
    dataset.PresentationLUTShape = "IDENTITY" if photometric == "MONOCHROME2" else "INVERSE"
    dataset.DetectorType = "DIRECT"
    dataset.ImagerPixelSpacing = [pixel_spacing, pixel_spacing]
    dataset.AcquisitionContextSequence = Sequence([])
    code, meaning = _VIEW_CODES[view]
    dataset.ViewCodeSequence = Sequence([_code(code, "SCT", meaning)])
    dataset.ViewCodeSequence[0].ViewModifierCodeSequence = Sequence([])
    dataset.PositionerType = ""


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    """A code sequence item (PS3.3 section 8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _save(dataset: Dataset, path: Path, syntax: UID) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(derived_uid("cyclic", "implementation"))
    meta.ImplementationVersionName = "CYCLIC"
    dataset.file_meta = meta
    if syntax != ExplicitVRLittleEndian:
        # the pixels are unchanged, so the image keeps its identity
        dataset.compress(syntax, generate_instance_uid=False)
    with replacing(path) as draft:
        dataset.save_as(draft, enforce_file_format=True)
