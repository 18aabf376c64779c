"""Writes synthetic radiographs as DICOM files.

The bytes are deterministic: they depend on the arguments alone, not on the time, the host or random numbers.
"""

import hashlib
import uuid
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from cyclic_cli.storage.files import replacing

TRANSFER_SYNTAXES = {"explicit": ExplicitVRLittleEndian, "rle": RLELossless, "jpeg2000": JPEG2000Lossless}
"""Transfer syntaxes by the names that `write_radiograph` accepts (PS3.5 section 10 and annex A)."""

_SOP_CLASSES = {"CR": ComputedRadiographyImageStorage, "DX": DigitalXRayImageStorageForPresentation}
_VIEW_CODES = {
    "PA": ("272479007", "postero-anterior"),
    "AP": ("399348003", "antero-posterior"),
    "LL": ("399173006", "left lateral"),
}
"""SNOMED CT codes and meanings of the views, from context group 4010 (PS3.16)."""


def derived_uid(*parts: object) -> str:
    """A UID under the root 2.25 (PS3.5 annex B.2) that depends on `parts` alone."""
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
    """Write one chest radiograph. The file appears under its name only when it is complete.

    `pixels` (rows, columns) are the stored values, below 2**`bits_stored`. `modality` is CR or DX. `photometric` is
    MONOCHROME1 or MONOCHROME2. `transfer_syntax` is a key of `TRANSFER_SYNTAXES`. `view` is PA, AP or LL. Each of
    `windows` is a pair (centre, width) in stored values (PS3.3 section C.11.2), and DX requires at least one.
    `pixel_spacing` is in mm at the detector, and `patient_age` in years. Date and time are DICOM text (YYYYMMDD,
    HHMMSS). Raises ValueError for a DX image without a window.
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
    """General Study and General Equipment modules (PS3.3 sections C.7.2.1 and C.7.5.1), and the date of the image."""
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
        # lossless compression leaves the pixels unchanged, so the image keeps its UID
        dataset.compress(syntax, generate_instance_uid=False)
    with replacing(path) as draft:
        dataset.save_as(draft, enforce_file_format=True)
