"""Tests of the layouts of public collections on small trees of files, and of DICOM Structured Reports."""

import gzip
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pydicom
import pytest
from helpers.makers import make_dicom, smooth_image
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from cyclic_cli.config import PrepareConfig
from cyclic_cli.errors import UsageError
from cyclic_cli.imaging.dicom.structured_report import LONGEST, text_of
from cyclic_cli.prepare.layouts import LAYOUTS, ReportStream, findings_and_impression, resolve
from cyclic_cli.prepare.report import Report
from cyclic_cli.prepare.sources import Input, walk
from cyclic_cli.privacy.scrub import Identifying

IDS = [f"{number:08x}-b65eeadb-4b4eb4e7-c5ab33a4-9e1d3f32" for number in range(4)]


def write(files: dict[str, str | bytes], root: str = "files_of") -> Path:
    """Write a tree of files: text as UTF-8, and compressed where the name ends with `.gz`."""
    for name, content in files.items():
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return Path(root)


class Tree:
    """A tree as its layout reads it: `images` with the patient and study in their paths, and `reports`."""

    def __init__(self, root: Path, name: str = "auto", tables: tuple[Path, ...] = (), **settings: Any) -> None:
        found = sorted(walk([root], Path("out")), key=lambda item: item.source)
        self.layout = resolve(name, (item.relative for item in found))
        claimed = [item for item in found if self.layout.claims(item.relative)]
        self.images = {
            item.relative: self.layout.owner(item.relative)
            for item in found
            if item not in claimed and not item.relative.endswith(".txt")
        }
        named = [Input(table, table.name, table.name) for table in tables]
        self.stream: ReportStream = self.layout.read(named + claimed, PrepareConfig(**settings))
        self.all = list(self.stream)
        self.reports = [content_of(report) for report in self.all]


def content_of(report: Report) -> dict[str, Any]:
    """The fields of a report that are not empty, without its table and identities."""
    fields = asdict(report)
    for name in ("table", "identifying"):
        del fields[name]
    return {name: value for name, value in fields.items() if value}


# ------------------------------------------------------------------------------------------------ MIMIC-CXR

MIMIC_REPORT = """\
                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ with new onset ascites  // eval for infection

 COMPARISON:  None.

 FINDINGS:

 There is no focal consolidation,
 pleural effusion or pneumothorax.

 HEART:  Of normal size.

 IMPRESSION:

 No acute cardiopulmonary process.

 RECOMMENDATION(S):  None.
"""
MIMIC_TEXT = (
    "There is no focal consolidation, pleural effusion or pneumothorax. HEART: Of normal size.\n"
    "No acute cardiopulmonary process."
)
MIMIC_STUDIES = [("10000032", "50414267"), ("10000032", "53189527"), ("11000011", "51029426")]
MIMIC_IMAGES = [(*MIMIC_STUDIES[0], IDS[0]), (*MIMIC_STUDIES[0], IDS[1]), (*MIMIC_STUDIES[2], IDS[2])]


def mimic_folder(patient: str, study: str) -> str:
    return f"files/p{patient[:2]}/p{patient}/s{study}"


def mimic_images(suffix: str) -> dict[str, str | bytes]:
    return {f"{mimic_folder(patient, study)}/{name}{suffix}": b"x" for patient, study, name in MIMIC_IMAGES}


def mimic_cxr() -> dict[str, str | bytes]:
    images = (
        f"{patient},{study},{name},{mimic_folder(patient, study)}/{name}.dcm\n" for patient, study, name in MIMIC_IMAGES
    )
    studies = (f"{patient},{study},{mimic_folder(patient, study)}.txt\n" for patient, study in MIMIC_STUDIES)
    return mimic_images(".dcm") | {
        f"{mimic_folder(*MIMIC_STUDIES[0])}.txt": MIMIC_REPORT,
        f"{mimic_folder(*MIMIC_STUDIES[1])}.txt": " FINAL REPORT\n CHEST, TWO VIEWS:\n\n Clear lungs.\n",
        "cxr-record-list.csv.gz": "subject_id,study_id,dicom_id,path\n" + "".join(images),
        "cxr-study-list.csv.gz": "subject_id,study_id,path\n" + "".join(studies),
        "cxr-provider-list.csv.gz": "study_id,ordering_provider_id\n50414267,P1\n",
    }


