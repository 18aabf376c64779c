"""The synthetic dataset: layout, truth, reports, DICOM files, and that it never changes by accident."""

import csv
import hashlib
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from cyclic_cli.imaging.dicom.writing import TRANSFER_SYNTAXES, derived_uid, write_radiograph
from cyclic_cli.phantom.anatomy import Patient, sample_patient
from cyclic_cli.phantom.dataset import DemoSummary, write_demo
from cyclic_cli.phantom.findings import (
    DETAILS,
    FINDINGS,
    SEVERITIES,
    TRUTH_COLUMNS,
    Finding,
    sample_finding,
    sample_findings,
    truth,
)
from cyclic_cli.phantom.projection import View
from cyclic_cli.phantom.radiograph import draw_radiograph, quantise, sample_view
from cyclic_cli.phantom.reports import (
    BILATERAL_EFFUSION,
    NEGATIONS,
    SEVERITY_WORDS,
    STANDARD_NORMAL,
    WORDINGS,
    word_finding,
    write_report,
)


def stream(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoSummary:
    return write_demo(tmp_path_factory.mktemp("demo") / "demo", count=10, seed=3)


# --- the folder ---------------------------------------------------------------------------------------------


def test_folder_holds_exactly_what_is_promised(demo: DemoSummary) -> None:
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


# --- golden ---------------------------------------------------------------------------------------------------

# The generator is frozen by these values: whoever changes them changes every dataset made from a seed.
GOLDEN_TEXT = "034c02dd2136ed46929e43e96424d53cdda1f7cfafe2d8d91e2d60592c0f0ab4"
GOLDEN_THUMBNAILS: dict[str, tuple[float, float, list[int]]] = {
    "p00001/s01/1.dcm": (
        0.41767,
        0.21571,
        [
            61,
            50,
            203,
            441,
            453,
            269,
            70,
            29,
            346,
            476,
            498,
            492,
            501,
            487,
            471,
            396,
            488,
            559,
            453,
            495,
            575,
            490,
            686,
            517,
            281,
            507,
            341,
            499,
            624,
            305,
            497,
            293,
            202,
            454,
            337,
            520,
            689,
            356,
            417,
            210,
            155,
            430,
            337,
            533,
            716,
            464,
            375,
            168,
            108,
            479,
            560,
            627,
            676,
            443,
            403,
            138,
            71,
            528,
            685,
            720,
            725,
            666,
            583,
            124,
        ],
    ),
    "p00001/s01/2.dcm": (
        0.32915,
        0.22809,
        [
            70,
            187,
            435,
            543,
            462,
            347,
            45,
            78,
            77,
            47,
            479,
            710,
            675,
            679,
            164,
            88,
            74,
            114,
            590,
            503,
            481,
            662,
            334,
            54,
            60,
            271,
            407,
            397,
            356,
            440,
            379,
            46,
            51,
            337,
            426,
            408,
            315,
            367,
            377,
            44,
            46,
            338,
            395,
            437,
            313,
            354,
            377,
            45,
            41,
            396,
            512,
            560,
            487,
            439,
            336,
            51,
            51,
            460,
            615,
            628,
            636,
            606,
            273,
            57,
        ],
    ),
    "p00001/s02/1.dcm": (
        0.60046,
        0.23875,
        [
            976,
            961,
            803,
            663,
            660,
            777,
            938,
            954,
            739,
            537,
            499,
            499,
            496,
            501,
            518,
            659,
            614,
            430,
            542,
            477,
            437,
            467,
            320,
            571,
            802,
            490,
            651,
            480,
            384,
            678,
            488,
            774,
            873,
            558,
            653,
            469,
            306,
            627,
            564,
            848,
            913,
            583,
            649,
            472,
            275,
            523,
            606,
            886,
            950,
            568,
            427,
            356,
            309,
            524,
            514,
            908,
            978,
            563,
            375,
            340,
            323,
            359,
            452,
            904,
        ],
    ),
    "p00002/s01/1.dcm": (
        0.43606,
        0.23890,
        [
            69,
            166,
            313,
            374,
            370,
            343,
            195,
            77,
            396,
            565,
            537,
            530,
            560,
            507,
            549,
            538,
            320,
            585,
            435,
            498,
            639,
            374,
            584,
            491,
            174,
            519,
            358,
            532,
            690,
            351,
            509,
            299,
            122,
            483,
            383,
            571,
            732,
            475,
            466,
            240,
            90,
            478,
            509,
            619,
            728,
            547,
            433,
            211,
            88,
            564,
            695,
            734,
            741,
            647,
            573,
            188,
            81,
            418,
            500,
            523,
            531,
            508,
            448,
            138,
        ],
    ),
    "p00002/s01/2.dcm": (
        0.33336,
        0.23510,
        [
            60,
            94,
            399,
            588,
            541,
            415,
            47,
            53,
            65,
            48,
            576,
            621,
            610,
            716,
            183,
            61,
            54,
            202,
            550,
            459,
            423,
            601,
            337,
            34,
            34,
            376,
            398,
            378,
            346,
            421,
            356,
            32,
            66,
            436,
            416,
            422,
            314,
            367,
            362,
            32,
            100,
            402,
            396,
            462,
            320,
            363,
            349,
            34,
            66,
            476,
            581,
            581,
            569,
            451,
            290,
            38,
            99,
            526,
            605,
            615,
            634,
            594,
            228,
            41,
        ],
    ),
    "p00003/s01/1.dcm": (
        0.46862,
        0.21820,
        [
            18,
            69,
            282,
            474,
            473,
            292,
            107,
            36,
            420,
            513,
            532,
            536,
            533,
            537,
            538,
            469,
            563,
            599,
            445,
            561,
            573,
            444,
            601,
            533,
            320,
            549,
            353,
            566,
            656,
            393,
            540,
            305,
            243,
            497,
            392,
            672,
            724,
            598,
            473,
            249,
            198,
            467,
            400,
            688,
            739,
            652,
            490,
            216,
            156,
            508,
            623,
            732,
            710,
            612,
            463,
            201,
            125,
            587,
            716,
            760,
            756,
            715,
            630,
            211,
        ],
    ),
}


def thumbnail(path: Path) -> tuple[float, float, list[int]]:
    """Mean and standard deviation of the stored values over their range, and an 8 by 8 reduction in thousandths."""
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array / (2.0**dataset.BitsStored - 1)
    small = Image.fromarray(pixels.astype(np.float32)).resize((8, 8), Image.Resampling.BOX)
    return float(pixels.mean()), float(pixels.std()), np.rint(np.asarray(small).ravel() * 1000).astype(int).tolist()


def golden_text(folder: Path) -> str:
    """Hash of all that is not a sample value: texts, tables, and each file's header."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix == ".dcm":
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
            elements = [(int(element.tag), str(element.value)) for element in dataset if element.VR != "SQ"]
            digest.update(repr((str(dataset.file_meta.TransferSyntaxUID), elements)).encode())
        elif file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def test_golden(tmp_path: Path) -> None:
    # thumbnails within a tolerance, for sines and roots may differ in the last bit from one processor to another
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


# --- findings in the image ----------------------------------------------------------------------------------

PATIENT = sample_patient(1, stream(5))


def view_of(name: str, patient: Patient = PATIENT, seed: int = 1) -> View:
    return sample_view(name, patient, False, stream(seed))


def reduce_to_64(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image.clip(0, 1)).resize((64, 64), Image.Resampling.BOX))


def difference(view: View, findings: tuple[Finding, ...]) -> np.ndarray:
    """What the findings change at 64 by 64, in multiples of the noise there.

    Changes below a quarter of the largest are left out: the display range adapts a little over the whole
    image.
    """
    without = reduce_to_64(draw_radiograph(PATIENT, view, (), None, stream(7)))
    other_noise = reduce_to_64(draw_radiograph(PATIENT, view, (), None, stream(8)))
    with_findings = reduce_to_64(draw_radiograph(PATIENT, view, findings, None, stream(7)))
    change = np.abs(with_findings - without)
    return np.where(change > change.max() / 4, change, 0) / np.std(other_noise - without)


def finding_of(name: str, **wanted: str) -> Finding:
    """A random finding that has the wanted words."""
    for seed in itertools.count():
        finding = sample_finding(name, stream(11, seed))
        if all(getattr(finding, word) == value for word, value in wanted.items()):
            return finding
    raise AssertionError


def extent(mask: np.ndarray) -> tuple[int, int]:
    """Rows and columns that hold any of the mask."""
    return int(mask.any(axis=1).sum()), int(mask.any(axis=0).sum())


SPANNING = [name for name in FINDINGS if name not in ("nodule", "fracture")]


@pytest.mark.parametrize("name", SPANNING)
@pytest.mark.parametrize("view", ["PA", "LL"])
def test_mild_findings_span_three_pixels_at_64(name: str, view: str) -> None:
    severity = "" if name == "pacemaker" else "mild"
    changed = difference(view_of(view), (finding_of(name, severity=severity),)) > 6
    assert min(extent(changed)) >= 3
    assert changed.mean() < 0.5


@pytest.mark.parametrize("name", ["nodule", "fracture"])
def test_small_findings_are_visible(name: str) -> None:
    view = view_of("PA")
    finding = finding_of(name, severity="moderate")
    without = draw_radiograph(PATIENT, view, (), None, stream(7))
    noise = np.std(draw_radiograph(PATIENT, view, (), None, stream(8)) - without)
    changed = np.abs(draw_radiograph(PATIENT, view, (finding,), None, stream(7)) - without)
    blurred = np.asarray(Image.fromarray(changed).reduce(3))
    assert (blurred > noise).sum() >= 6


@pytest.mark.parametrize("name", [name for name in FINDINGS if name != "cardiomegaly"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("view", ["PA", "AP"])
def test_findings_lie_on_the_stated_side(name: str, side: str, view: str) -> None:
    change = difference(view_of(view), (finding_of(name, side=side),))
    viewer_left, viewer_right = change[:, :32].sum(), change[:, 32:].sum()
    # the patient's left is at the viewer's right
    assert (viewer_right > 2 * viewer_left) if side == "left" else (viewer_left > 2 * viewer_right)


@pytest.mark.parametrize("name", ["cardiomegaly", "pleural_effusion", "consolidation", "pneumothorax"])
def test_severe_changes_more_than_mild(name: str) -> None:
    side = "" if name == "cardiomegaly" else "right"
    wanted = {"site": "lower lobe"} if name == "consolidation" else {}
    if side:
        wanted["side"] = side
    mild, severe = (
        difference(view_of("PA"), (finding_of(name, severity=severity, **wanted),)).sum()
        for severity in ("mild", "severe")
    )
    assert severe > 1.4 * mild


def test_attenuation_is_bright_and_lungs_are_dark() -> None:
    image = reduce_to_64(draw_radiograph(PATIENT, view_of("PA"), (), None, stream(7)))
    lungs = np.concatenate([image[24:34, 14:20], image[24:34, 44:50]], axis=1)
    assert image[24:40, 30:34].mean() > lungs.mean() + 0.3
    assert image[56:, 28:36].mean() > lungs.mean() + 0.3


def test_anatomy_persists_over_a_patients_images() -> None:
    others = [sample_patient(number, stream(5, number)) for number in range(5)]
    images = [
        [
            reduce_to_64(draw_radiograph(patient, view_of("PA", patient, seed), (), None, stream(9, seed)))[8:, 8:56]
            for seed in (21, 22)
        ]
        for patient in others
    ]

    def correlation(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])

    same = np.mean([correlation(pair[0], pair[1]) for pair in images])
    different = np.mean([correlation(images[a][0], images[b][1]) for a in range(5) for b in range(5) if a != b])
    assert same > different + 0.005


def test_quantise_inverts_for_monochrome1() -> None:
    image = np.linspace(-0.1, 1.1, 50, dtype=np.float32)[None].repeat(2, axis=0)
    plain, (centre, width) = quantise(image, 12, inverted=False)
    inverted, _ = quantise(image, 12, inverted=True)
    assert (np.diff(plain[0].astype(int)) > 0).all()
    assert (plain + inverted == 4095).all()
    assert np.interp(0.5, image[0], plain[0]) == pytest.approx(centre, abs=1)
    assert np.interp(1.0, image[0], plain[0]) == pytest.approx(centre + width / 2, abs=2)


# --- findings and reports -----------------------------------------------------------------------------------


def many_studies(count: int) -> list[tuple[Finding, ...]]:
    return [sample_findings(stream(31, number)) for number in range(count)]


def test_shares_of_findings() -> None:
    studies = many_studies(2000)
    normal = sum(not findings for findings in studies) / len(studies)
    assert 0.42 <= normal <= 0.48
    for name in FINDINGS:
        share = sum(name in [finding.name for finding in findings] for findings in studies) / len(studies)
        assert 0.05 < share < 0.30, name
    assert any(len(findings) > 1 for findings in studies)


def test_pacemaker_stays_with_the_patient() -> None:
    pacemaker = finding_of("pacemaker")
    for seed in range(20):
        assert pacemaker in sample_findings(stream(seed), (pacemaker, finding_of("nodule")))


def test_truth_row() -> None:
    effusion = finding_of("pleural_effusion", side="left", severity="severe")
    row = truth((effusion,))
    assert tuple(row) == TRUTH_COLUMNS
    filled = {column: value for column, value in row.items() if value not in ("0", "")}
    assert filled == {"pleural_effusion": "1", "pleural_effusion_side": "left", "pleural_effusion_severity": "severe"}
    empty = truth(())
    assert empty["no_finding"] == "1"
    assert all(value in ("0", "") for column, value in empty.items() if column != "no_finding")


def test_about_a_fifth_of_reports_is_the_standard_text() -> None:
    reports = [
        write_report(findings, ("PA",), True, stream(41, number)) for number, findings in enumerate(many_studies(2000))
    ]
    assert 0.17 <= reports.count(STANDARD_NORMAL) / len(reports) <= 0.23
    assert len(set(reports)) > 0.7 * len(reports)


@pytest.mark.parametrize("name", FINDINGS)
def test_ten_wordings_and_words_that_agree_with_the_truth(name: str) -> None:
    assert len(set(WORDINGS[name])) >= 10
    assert len(set(BILATERAL_EFFUSION)) >= 10
    seen = set()
    for seed in range(400):
        finding = sample_finding(name, stream(51, seed))
        text = word_finding(finding, stream(52, seed)).lower()
        assert "{" not in text
        seen.add(text)
        words = set(re.findall(r"[a-z-]+", text))
        if "side" in DETAILS[name]:
            assert words & {"left", "right", "bilateral"} == {finding.side}, text
        if "site" in DETAILS[name]:
            assert finding.site in text
        if finding.severity:
            stated = {severity for severity in SEVERITIES if words & set(SEVERITY_WORDS[name][severity])}
            assert stated == {finding.severity}, text
    assert len(seen) >= 10


def stated_findings(text: str) -> set[tuple[str, str]]:
    """Name and side of every finding that a report states, read back through the grammar's wordings."""
    slots = {"side": "(?P<side>left|right|bilateral)", "site": "[a-z ]+", "severity": "[a-z-]+"}
    slots |= {name.capitalize(): pattern for name, pattern in slots.items()}
    stated = set()
    for name, wordings in [*WORDINGS.items(), ("pleural_effusion", BILATERAL_EFFUSION)]:
        for wording in wordings:
            pattern = re.sub(r"\\{(\w+)\\}", lambda slot: slots[slot[1]], re.escape(wording))
            side = "" if name == "cardiomegaly" else "bilateral" if wordings is BILATERAL_EFFUSION else None
            for match in re.finditer(r"(?:^|(?<=\s))" + pattern, text, re.IGNORECASE | re.MULTILINE):
                stated.add((name, match["side"].lower() if side is None else side))
    return stated


def test_whole_reports_state_the_truth_and_nothing_else() -> None:
    stated_any = 0
    for seed in range(300):
        findings = sample_findings(stream(61, seed))
        text = write_report(findings, ("PA", "LL"), False, stream(62, seed))
        assert stated_findings(text) == {(finding.name, finding.side) for finding in findings}, text
        for finding in findings:
            assert not any(denial in text for denial in NEGATIONS[finding.name]), text
        stated_any += bool(findings)
    assert stated_any > 100


def test_reports_deny_what_is_absent() -> None:
    texts = [write_report((), ("PA",), True, stream(63, seed)) for seed in range(200)]
    for name, denials in NEGATIONS.items():
        assert any(denial in text for text in texts for denial in denials), name


# --- DICOM --------------------------------------------------------------------------------------------------


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
def test_pixels_survive_and_files_conform(tmp_path: Path, modality: str, syntax: str, photometric: str) -> None:
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


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (dicom3tools) is not installed")
def test_demo_files_conform(demo: DemoSummary) -> None:
    paths = sorted(demo.folder.rglob("*.dcm"))
    assert len(paths) == 10
    for path in paths:
        check = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        assert "Error" not in check.stdout + check.stderr


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
