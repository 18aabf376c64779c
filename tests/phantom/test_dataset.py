"""The synthetic dataset has the documented files and tables, and its content never changes by accident."""

import csv
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from cyclic_cli.phantom.dataset import DemoSummary, write_demo
from cyclic_cli.phantom.findings import (
    TRUTH_COLUMNS,
)


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoSummary:
    return write_demo(tmp_path_factory.mktemp("demo") / "demo", count=10, seed=3)


# --- folder and tables --------------------------------------------------------------------------------------


def test_folder_holds_exactly_the_documented_files(demo: DemoSummary) -> None:
    reports, findings = read_table(demo.folder / "reports.csv"), read_table(demo.folder / "findings.csv")
    assert list(reports[0]) == ["path", "patient", "study", "text"]
    assert list(findings[0]) == ["path", "patient", "study", "view", *TRUTH_COLUMNS]
    paths = [row["path"] for row in reports]
    assert len(paths) == len(set(paths)) == 10 == demo.images
    assert paths == [row["path"] for row in findings]
    expected = set(paths) | {str(Path(path).parent / "report.txt") for path in paths} | {"reports.csv", "findings.csv"}
    found = {file.relative_to(demo.folder).as_posix() for file in demo.folder.rglob("*") if file.is_file()}
    assert found == expected
    assert all(re.fullmatch(r"p\d{5}/s\d\d/\d\.dcm", path) for path in paths)
    assert demo.studies == len({row["study"] for row in reports})
    assert demo.patients == len({row["patient"] for row in reports})


def test_tables_agree_with_the_files(demo: DemoSummary) -> None:
    truths = {row["path"]: row for row in read_table(demo.folder / "findings.csv")}
    for row in read_table(demo.folder / "reports.csv"):
        dataset = pydicom.dcmread(demo.folder / row["path"])
        assert dataset.PatientID == row["patient"] == f"PHANTOM-{row['path'][1:6]}"
        assert str(dataset.PatientName) == f"Phantom^{row['path'][1:6]}"
        assert dataset.StudyInstanceUID == row["study"]
        assert dataset.ViewPosition == truths[row["path"]]["view"]
        assert 400 <= max(dataset.Rows, dataset.Columns) <= 700
        report = (demo.folder / row["path"]).parent / "report.txt"
        assert report.read_text(encoding="utf-8") == row["text"] + "\n"
        if dataset.Modality == "DX":
            assert "WindowCenter" in dataset


def test_count_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        write_demo(tmp_path / "demo", count=0)