def mimic_cxr_jpg() -> dict[str, str | bytes]:
    labels = "subject_id,study_id,Atelectasis,No Finding,Support Devices\n"
    splits = zip(MIMIC_IMAGES, ("train", "train", "validate"), strict=True)
    split = (f"{name},{study},{patient},{where}\n" for (patient, study, name), where in splits)
    metadata = (f"{name},{patient},{study},PA,21800506,213014.531\n" for patient, study, name in MIMIC_IMAGES)
    return mimic_images(".jpg") | {
        "mimic-cxr-2.0.0-split.csv.gz": "dicom_id,study_id,subject_id,split\n" + "".join(split),
        "mimic-cxr-2.0.0-metadata.csv.gz": "dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime\n"
        + "".join(metadata),
        "mimic-cxr-2.0.0-chexpert.csv.gz": labels + "10000032,50414267,-1.0,,1.0\n10000032,53189527,,1.0,\n",
        "mimic-cxr-2.0.0-negbio.csv.gz": labels + "10000032,50414267,0.0,,\n",
        "mimic-cxr-2.1.0-test-set-labeled.csv": "study_id,Atelectasis\n51029426,1\n",
        f"{mimic_folder(*MIMIC_STUDIES[0])}.txt": MIMIC_REPORT,
    }


OWNERS = [(patient, study) for patient, study, _ in MIMIC_IMAGES]


def test_mimic_cxr() -> None:
    tree = Tree(write(mimic_cxr()))
    assert tree.layout is LAYOUTS["mimic-cxr"]
    assert tree.images == dict(zip(mimic_images(".dcm"), OWNERS, strict=True))
    assert tree.reports == [
        {
            "image": f"files/p{patient[:2]}/p{patient}/s{study}/{name}.dcm", "study": study, "patient": patient,
            "line": f"cxr-record-list.csv.gz, line {line}",
        }
        for line, (patient, study, name) in enumerate(MIMIC_IMAGES, 2)
    ] + [
        {"study": study, "patient": patient, "line": f"cxr-study-list.csv.gz, line {line}"}
        for line, (patient, study) in enumerate(MIMIC_STUDIES, 2)
    ] + [
        {"study": "50414267", "patient": "10000032", "text": MIMIC_TEXT, "line": "s50414267.txt"},
        {"study": "53189527", "patient": "10000032", "text": "Clear lungs.", "line": "s53189527.txt"},
    ]  # fmt: skip
    root = Path("files_of").absolute()
    assert tree.all[0].table == str(root / "cxr-record-list.csv.gz")
    assert tree.all[-1].table == str(root / "files/p10/p10000032/s53189527.txt")
    assert tree.all[0].identifying == Identifying(("10000032", "50414267"))
    assert tree.stream.labels == []
    assert tree.stream.notes == [
        "cxr-record-list.csv.gz: image: path; patient: subject_id; study: study_id; 1 other columns are not read",
        "cxr-study-list.csv.gz: image: path; patient: subject_id; study: study_id; 0 other columns are not read",
        "1 text files of the collection hold no reports and are not read",
    ]


def test_documents_may_have_other_encodings_and_markup_around_their_headings() -> None:
    first, second, third = (f"{mimic_folder(*owner)}.txt" for owner in MIMIC_STUDIES)
    tree = Tree(
        write({
            first: " FINDINGS:\n\n Größe normal, Jörg.\n".encode("cp1252"),
            second: "{\\rtf1 FINDINGS:\\par\\par Gr\\'f6\\'dfe normal.\\par IMPRESSION:\\par Normal.}",
            third: "<p>FINDINGS:</p><p>Gr&ouml;&szlig;e normal.</p>".encode("utf-16-le"),
        })
    )  # fmt: skip
    assert [report["text"] for report in tree.reports] == [
        "Größe normal, Jörg.", "Größe normal.\nNormal.", "Größe normal.",
    ]  # fmt: skip
    assert tree.stream.notes == [
        "1 text files: lines that are not UTF-8 are read as cp1252, which was guessed",
        "1 text files: read as utf-16-le, which was guessed",
    ]


