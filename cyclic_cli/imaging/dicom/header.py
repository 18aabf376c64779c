"""Extracts from a DICOM header the facts that may be kept, and the identities that must be removed.

The facts are an allow-list of attributes. Only terms that the standard defines are kept.

Identifying texts are collected from every text in the dataset, at any depth. This includes private attributes and file
meta information. Texts of attributes about persons, their numbers, their addresses and dates are `names`. Every other
text is a remark, since a user may have typed a name into it. Measurements, UIDs and pixels are neither.
"""

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import data_element_generator
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.values import convert_SQ

from cyclic_cli.errors import Rejected
from cyclic_cli.imaging.aspect import aspect_of
from cyclic_cli.imaging.dicom.code_pages import readings_of
from cyclic_cli.imaging.dicom.streams import ITEM
from cyclic_cli.imaging.dicom.structured_report import identities_in
from cyclic_cli.privacy.scrub import Identifying

MODALITIES = set(
    "AR BI BMD CR CT DG DX EC EPS ES GM HD IO IVOCT IVUS LS MG MR NM OAM OCT OP OPM OPT OPV OT PT PX RF RG SM TG US "
    "XA XC".split()
)  # PS3.3 C.7.3.1.1.1, image modalities only
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


NAMING = frozenset(
    tag_for_keyword(keyword)
    for keyword in (
        "PatientID IssuerOfPatientID OtherPatientIDs PatientAddress PatientTelephoneNumbers "
        "PatientTelecomInformation PatientInstitutionResidence InsurancePlanIdentification MedicalRecordLocator "
        "AccessionNumber StudyID AdmissionID IssuerOfAdmissionID ServiceEpisodeID RequestedProcedureID "
        "ScheduledProcedureStepID PerformedProcedureStepID PlacerOrderNumberImagingServiceRequest "
        "FillerOrderNumberImagingServiceRequest PlacerOrderNumberProcedure FillerOrderNumberProcedure "
        "InstitutionName InstitutionAddress ResponsibleOrganization VerifyingOrganization "
        "ReferringPhysicianAddress ReferringPhysicianTelephoneNumbers PersonAddress PersonTelephoneNumbers "
        "PersonTelecomInformation OrderCallbackPhoneNumber OrderCallbackTelecomInformation DeviceSerialNumber "
        "CassetteID PlateID DetectorID GantryID ClinicalTrialProtocolID ClinicalTrialSiteID "
        "ClinicalTrialSubjectID ClinicalTrialSubjectReadingID ClinicalTrialCoordinatingCenterName "
        "ContainerIdentifier SpecimenIdentifier ResultsID InterpretationID "
    ).split()
)
"""Attributes with text that identify a person or an institution, besides those of VR PN (from PS3.15 table E.1-1).

Attributes that name departments, stations, wards and trials often hold clinical words, which must stay in reports. They
are therefore treated as remarks."""
NAMING_VRS = {"PN", "DA", "DT", "TM"}
REMARK_VRS = {"AE", "CS", "LO", "LT", "SH", "ST", "UC", "UR", "UT"}
BINARY_VRS = {"OB", "UN"}
TEXT_VALUE = 0x0040A160  # in a structured report this is the report itself, not a remark
STRUCTURED_REPORTS = "1.2.840.10008.5.1.4.1.1.88."

MOST_ELEMENTS = 20_000  # elements with text read from a header, including nested elements
MOST_ITEMS = 32  # items read from a sequence, since per-frame functional groups repeat themselves
MOST_BYTES = 4096  # bytes read from a value, since a longer value is not a name
DEEPEST = 8  # maximum nesting of sequences, without the content tree of a structured report
MOST_BYTES_BEHIND = 2**20  # bytes read from an element behind the pixel data, which may hold a signature
PIXEL_DATA = 0x7FE00010


LARGEST_BITS = 64
SMALLEST_SPACING, LARGEST_SPACING = 1e-5, 50.0  # mm
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "ImagePlanePixelSpacing")
"""Attributes that state the distance between rows and between columns in mm, the first that applies (PS3.3 10.7)."""
NUMBER = re.compile(r"\s*([+-]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][+-]?\d+)?)(?![.,\d])")
PADDING = {
    "PixelData": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "FloatPixelData": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "DoubleFloatPixelData": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}
"""Attributes that state the two limits of the padding values (PS3.3 C.7.5.1.1.2 and C.7.6.24)."""


