"""What of a DICOM header may be kept (an allow-list, of it only defined terms), and whom the header names.

Whom it names is read from every text of the dataset, at any depth, private attributes and file meta information
included. Values of attributes that are about persons, their numbers, addresses and dates are `names`, every other text
is a remark: somebody may have typed a name into it. Numbers that measure something, UIDs and pixels are neither.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pydicom.multival
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.values import convert_SQ

from cyclic_cli.errors import Rejected
from cyclic_cli.privacy.scrub import Identifying

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
"""Attributes with text, beside those of VR PN, that name somebody or an institution (of those in PS3.15 table E.1-1).
Where departments, stations, wards and trials are named in clinical words, these must stay: they are remarks."""
NAMING_VRS = {"PN", "DA", "DT", "TM"}
REMARK_VRS = {"AE", "CS", "LO", "LT", "SH", "ST", "UC", "UR", "UT"}
BINARY_VRS = {"OB", "UN"}
TEXT_VALUE = 0x0040A160  # what a structured report says: the report itself, no remark about it
STRUCTURED_REPORTS = "1.2.840.10008.5.1.4.1.1.88."

MOST_ELEMENTS = 20_000  # of a header, nested ones included
MOST_ITEMS = 32  # of a sequence: per-frame functional groups repeat themselves
MOST_BYTES = 4096  # of a value; a longer one is no name
DEEPEST = 8  # sequences within sequences
ITEM = b"\xfe\xff\x00\xe0"  # a sequence of unknown VR begins with this tag


LARGEST_BITS = 64
SMALLEST_SPACING, LARGEST_SPACING = 1e-5, 50.0  # mm


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
    study: str = ""  # Study Instance UID
    instance: str = ""  # SOP Instance UID
    accession: str = ""
    identifying: Identifying = field(default_factory=Identifying)

    def __repr__(self) -> str:
        return "Identities(hidden)"


def facts_of(header: Dataset, shape: tuple[int, ...]) -> Facts:
    """What may be kept of a header. A number that is none for what it should measure, and so might be anybody's, is 0.

    Args:
        header: The dataset.
        shape: Rows and columns.
    """
    spacing = header.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    sex = str(header.get("PatientSex") or "").strip().upper()
    return Facts(
        modality=_term(header, "Modality", MODALITIES),
        body_part=_term(header, "BodyPartExamined", BODY_PARTS),
        view=_term(header, "ViewPosition", VIEWS),
        sex=sex if sex in {"", "M", "F", "O"} else "other",
        age=_age_band(str(header.get("PatientAge") or "")),
        photometric=_term(header, "PhotometricInterpretation", PHOTOMETRIC),
        bits=bits if 1 <= (bits := whole_number(header, "BitsStored", 0)) <= LARGEST_BITS else 0,
        pixel_spacing=_plausible_spacing(first_number(spacing)),
        height=shape[0],
        width=shape[1],
    )


def _plausible_spacing(spacing: float | None) -> float:
    """Millimetres, to four digits: from a microscope's to a gamma camera's, else 0."""
    if spacing is None or not SMALLEST_SPACING <= spacing <= LARGEST_SPACING:
        return 0.0
    return float(f"{spacing:.4g}")


def _term(header: Dataset, name: str, defined: set[str]) -> str:
    value = str(header.get(name) or "").strip().upper()
    return value if not value or value in defined else "other"


def _age_band(age: str) -> str:
    """PatientAge (`045Y`, `006M`) as a band of five years; everybody from 90 on is together."""
    found = re.fullmatch(r"([0-9]{3})([DWMY])", age.strip())
    if not found:
        return ""
    years = int(found[1]) if found[2] == "Y" else int(found[1]) // {"D": 365, "W": 52, "M": 12}[found[2]]
    return "90+" if years >= 90 else f"{years // 5 * 5}-{years // 5 * 5 + 4}"


def identities_of(header: Dataset) -> Identities:
    """Whom a header names. What of it is damaged names nobody; nothing is raised."""

    def text(name: str) -> str:
        try:
            value = header.get(name)
        except Exception:  # a damaged value makes the parser raise almost anything
            return ""
        return "" if value is None else str(value).strip()

    patient = (text("PatientID"), text("IssuerOfPatientID"))
    return Identities(
        patient=tuple(part for part in patient if part) if patient[0] else (),
        study=text("StudyInstanceUID"),
        instance=text("SOPInstanceUID"),
        accession=text("AccessionNumber"),
        identifying=_identifying_of(header),
    )


def _identifying_of(header: Dataset) -> Identifying:
    names: dict[str, None] = {}  # each once, in their order
    remarks: dict[str, None] = {}
    is_report = str(header.get("SOPClassUID", "")).startswith(STRUCTURED_REPORTS)
    for tag, vr, text in islice(_every_text(header), MOST_ELEMENTS):
        for value in filter(None, map(str.strip, text.split("\\"))):
            if tag in NAMING or vr in NAMING_VRS:
                names[value[:6] if vr == "TM" else value] = None
            elif tag != TEXT_VALUE or not is_report:
                remarks[value] = None
    return Identifying(tuple(names), tuple(remarks))


def _every_text(header: Dataset) -> Iterator[tuple[int, str, str]]:
    """Tag, VR and text of every element that holds text, at any depth."""
    file_meta = getattr(header, "file_meta", None)
    if file_meta is not None:
        yield from _texts(file_meta, ["iso8859"], 0)
    yield from _texts(header, ["iso8859"], 0)


def _texts(data: Dataset, encodings: list[str], depth: int) -> Iterator[tuple[int, str, str]]:
    encodings = _encodings(data, encodings)
    for element in list(data.values()):  # as they stand in the file: most need no parsing
        tag = element.tag
        try:
            vr = element.VR or _dictionary_vr(tag)
            if vr == "SQ":
                yield from _nested(data[tag].value, encodings, depth)
            elif vr in NAMING_VRS or vr in REMARK_VRS:
                yield tag, vr, _text(element.value, encodings)
            elif vr in BINARY_VRS and isinstance(element.value, bytes):
                yield from _in_bytes(tag, element.value, encodings, depth)
        except Exception:  # a damaged element makes the parser raise almost anything, and names nobody
            continue


def _dictionary_vr(tag: BaseTag) -> str:
    """The VR of an element whose file does not say it (implicit VR)."""
    try:
        return "UN" if tag.is_private else dictionary_VR(tag)
    except KeyError:
        return "UN"


def _encodings(data: Dataset, otherwise: list[str]) -> list[str]:
    """Specific Character Set (0008,0005) of a dataset or item, as Python's encodings."""
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
    """What a value of unknown VR holds: a sequence (in implicit little endian, PS3.5 6.2.2), or perhaps text."""
    if value.startswith(ITEM):
        yield from _nested(convert_SQ(value, True, True, encodings), encodings, depth)
        return
    value = value.rstrip(b"\0 ") if len(value) <= MOST_BYTES else b""
    if value and not any(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in value):
        yield tag, "UN", _text(value, encodings)


def _text(value: Any, encodings: list[str]) -> str:
    """A value's text, several values between backslashes. Bytes that may be UTF-8 and do not say so are read twice."""
    if isinstance(value, bytes):
        value = value[:MOST_BYTES].rstrip(b"\0 ")
        if value.isascii() and b"\x1b" not in value:
            return value.decode("ascii")
        readings = {decode_bytes(value, encodings, {"\\", "^", "=", "\n", "\r", "\t", "\f"})}
        with suppress(UnicodeDecodeError):
            readings.add(value.decode("utf-8"))
        return "\\".join(sorted(readings))
    if isinstance(value, pydicom.multival.MultiValue | list | tuple):
        return "\\".join(map(str, value))
    return "" if value is None else str(value)


def whole_number(header: Dataset, name: str, default: int = 0) -> int:
    try:
        return int(header.get(name, default) or default)
    except (TypeError, ValueError):
        raise Rejected("broken_header", f"{name} is not a number") from None


def first_number(value: Any) -> float | None:
    """The first of possibly several numbers; None where there is none."""
    if isinstance(value, pydicom.multival.MultiValue | list | tuple):
        value = value[0] if len(value) else None
    try:
        return None if value in (None, "") else float(value)
    except (TypeError, ValueError):
        return None
