"""What of a DICOM header may be kept (an allow-list, of it only defined terms), and whom the header names."""

import re
from dataclasses import dataclass, field
from typing import Any

import pydicom.multival
from pydicom.dataset import Dataset

from cyclic_cli.errors import Rejected
from cyclic_cli.scrub import Identifying

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
    study: str = ""  # Study Instance UID
    instance: str = ""  # SOP Instance UID
    accession: str = ""
    identifying: Identifying = field(default_factory=Identifying)

    def __repr__(self) -> str:
        return "Identities(hidden)"


def facts_of(header: Dataset, shape: tuple[int, ...]) -> Facts:
    spacing = header.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    sex = str(header.get("PatientSex") or "").strip().upper()
    return Facts(
        modality=_term(header, "Modality", MODALITIES),
        body_part=_term(header, "BodyPartExamined", BODY_PARTS),
        view=_term(header, "ViewPosition", VIEWS),
        sex=sex if sex in {"", "M", "F", "O"} else "other",
        age=_age_band(str(header.get("PatientAge") or "")),
        photometric=_term(header, "PhotometricInterpretation", PHOTOMETRIC),
        bits=whole_number(header, "BitsStored", 0),
        pixel_spacing=first_number(spacing) or 0.0,
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


def identities_of(header: Dataset) -> Identities:
    def text(name: str) -> str:
        return str(header.get(name) or "").strip()

    patient = (text("PatientID"), text("IssuerOfPatientID"))
    return Identities(
        patient=tuple(part for part in patient if part) if patient[0] else (),
        study=text("StudyInstanceUID"),
        instance=text("SOPInstanceUID"),
    )


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