def test_mimic_cxr_jpg() -> None:
    tree = Tree(write(mimic_cxr_jpg()))
    assert tree.layout is LAYOUTS["mimic-cxr-jpg"]
    assert tree.images == dict(zip(mimic_images(".jpg"), OWNERS, strict=True))
    of_study = {"study": "50414267", "patient": "10000032"}
    named = [{name: value for name, value in report.items() if name != "line"} for report in tree.reports]
    assert named == [
        of_study | {"text": MIMIC_TEXT},
        of_study | {"labels": {"atelectasis": -1.0, "no_finding": None, "support_devices": 1.0}},
        of_study
        | {"study": "53189527", "labels": {"atelectasis": None, "no_finding": 1.0, "support_devices": None}},
        *(
            {"image": f"files/p{patient[:2]}/p{patient}/s{study}/{name}.jpg", "patient": patient, "study": study}
            for patient, study, name in MIMIC_IMAGES
        ),
        of_study | {"split": "train"},
        of_study | {"split": "train"},
        {"study": "51029426", "patient": "11000011", "split": "val"},
    ]  # fmt: skip
    assert tree.stream.labels == ["atelectasis", "no_finding", "support_devices"]
    assert tree.stream.notes[-1] == "2 text files of the collection hold no reports and are not read"
    assert "21800506" in tree.all[3].identifying.names


def test_images_of_mimic_cxr_are_joined_with_texts_and_tables_of_mimic_cxr_jpg() -> None:
    both = {
        name: content for name, content in mimic_cxr_jpg().items() if not name.endswith((".jpg", "metadata.csv.gz"))
    }
    tree = Tree(write(mimic_cxr() | both))
    assert tree.layout is LAYOUTS["mimic-cxr"]
    assert {report["split"] for report in tree.reports if report.get("study") == "50414267" and "split" in report} == {
        "train"
    }
    assert all(report["image"].endswith(".dcm") for report in tree.reports if "image" in report)


def test_a_part_of_mimic_is_recognised_and_its_lists_may_be_in_another_folder() -> None:
    lists = write({name: content for name, content in mimic_cxr().items() if name.startswith("cxr-record")}, "lists")
    part = write(mimic_cxr()) / "files/p10"
    tree = Tree(part, tables=(lists / "cxr-record-list.csv.gz",))
    assert list(tree.images.values()) == OWNERS[:2]
    assert [report["image"] for report in tree.reports[:3]] == list(mimic_images(".dcm"))
    assert [report["text"] for report in tree.reports[3:]] == [MIMIC_TEXT, "Clear lungs."]
    texts = write({f"{mimic_folder(*MIMIC_STUDIES[0])}.txt": MIMIC_REPORT}, "texts")
    assert Tree(texts).reports == [tree.reports[3]]


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (MIMIC_REPORT, MIMIC_TEXT),
        ("", ""),
        (" FINAL REPORT\n\n The lungs are\n clear.\n", "The lungs are clear."),
        (" FINAL REPORT\n The lungs are clear.\n", "The lungs are clear."),
        (" HISTORY: Cough.\n\n COMPARISON:  None.\n \n Clear lungs.\n \n No mass.\n", "Clear lungs.\nNo mass."),
        (" INDICATION:  Cough.\n", ""),
        (" IMPRESSION:\n No change.\n\n NOTIFICATION:  Dr. ___ by telephone.", "No change."),
        (" FINDINGS AND IMPRESSION: Clear.\n", "Clear."),
        (" IMPRESSON:  Clear.\n INDCATION:  Cough.\n", "Clear."),
        (" CONCLUSION:  Clear.\n WET READ: ___ No mass.\n", "Clear."),
        (" CHEST, PA LATERAL:\n\n INDICATION:  Cough.\n\n FINDINGS:  Clear.\n", "Clear."),
        (" PORTABLE AP CHEST RADIOGRAPH:  A tube ends in the\n trachea.\n", "A tube ends in the trachea."),
        (" FINDINGS:\n LUNGS:  Clear.\n BONES:  Intact.\n", "LUNGS: Clear. BONES: Intact."),
        (" DOSE:  3 mGy\n FINDINGS:  Clear: no mass.\n", "Clear: no mass."),
    ],
)  # fmt: skip
def test_findings_and_impression_of_a_report(report: str, text: str) -> None:
    assert findings_and_impression(report) == text
    assert findings_and_impression(report.replace("\n", "\r\n")) == text