@dataclass(frozen=True)
class Facts:
    """The header attributes that may be kept.

    A term that the standard does not define becomes `other`. A missing term is empty, and a missing number is 0.
    """

    modality: str = ""
    body_part: str = ""
    view: str = ""
    sex: str = ""
    age: str = ""  # in five-year bands such as "40-44"; "90+" from 90 years on
    photometric: str = ""
    bits: int = 0  # stored bits per sample
    pixel_spacing: float = 0.0  # distance between rows in mm; 0 where unknown
    height: int = 0  # of the original, in pixels; of square ones where those of the file are not square
    width: int = 0  # likewise


@dataclass(frozen=True)
class Identities:
    """The identifiers in a header. They stay in memory until they become keys, and are never written or shown."""

    patient: tuple[str, ...] = ()  # Patient ID and, where present, its issuer
    study: str = ""  # Study Instance UID
    instance: str = ""  # SOP Instance UID
    accession: str = ""
    identifying: Identifying = field(default_factory=Identifying)

    def __repr__(self) -> str:
        return "Identities(hidden)"


def facts_of(header: Dataset, shape: tuple[int, ...], measures: Dataset | None = None) -> Facts:
    """The facts of a header that may be kept.

    A number outside the plausible range of its attribute becomes 0, since it could be an identifier.

    Args:
        header: The dataset.
        shape: Rows and columns of the image.
        measures: As in `pixel_size`.

    Raises:
        Rejected: broken_header, where Bits Stored is not a number.
    """
    size = pixel_size(header, measures)
    sex = str(value_of(header, "PatientSex") or "").strip().upper()
    return Facts(
        modality=_term(header, "Modality", MODALITIES),
        body_part=_term(header, "BodyPartExamined", BODY_PARTS),
        view=_term(header, "ViewPosition", VIEWS),
        sex=sex if sex in {"", "M", "F", "O"} else "other",
        age=_age_band(str(value_of(header, "PatientAge") or "")),
        photometric=_term(header, "PhotometricInterpretation", PHOTOMETRIC),
        bits=bits if 1 <= (bits := whole_number(header, "BitsStored", 0)) <= LARGEST_BITS else 0,
        pixel_spacing=_plausible_spacing(size[0] if size else None),
        height=shape[0],
        width=shape[1],
    )


def _plausible_spacing(spacing: float | None) -> float:
    """The spacing in mm, rounded to four digits; 0 outside the range from microscopes to gamma cameras."""
    if spacing is None or not SMALLEST_SPACING <= spacing <= LARGEST_SPACING:
        return 0.0
    return float(f"{spacing:.4g}")


def _term(header: Dataset, name: str, defined: set[str]) -> str:
    """An attribute's value where the standard defines it, `other` where it does not, empty where it is missing."""
    value = str(value_of(header, name) or "").strip().upper()
    return value if not value or value in defined else "other"


def _age_band(age: str) -> str:
    """PatientAge (`045Y`, `006M`) as a five-year band. All ages from 90 years on share one band."""
    found = re.fullmatch(r"([0-9]{3})([DWMY])", age.strip())
    if not found:
        return ""
    years = int(found[1]) if found[2] == "Y" else int(found[1]) // {"D": 365, "W": 52, "M": 12}[found[2]]
    return "90+" if years >= 90 else f"{years // 5 * 5}-{years // 5 * 5 + 4}"


def identities_of(header: Dataset, behind: Dataset | None = None) -> Identities:
    """The identifiers in a header. Damaged attributes are skipped, and no error is raised.

    Args:
        header: The elements before the pixel data.
        behind: The elements behind the pixel data, where there are any; see `elements_behind`.
    """

    def text(name: str) -> str:
        try:
            value = header.get(name)
        except Exception:  # a damaged value makes the parser raise almost anything
            return ""
        return "" if value is None else str(value).strip()

    # Before the first access to a value, which would decode it by one code page only.
    identifying = _identifying_of(header, behind)
    patient = (text("PatientID"), text("IssuerOfPatientID"))
    return Identities(
        patient=tuple(part for part in patient if part) if patient[0] else (),
        study=text("StudyInstanceUID"),
        instance=text("SOPInstanceUID"),
        accession=text("AccessionNumber"),
        identifying=identifying,
    )