def test_progress_is_reported(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_demo(tmp_path / "demo", count=3, report=lambda done, count: calls.append((done, count)))
    assert calls[-1] == (3, 3)
    assert calls == sorted(calls)


def test_bytes_do_not_depend_on_workers(demo: DemoSummary, tmp_path: Path) -> None:
    again = write_demo(tmp_path / "demo", count=10, seed=3, workers=2)
    files = sorted(file.relative_to(demo.folder) for file in demo.folder.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(again.folder) for file in again.folder.rglob("*") if file.is_file())
    for file in files:
        assert (demo.folder / file).read_bytes() == (again.folder / file).read_bytes(), file


def test_another_seed_gives_other_images(demo: DemoSummary, tmp_path: Path) -> None:
    other = write_demo(tmp_path / "demo", count=1, seed=4)
    name = "p00001/s01/1.dcm"
    assert (demo.folder / name).read_bytes() != (other.folder / name).read_bytes()


def test_full_size(tmp_path: Path) -> None:
    write_demo(tmp_path / "demo", count=1, full_size=True)
    dataset = pydicom.dcmread(tmp_path / "demo/p00001/s01/1.dcm", stop_before_pixels=True)
    assert 2000 <= max(dataset.Rows, dataset.Columns) <= 3000


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (dicom3tools) is not installed")
def test_demo_files_conform(demo: DemoSummary) -> None:
    paths = sorted(demo.folder.rglob("*.dcm"))
    assert len(paths) == 10
    for path in paths:
        check = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        assert "Error" not in check.stdout + check.stderr


# --- golden ---------------------------------------------------------------------------------------------------

# These values freeze the generator. Changing them changes every dataset that is generated from a seed.
GOLDEN_TEXT = "034c02dd2136ed46929e43e96424d53cdda1f7cfafe2d8d91e2d60592c0f0ab4"
GOLDEN_THUMBNAILS: dict[str, tuple[float, float, list[int]]] = {
    "p00001/s01/1.dcm": (0.41767, 0.21571, [
        61, 50, 203, 441, 453, 269, 70, 29,
        346, 476, 498, 492, 501, 487, 471, 396,
        488, 559, 453, 495, 575, 490, 686, 517,
        281, 507, 341, 499, 624, 305, 497, 293,
        202, 454, 337, 520, 689, 356, 417, 210,
        155, 430, 337, 533, 716, 464, 375, 168,
        108, 479, 560, 627, 676, 443, 403, 138,
        71, 528, 685, 720, 725, 666, 583, 124,
    ]),
    "p00001/s01/2.dcm": (0.32915, 0.22809, [
        70, 187, 435, 543, 462, 347, 45, 78,
        77, 47, 479, 710, 675, 679, 164, 88,
        74, 114, 590, 503, 481, 662, 334, 54,
        60, 271, 407, 397, 356, 440, 379, 46,
        51, 337, 426, 408, 315, 367, 377, 44,
        46, 338, 395, 437, 313, 354, 377, 45,
        41, 396, 512, 560, 487, 439, 336, 51,
        51, 460, 615, 628, 636, 606, 273, 57,
    ]),
    "p00001/s02/1.dcm": (0.60046, 0.23875, [
        976, 961, 803, 663, 660, 777, 938, 954,
        739, 537, 499, 499, 496, 501, 518, 659,
        614, 430, 542, 477, 437, 467, 320, 571,
        802, 490, 651, 480, 384, 678, 488, 774,
        873, 558, 653, 469, 306, 627, 564, 848,
        913, 583, 649, 472, 275, 523, 606, 886,
        950, 568, 427, 356, 309, 524, 514, 908,
        978, 563, 375, 340, 323, 359, 452, 904,
    ]),
    "p00002/s01/1.dcm": (0.43606, 0.23890, [
        69, 166, 313, 374, 370, 343, 195, 77,
        396, 565, 537, 530, 560, 507, 549, 538,
        320, 585, 435, 498, 639, 374, 584, 491,
        174, 519, 358, 532, 690, 351, 509, 299,
        122, 483, 383, 571, 732, 475, 466, 240,
        90, 478, 509, 619, 728, 547, 433, 211,
        88, 564, 695, 734, 741, 647, 573, 188,
        81, 418, 500, 523, 531, 508, 448, 138,
    ]),
    "p00002/s01/2.dcm": (0.33336, 0.23510, [
        60, 94, 399, 588, 541, 415, 47, 53,
        65, 48, 576, 621, 610, 716, 183, 61,
        54, 202, 550, 459, 423, 601, 337, 34,
        34, 376, 398, 378, 346, 421, 356, 32,
        66, 436, 416, 422, 314, 367, 362, 32,
        100, 402, 396, 462, 320, 363, 349, 34,
        66, 476, 581, 581, 569, 451, 290, 38,
        99, 526, 605, 615, 634, 594, 228, 41,
    ]),
    "p00003/s01/1.dcm": (0.46862, 0.21820, [
        18, 69, 282, 474, 473, 292, 107, 36,
        420, 513, 532, 536, 533, 537, 538, 469,
        563, 599, 445, 561, 573, 444, 601, 533,
        320, 549, 353, 566, 656, 393, 540, 305,
        243, 497, 392, 672, 724, 598, 473, 249,
        198, 467, 400, 688, 739, 652, 490, 216,
        156, 508, 623, 732, 710, 612, 463, 201,
        125, 587, 716, 760, 756, 715, 630, 211,
    ]),
}  # fmt: skip
"""For each image: mean and standard deviation of the stored values over their range, and its thumbnail."""


def thumbnail(path: Path) -> tuple[float, float, list[int]]:
    """Mean and standard deviation of the stored values over their range, and an 8 × 8 thumbnail in thousandths."""
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array / (2.0**dataset.BitsStored - 1)
    small = Image.fromarray(pixels.astype(np.float32)).resize((8, 8), Image.Resampling.BOX)
    return float(pixels.mean()), float(pixels.std()), np.rint(np.asarray(small).ravel() * 1000).astype(int).tolist()


def golden_text(folder: Path) -> str:
    """Hash of everything except pixels: texts, tables, and the header of each file."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix == ".dcm":
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
            elements = [(int(element.tag), str(element.value)) for element in dataset if element.VR != "SQ"]
            digest.update(repr((str(dataset.file_meta.TransferSyntaxUID), elements)).encode())
        elif file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def test_dataset_equals_golden_values(tmp_path: Path) -> None:
    # Thumbnails need a tolerance, since sines and roots may differ in the last bit between processors.
    write_demo(tmp_path / "demo", count=6, seed=0)
    assert golden_text(tmp_path / "demo") == GOLDEN_TEXT
    names = [file.relative_to(tmp_path / "demo").as_posix() for file in sorted(tmp_path.rglob("*.dcm"))]
    assert names == list(GOLDEN_THUMBNAILS)
    for name in names:
        mean, deviation, small = thumbnail(tmp_path / "demo" / name)
        golden_mean, golden_deviation, golden_small = GOLDEN_THUMBNAILS[name]
        assert mean == pytest.approx(golden_mean, abs=2e-4), name
        assert deviation == pytest.approx(golden_deviation, abs=2e-4), name
        assert np.abs(np.array(small) - golden_small).max() <= 2, name