# --------------------------------------------------------------------------------------------------- Open-i


def openi_report(number: str = "1", **sections: str) -> str:
    texts = "".join(f'<AbstractText Label="{label}">{text}</AbstractText>' for label, text in sections.items())
    return f"""<?xml version="1.0" encoding="utf-8"?>
<eCitation>
  <meta type="rr"/><uId id="CXR{number}"/><pmcId id="{number}"/>
  <MedlineCitation Owner="Indiana University"><Article><Abstract>{texts}</Abstract>
    <AuthorList><Author><LastName>Kohli</LastName></Author></AuthorList></Article></MedlineCitation>
  <MeSH><major>normal</major></MeSH>
  <parentImage id="CXR{number}_1_IM-0001-3001"><caption>Xray Chest PA</caption></parentImage>
</eCitation>"""


OPENI: dict[str, str | bytes] = {
    "ecgen-radiology/1.xml": openi_report(
        COMPARISON="None.", INDICATION="Positive TB test", FINDINGS="Heart\n normal &amp; clear.", IMPRESSION="Normal."
    ),
    "ecgen-radiology/10.xml": openi_report("10", INDICATION="Cough.", FINDINGS="", IMPRESSION="No disease."),
    "NLMCXR_png/CXR1_1_IM-0001-3001.png": b"x",
    "NLMCXR_png/CXR1_1_IM-0001-4001.png": b"x",
    "NLMCXR_png/CXR10_IM-0002-1001.png": b"x",
    "NLMCXR_dcm/1/1_IM-0001-3001.dcm": b"x",
    "NLMCXR_dcm/10/10_IM-0002-1001.dcm": b"x",
}


def test_open_i() -> None:
    tree = Tree(write(OPENI))
    assert tree.layout is LAYOUTS["openi"]
    assert {path: study for path, (_, study) in tree.images.items()} == {
        "NLMCXR_png/CXR1_1_IM-0001-3001.png": "1", "NLMCXR_png/CXR1_1_IM-0001-4001.png": "1",
        "NLMCXR_png/CXR10_IM-0002-1001.png": "10", "NLMCXR_dcm/1/1_IM-0001-3001.dcm": "1",
        "NLMCXR_dcm/10/10_IM-0002-1001.dcm": "10",
    }  # fmt: skip
    assert all(patient == study for patient, study in tree.images.values())
    assert tree.reports == [
        {"study": "1", "patient": "1", "text": "Heart normal & clear.\nNormal.", "line": "1.xml"},
        {"study": "10", "patient": "10", "text": "No disease.", "line": "10.xml"},
    ]
    assert tree.stream.notes == []


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "secret"><!ENTITY c "&b;&b;&b;&b;">]>'
    '<a><AbstractText Label="FINDINGS">&c;</AbstractText></a>'
)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (BOMB, "an XML document with a type declaration"),
        (BOMB.encode("utf-16"), "an XML document with a type declaration"),
        ("<a>secret</b>", "not well-formed XML"),
        ("<a>&secret;</a>", "not well-formed XML"),
        (b"\0" * 10, "not well-formed XML"),
        ("", "not well-formed XML"),
        ("<a>" * 100_000, "not well-formed XML"),
        (b"<a>" + b" " * 2**24, "more than 16 MiB, too large for a report"),
    ],
)
def test_an_xml_report_that_cannot_be_read_is_counted_and_the_others_are_read(content: str | bytes, why: str) -> None:
    tree = Tree(write(OPENI | {"ecgen-radiology/1.xml": content, "ecgen-radiology/2.xml": content}))
    assert [report["text"] for report in tree.reports] == ["No disease."]
    assert tree.stream.notes == [f"2 text files could not be read; the first is 1.xml: {why}"]