def elements_behind(stream: BinaryIO, header: Dataset) -> Dataset:
    """The elements behind the pixel data: private groups, digital signatures and padding.

    Values that are longer than `MOST_BYTES_BEHIND` are skipped. A damaged element ends the reading without an error.

    Args:
        stream: The file, at the end of its pixel data.
        header: The elements before the pixel data, which say how values are encoded.
    """
    implicit, little = header.original_encoding
    behind: dict[BaseTag, DataElement | RawDataElement] = {}
    with suppress(Exception):  # a damaged file makes the parser raise almost anything
        for element in data_element_generator(stream, bool(implicit), bool(little), defer_size=MOST_BYTES_BEHIND):
            if element.tag <= PIXEL_DATA:  # zeros that fill up the file, or another dataset
                break
            behind[element.tag] = element
    return Dataset(behind)  # without a conversion of values, which would decode them by one code page


def _identifying_of(header: Dataset, behind: Dataset | None) -> Identifying:
    names: dict[str, None] = {}  # a dict keeps each text once, in order
    remarks: dict[str, None] = {}
    is_report = str(header.get("SOPClassUID", "")).startswith(STRUCTURED_REPORTS)
    for tag, vr, text in islice(_every_text(header, behind), MOST_ELEMENTS):
        for value in filter(None, map(str.strip, text.split("\\"))):
            if tag in NAMING or vr in NAMING_VRS:
                names[value[:6] if vr == "TM" else value] = None
            elif tag != TEXT_VALUE or not is_report:
                remarks[value] = None
    if is_report:
        with suppress(Exception):  # a damaged document, which `text_of` refuses
            names |= dict.fromkeys(identities_in(header))
    return Identifying(tuple(names), tuple(remarks))


def _every_text(header: Dataset, behind: Dataset | None) -> Iterator[tuple[int, str, str]]:
    """Yield tag, VR and text of every element that holds text, at any depth."""
    file_meta = getattr(header, "file_meta", None)
    if file_meta is not None:
        yield from _texts(file_meta, ["iso8859"], 0)
    yield from _texts(header, ["iso8859"], 0)
    if behind is not None:
        yield from _texts(behind, _encodings(header, ["iso8859"]), 0)


def _texts(data: Dataset, encodings: list[str], depth: int) -> Iterator[tuple[int, str, str]]:
    encodings = _encodings(data, encodings)
    for element in list(data.values()):  # raw elements, since most need no parsing
        tag = element.tag
        try:
            vr = element.VR or _dictionary_vr(tag)
            if vr == "SQ":
                yield from _nested(data[tag].value, encodings, depth)
            elif vr in NAMING_VRS or vr in REMARK_VRS:
                yield tag, vr, _text(element.value, encodings)
            elif vr in BINARY_VRS and isinstance(element.value, bytes):
                yield from _in_bytes(tag, element.value, encodings, depth)
        except Exception:  # a damaged element makes the parser raise almost anything
            continue


def _dictionary_vr(tag: BaseTag) -> str:
    """The VR of an element whose file does not state it (implicit VR)."""
    try:
        return "UN" if tag.is_private else dictionary_VR(tag)
    except KeyError:
        return "UN"


def _encodings(data: Dataset, otherwise: list[str]) -> list[str]:
    """Specific Character Set (0008,0005) of a dataset or item as Python encodings; `otherwise` where it is missing."""
    try:
        value = data.get(0x00080005)
        return convert_encodings(value.value) if value is not None and value.value else otherwise
    except Exception:
        return otherwise


def _nested(items: Any, encodings: list[str], depth: int) -> Iterator[tuple[int, str, str]]:
    if depth < DEEPEST:
        for item in items[:MOST_ITEMS]:
            yield from _texts(item, encodings, depth + 1)


def _in_bytes(tag: int, value: bytes, encodings: list[str], depth: int) -> Iterator[tuple[int, str, str]]:
    """The texts in a value of unknown VR, which may be a sequence (implicit little endian, PS3.5 6.2.2) or text."""
    if value.startswith(ITEM):  # with which a sequence begins
        yield from _nested(convert_SQ(value, True, True, encodings), encodings, depth)
        return
    value = value.rstrip(b"\0 ") if len(value) <= MOST_BYTES else b""
    if value and not any(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in value):
        yield tag, "UN", _text(value, encodings)


def _text(value: Any, encodings: list[str]) -> str:
    """A value's text, with backslashes between several values.

    Bytes are decoded by the stated character set, as UTF-8, and by every other code page in which they read as words,
    since files often state no character set or a wrong one.
    """
    if isinstance(value, bytes):
        value = value[:MOST_BYTES].rstrip(b"\0 ")
        if value.isascii() and b"\x1b" not in value:
            return value.decode("ascii")
        stated = decode_bytes(value, encodings, {"\\", "^", "=", "\n", "\r", "\t", "\f"})
        return "\\".join(sorted({stated, *readings_of(value)}))
    if isinstance(value, MultiValue | list | tuple):
        return "\\".join(map(str, value))
    return "" if value is None else str(value)


