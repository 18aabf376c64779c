"""Radiographs written as DICOM keep their pixels and conform to the standard."""

import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers.synthetic import stream

from cyclic_cli.imaging.dicom.writing import TRANSFER_SYNTAXES, derived_uid, write_radiograph


def write_sample(
    path: Path, pixels: np.ndarray, modality: str, syntax: str, photometric: str, view: str, bits: int
) -> None:
    windows = ((2.0 ** (bits - 1), 0.7 * 2.0**bits), (2.0 ** (bits - 1), 0.9 * 2.0**bits))
    write_radiograph(
        path,
        pixels,
        modality=modality,
        photometric=photometric,
        bits_stored=bits,
        transfer_syntax=syntax,
        windows=windows[: 1 + bits % 4 // 2] if modality == "DX" or bits > 10 else (),
        pixel_spacing=0.7,
        view=view,
        patient_id="PHANTOM-00001",
        patient_name="Phantom^00001",
        patient_sex="F",
        patient_age=61,
        study_uid=derived_uid("study"),
        series_uid=derived_uid("series"),
        image_uid=derived_uid("image"),
        study_date="20200131",
        study_time="090000",
    )


KINDS = list(itertools.product(["CR", "DX"], TRANSFER_SYNTAXES, ["MONOCHROME1", "MONOCHROME2"]))


@pytest.mark.parametrize(("modality", "syntax", "photometric"), KINDS)
def test_pixels_are_preserved_and_files_conform(tmp_path: Path, modality: str, syntax: str, photometric: str) -> None:
    path = tmp_path / "image.dcm"
    for bits, view in ((10, "PA"), (12, "AP"), (14, "LL"), (16, "PA")):
        pixels = stream(bits).integers(0, 2**bits, (90, 71)).astype(np.uint16)
        write_sample(path, pixels, modality, syntax, photometric, view, bits)
        dataset = pydicom.dcmread(path)
        assert dataset.file_meta.TransferSyntaxUID == TRANSFER_SYNTAXES[syntax]
        assert (dataset.PhotometricInterpretation, dataset.BitsStored) == (photometric, bits)
        assert np.array_equal(dataset.pixel_array, pixels)
        assert dataset.SOPInstanceUID == derived_uid("image") == dataset.file_meta.MediaStorageSOPInstanceUID
        assert list(tmp_path.glob("*.dcm*")) == [path]
        if shutil.which("dciodvfy"):
            check = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
            lines = (check.stdout + check.stderr).splitlines()
            assert any(line.startswith(("CRImage", "DXImage")) for line in lines), lines
            assert [line for line in lines if line.startswith("Error")] == []


def test_dx_without_window_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="window"):
        write_radiograph(
            tmp_path / "image.dcm",
            np.zeros((4, 4), np.uint16),
            modality="DX",
            photometric="MONOCHROME2",
            bits_stored=12,
            transfer_syntax="explicit",
            windows=(),
            pixel_spacing=0.7,
            view="PA",
            patient_id="a",
            patient_name="b",
            patient_sex="M",
            patient_age=40,
            study_uid=derived_uid(1),
            series_uid=derived_uid(2),
            image_uid=derived_uid(3),
            study_date="20200131",
            study_time="090000",
        )


def test_derived_uids_are_valid_and_distinct() -> None:
    uids = [derived_uid("a", number) for number in range(100)]
    assert len(set(uids)) == 100
    assert uids[0] == derived_uid("a", 0)
    assert all(pydicom.uid.UID(uid).is_valid for uid in uids)
    assert all(uid.startswith("2.25.") for uid in uids)