def test_a_deeply_nested_xml_report_is_read() -> None:
    deep = "<a>" * 100_000 + '<AbstractText Label="FINDINGS">Clear.</AbstractText>' + "</a>" * 100_000
    assert Tree(write({"ecgen-radiology/7.xml": deep})).reports == [
        {"study": "7", "patient": "7", "text": "Clear.", "line": "7.xml"}
    ]


# ----------------------------------------------------------------------------------------------------- ROCO


LINK = "wget -r ftp://ftp.ncbi.nlm.nih.gov/pub/pmc/oa_package/8e/93/PMC4083729.tar.gz -O x"
ROCO: dict[str, str | bytes] = {
    "train/radiology/captions.txt": "ROCO_00002\t CT of\n the chest. \nROCO_00003\t X-ray.\n",
    "train/radiology/dlinks.txt": f"ROCO_00003\t{LINK}\tAMHSR-4-14-g002.jpg\nROCO_00004\tnothing\n",
    "train/radiology/keywords.txt": "ROCO_00002\ttomography\n",
    "train/radiology/images/ROCO_00002.jpg": b"x",
    "train/radiology/images/PMC4083729_AMHSR-4-14-g002.jpg": b"x",
    "validation/radiology/captions.txt": "ROCO_00010\t  MRI of the brain.",
    "validation/radiology/images/ROCO_00010.jpg": b"x",
    "test/non-radiology/captions.txt": "ROCO_00020\tA photograph.",
}


def test_roco() -> None:
    tree = Tree(write(ROCO))
    assert tree.layout is LAYOUTS["roco"]
    assert tree.images == {
        "train/radiology/images/ROCO_00002.jpg": ("", "ROCO_00002"),
        "train/radiology/images/PMC4083729_AMHSR-4-14-g002.jpg": ("", ""),
        "validation/radiology/images/ROCO_00010.jpg": ("", "ROCO_00010"),
    }
    assert tree.reports == [
        {"study": "ROCO_00020", "text": "A photograph.", "split": "test", "line": "captions.txt, ROCO_00020"},
        {
            "study": "ROCO_00002", "text": "CT of the chest.", "split": "train",
            "line": "captions.txt, ROCO_00002",
        },
        {"study": "ROCO_00003", "text": "X-ray.", "split": "train", "line": "captions.txt, ROCO_00003"},
        {
            "image": "images/PMC4083729_AMHSR-4-14-g002.jpg", "study": "ROCO_00003", "split": "train",
            "line": "dlinks.txt, ROCO_00003",
        },
        {"study": "ROCO_00010", "text": "MRI of the brain.", "split": "val", "line": "captions.txt, ROCO_00010"},
    ]  # fmt: skip
    assert tree.all[3].table == str(Path("files_of/train/radiology/dlinks.txt").absolute())
    assert tree.stream.notes == ["1 text files of the collection hold no reports and are not read"]


def test_roco_of_version_2() -> None:
    tree = Tree(
        write(
            {
                "train_captions.csv": 'ID,Caption\nROCOv2_2023_train_000001,"Head CT, axial."\n',
                "valid_captions.csv": "ID,Caption\nROCOv2_2023_valid_000001,Chest film.\n",
                "train_concepts.csv": "ID,CUIs\nROCOv2_2023_train_000001,C0040405\n",
                "license_information.csv": "ID,License\nROCOv2_2023_train_000001,CC BY\n",
                "train/ROCOv2_2023_train_000001.jpg": b"x",
                "valid/ROCOv2_2023_valid_000001.jpg": b"x",
            }
        )
    )
    assert tree.layout is LAYOUTS["roco"]
    assert tree.images == {
        "train/ROCOv2_2023_train_000001.jpg": ("", "ROCOv2_2023_train_000001"),
        "valid/ROCOv2_2023_valid_000001.jpg": ("", "ROCOv2_2023_valid_000001"),
    }
    assert tree.reports == [
        {
            "study": "ROCOv2_2023_train_000001", "text": "Head CT, axial.", "split": "train",
            "line": "train_captions.csv, line 2",
        },
        {
            "study": "ROCOv2_2023_valid_000001", "text": "Chest film.", "split": "val",
            "line": "valid_captions.csv, line 2",
        },
    ]  # fmt: skip
    assert tree.stream.notes[-1] == "2 text files of the collection hold no reports and are not read"