def value_of(data: Dataset, name: str) -> Any:
    """The value of an attribute; None where it is missing, or so damaged that it cannot be parsed."""
    try:
        return data.get(name)
    except Exception:
        return None


def items_of(data: Dataset, name: str) -> list[Dataset]:
    """The items of a sequence; none where it is missing or damaged."""
    value = value_of(data, name)
    return [item for item in value if isinstance(item, Dataset)] if isinstance(value, Sequence) else []


def code_of(data: Dataset, name: str) -> str:
    """The first term of an attribute that is not empty, in upper case; empty where there is none."""
    value = value_of(data, name)
    terms = value if isinstance(value, MultiValue | list) else [value or ""]
    return next(filter(None, (str(term).strip(" \0").upper() for term in terms)), "")


def numbers(data: Dataset, name: str) -> list[float]:
    """The numbers of an attribute; none where it is missing or empty.

    NaN stands for every value that is no number or is empty, so that the others keep their places. Decimal strings
    (PS3.5 6.2) may have a decimal comma, or a unit behind the number.
    """
    try:
        value = data.get(name)
    except Exception:  # pydicom parses values on first access, and damaged ones make it raise almost anything
        return [math.nan]
    if value is None or value == "":
        return []
    if isinstance(value, bytes):
        value = value.decode("latin-1").split("\\")
    return [_number(part) for part in (value if isinstance(value, MultiValue | list | tuple) else [value])]


def _number(value: Any) -> float:
    if isinstance(value, str):
        found = NUMBER.match(value)
        return float(found[1].replace(",", ".")) if found else math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def whole_number(header: Dataset, name: str, default: int = 0) -> int:
    """An attribute as an integer; `default` where it is missing or 0. Raises Rejected: broken_header."""
    found = numbers(header, name)
    if not found:
        return default
    if not math.isfinite(found[0]):
        raise Rejected("broken_header", f"{name} is not a number")
    return int(found[0]) or default


def pixel_size(header: Dataset, measures: Dataset | None = None) -> tuple[float, float] | None:
    """The distance between rows and between columns in mm; None where unknown (PS3.3 10.7.1.3).

    Args:
        header: The file's header.
        measures: The item of the Pixel Measures Sequence of a frame of an enhanced image (PS3.3 C.7.6.16.2.1).
    """
    stated = [(measures, "PixelSpacing")] if measures else []
    for data, name in [*stated, *((header, name) for name in SPACINGS)]:
        found = numbers(data, name)[:2]
        if found and all(0 < length < math.inf for length in found):
            return found[0], found[-1]
    return None


def aspect_of_pixels(header: Dataset, measures: Dataset | None = None) -> float:
    """Height of a pixel divided by its width, 1 for square pixels: Pixel Spacing, else Pixel Aspect Ratio (0028,0034).

    Both state the vertical before the horizontal (PS3.3 10.7.1.3 and C.7.6.3.1.7). The arguments are as in
    `pixel_size`.
    """
    size = pixel_size(header, measures) or numbers(header, "PixelAspectRatio")
    return aspect_of(size[0], size[1]) if len(size) > 1 else 1.0


def padding_limits(header: Dataset, kind: np.dtype) -> tuple[Any, Any] | None:
    """The lowest and the highest padding value as pixels of type `kind` hold them (PS3.3 C.7.5.1.1.2, C.7.6.24).

    None where no pixel can have such a value.
    """
    names = next((names for pixels, names in PADDING.items() if pixels in header), None)
    found = [number for name in names or () for number in numbers(header, name)[:1]]
    if not found or names[0] not in header or not np.isfinite(found).all():  # type: ignore[index]
        return None
    ends = np.array([found[0], found[-1]])
    if kind.kind == "f":
        low, high = np.sort(ends.astype(kind))
        return low, high
    # Files contradict themselves on whether the attribute is signed (US or SS). Compare in the pixels' own type.
    stored = ends.astype(np.int64).astype(kind)
    if ((stored.astype(np.int64) - ends.astype(np.int64)) % 2**16).any():  # wider than the pixels
        return None
    low, high = np.sort(stored)
    return low, high