# --------------------------------------------------------------------------------------------------- tables


def test_tables_beside_the_images_and_named_ones() -> None:
    files: dict[str, str | bytes] = {
        "a.png": b"x", "deep/b.png": b"x", "findings.csv": "path,edema\na.png,1\n", "deep/reports.csv": "path\nb\n",
        "reports.jsonl": '{"path": "a.png", "text": "A."}\n', "notes.txt": "about nothing",
    }  # fmt: skip
    other = write({"other.tsv": "file\tcaption\nb.png\tB.\n"}, "elsewhere") / "other.tsv"
    tree = Tree(write(files), tables=(other,))
    assert tree.layout is LAYOUTS["tables"]
    assert tree.images == {"a.png": ("", ""), "deep/b.png": ("", ""), "deep/reports.csv": ("", "")}
    assert tree.reports == [
        {"image": "b.png", "text": "B.", "line": "other.tsv, line 2"},
        {"image": "a.png", "labels": {"edema": 1.0}, "line": "findings.csv, line 2"},
        {"image": "a.png", "text": "A.", "line": "reports.jsonl, line 1"},
    ]
    assert tree.stream.labels == ["edema"]


@pytest.mark.parametrize("files", [mimic_cxr(), mimic_cxr_jpg(), OPENI], ids=["mimic-cxr", "mimic-cxr-jpg", "openi"])
def test_every_layout_reads_tables_of_the_user_and_may_be_in_an_archive(files: dict[str, str | bytes]) -> None:
    table = f"path,text,split,edema\n{next(iter(files))},Own words.,test,0\n"
    root = write(files | {"reports.csv": table})
    tree = Tree(root)
    own = {"text": "Own words.", "split": "test", "labels": {"edema": 0.0}, "line": "reports.csv, line 2"}
    assert own | {"image": next(iter(files))} in tree.reports
    zipped = Path("packed.zip").absolute()
    with zipfile.ZipFile(zipped, "w") as archive:
        for path in (root / name for name in files):
            archive.write(path, path.relative_to(root))
    packed = Tree(zipped)
    assert packed.layout is tree.layout
    assert packed.reports == [report for report in tree.reports if report["line"] != "reports.csv, line 2"]
    assert list(packed.images.values()) == list(tree.images.values())


# ------------------------------------------------------------------------------------ from a layout to a dataset


def with_pictures(files: dict[str, str | bytes]) -> Path:
    """Write a tree, with a distinct image for every file of an image."""
    root = write(files)
    for number, (name, content) in enumerate(files.items()):
        if content == b"x" and name.endswith(".dcm"):
            make_dicom(
                root / name, smooth_image(number), bits=8, PatientID=f"another {number}", StudyInstanceUID="1.2.3"
            )
        elif content == b"x":
            Image.fromarray(smooth_image(number)).save(root / name)
    return root


def pairs(cyclic: Callable[..., Any], root: Path) -> dict[str, tuple[str, str]]:
    """Name of an image → its text and split, in the dataset made from a tree."""
    ran = cyclic("prepare", root, "--out", "ds", "--size", "32", "--already-deidentified", "--json")
    assert ran.code == 0
    rows = pq.read_table("ds/index.parquet").to_pylist()
    return {Path(row["source"] or "none").name: (row["text"], row["split"]) for row in rows if row["text"]}


def test_reports_of_mimic_reach_the_images_of_their_study(cyclic: Callable[..., Any]) -> None:
    found = pairs(cyclic, with_pictures(mimic_cxr_jpg()))
    assert found == {f"{IDS[0]}.jpg": (MIMIC_TEXT, "train"), f"{IDS[1]}.jpg": (MIMIC_TEXT, "train")}
    rows = pq.read_table("ds/index.parquet").to_pylist()
    assert {(row["support_devices"], row["split"]) for row in rows} == {(1.0, "train"), (None, "val")}
    assert len({row["patient"] for row in rows}) == len({row["study"] for row in rows}) == 2


def test_reports_of_mimic_reach_dicom_images(cyclic: Callable[..., Any]) -> None:
    found = pairs(cyclic, with_pictures(mimic_cxr()))
    assert {name: text for name, (text, _) in found.items()} == {
        f"{IDS[0]}.dcm": MIMIC_TEXT, f"{IDS[1]}.dcm": MIMIC_TEXT, "none": "Clear lungs.",
    }  # fmt: skip


def test_reports_of_open_i_reach_png_and_dicom_images(cyclic: Callable[..., Any]) -> None:
    first = "Heart normal & clear.\nNormal."
    found = pairs(cyclic, with_pictures(OPENI))
    assert {name: text for name, (text, _) in found.items()} == {
        "CXR1_1_IM-0001-3001.png": first, "CXR1_1_IM-0001-4001.png": first, "1_IM-0001-3001.dcm": first,
        "CXR10_IM-0002-1001.png": "No disease.", "10_IM-0002-1001.dcm": "No disease.",
    }  # fmt: skip


def test_captions_of_roco_reach_their_images(cyclic: Callable[..., Any]) -> None:
    assert pairs(cyclic, with_pictures(ROCO)) == {
        "ROCO_00002.jpg": ("CT of the chest.", "train"), "PMC4083729_AMHSR-4-14-g002.jpg": ("X-ray.", "train"),
        "ROCO_00010.jpg": ("MRI of the brain.", "val"), "none": ("A photograph.", "test"),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- choice of a layout


def test_auto_does_not_depend_on_the_order_of_files() -> None:
    mixed = ["notes.txt", "files/p10/p10000032/s50414267.txt", "files/p10/p10000032/s50414267/x.jpg", "a.png"]
    assert resolve("auto", mixed) is resolve("auto", reversed(mixed)) is LAYOUTS["mimic-cxr-jpg"]
    for name, relative in {
        "mimic-cxr": "p10/p10000032/s50414267/x.dcm", "openi": "x/ecgen-radiology/12.xml",
        "roco": "test/ROCOv2_2023_test_000001.png",
    }.items():  # fmt: skip
        assert resolve("auto", [relative]) is LAYOUTS[name]


@pytest.mark.parametrize(
    "relative",
    [
        "a.png", "reports.csv", "p10/s50/x.dcm", "files/p1000003/s50414267/x.dcm", "12.xml", "IM-0001-0001.dcm",
        "1_IM-0001-0001.dcm", "NORMAL2-IM-0115-0001.jpeg", "captions.txt", "train_captions.csv", "Procopius.jpg",
        "case/report.txt", "train/images/a.jpg",
    ],
)  # fmt: skip
def test_ordinary_files_are_of_no_special_layout(relative: str) -> None:
    assert resolve("auto", [relative]) is LAYOUTS["tables"]


def test_layouts_have_names() -> None:
    assert set(LAYOUTS) == {"mimic-cxr", "mimic-cxr-jpg", "openi", "roco", "tables"}
    assert resolve("tables", ["x/ecgen-radiology/12.xml"]) is LAYOUTS["tables"]
    with pytest.raises(UsageError, match="Unknown layout: 'mimic'") as error:
        resolve("mimic", [])
    assert "Did you mean 'mimic-cxr'?" in error.value.hint


# ----------------------------------------------------------------------------------------- Structured Reports


def code(value: str, meaning: str, scheme: str = "DCM") -> Dataset:
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, scheme, meaning
    return made


def item(kind: str, name: Dataset | None, *below: Dataset, relation: str = "CONTAINS", **values: Any) -> Dataset:
    made = Dataset()
    made.ValueType, made.RelationshipType = kind, relation
    if name is not None:
        made.ConceptNameCodeSequence = [name]
    for keyword, value in values.items():
        setattr(made, keyword, value)
    if below:
        made.ContentSequence = list(below)
    return made


FINDINGS, FINDING = code("121070", "Findings"), code("121071", "Finding")
IMPRESSIONS, IMPRESSION = code("121072", "Impressions"), code("121073", "Impression")


def document(*content: Dataset, sop_class: str = "1.2.840.10008.5.1.4.1.1.88.11") -> Dataset:
    """A Structured Report, written to a file and read again."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, sop_class
    meta.MediaStorageSOPInstanceUID = "2.25.1"
    made = Dataset()
    made.file_meta = meta
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = sop_class, "2.25.1", "SR"
    made.SpecificCharacterSet = "ISO_IR 192"
    made.PatientName, made.ContentDate = "Secret^Name", "20200131"
    made.ValueType, made.ConceptNameCodeSequence = "CONTAINER", [code("18745-0", "Cardiac report", "LN")]
    made.ContentSequence = list(content)
    buffer = BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return pydicom.dcmread(buffer)


def test_a_basic_text_report_nested_as_in_the_standard() -> None:
    report = document(
        item("PNAME", code("121008", "Person Observer Name"), relation="HAS OBS CONTEXT", PersonName="Secret^Doctor"),
        item("TEXT", code("121009", "Organization"), relation="HAS OBS CONTEXT", TextValue="Secret Hospital"),
        item("CONTAINER", code("121060", "History"), item("TEXT", code("121060", "History"), TextValue="Secret past.")),
        item(
            "CONTAINER", FINDINGS,
            item("TEXT", FINDING, TextValue="Größe of the heart  is\r\nnormal.\r\n"),
            item("TEXT", FINDING, TextValue="No effusion."),
        ),
        item("CONTAINER", IMPRESSIONS, item("TEXT", IMPRESSION, TextValue="Normal chest.")),
    )  # fmt: skip
    assert text_of(report) == "Findings:\nGröße of the heart is\nnormal.\nNo effusion.\nImpressions:\nNormal chest."


def test_a_comprehensive_report_gives_texts_and_code_meanings_in_reading_order() -> None:
    nodule = item(
        "CODE", FINDING,
        item("CODE", code("363698007", "Finding Site", "SCT"), relation="HAS PROPERTIES",
             ConceptCodeSequence=[code("45653009", "Upper lobe of right lung", "SCT")]),
        item("CODE", code("121049", "Language"), relation="HAS CONCEPT MOD",
             ConceptCodeSequence=[code("en", "Secret")]),
        item("TEXT", code("121069", "Comment"), relation="INFERRED FROM", TextValue="Round."),
        item("NUM", code("103355008", "Width", "SCT"), relation="HAS PROPERTIES"),
        ConceptCodeSequence=[code("27925004", "Nodule", "SCT")],
    )  # fmt: skip
    report = document(
        item("DATE", code("111060", "Study Date"), Date="20200131"),
        item("DATETIME", code("122165", "Seen"), DateTime="20200131120000"),
        item("UIDREF", code("112002", "Series"), UID="1.2.3.4"),
        item("PNAME", code("122134", "Author"), PersonName="Secret^Author"),
        item("TEXT", code("18834-2", "Secret", "LN"), TextValue="Secret film of last year."),
        item("CONTAINER", FINDINGS, nodule, item("CONTAINER", None, item("TEXT", None, TextValue="Lungs clear."))),
        item("CONTAINER", code("55112-7", "Summary", "LN"), item("IMAGE", None)),
        item("TEXT", code("121077", "Conclusion"), TextValue="A nodule."),
        sop_class="1.2.840.10008.5.1.4.1.1.88.33",
    )
    assert text_of(report) == "\n".join(
        [
            "Findings:", "Nodule", "Finding Site: Upper lobe of right lung", "Comment: Round.", "Lungs clear.",
            "Conclusion: A nodule.",
        ]
    )  # fmt: skip


def deep() -> Dataset:
    made = item("TEXT", None, TextValue="Too deep.")
    for _ in range(60):
        made = item("CONTAINER", None, made)
    return document(item("TEXT", None, TextValue="Near."), made)


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (Dataset, ""),
        (document, ""),
        (lambda: document(Dataset(), item("TEXT", None), item("CODE", None), item("CONTAINER", None)), ""),
        (lambda: document(item("TEXT", Dataset(), TextValue="Alone.")), "Alone."),
        (deep, "Near."),
        (lambda: document(item("TEXT", None, TextValue="x" * (LONGEST + 9))), "x" * LONGEST),
    ],
    ids=["nothing", "no content", "empty items", "no name", "deep", "long"],
)
def test_empty_deep_and_long_reports(report: Callable[[], Dataset], text: str) -> None:
    assert text_of(report()) == text
