"""Tests of report tables: columns, rows, encodings, refused tables, memory use, and how little of a table is kept."""

import codecs
import csv
import gzip
import json
import math
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from cyclic_cli.config import PrepareConfig
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.prepare.columns import is_identifying
from cyclic_cli.prepare.layouts import LAYOUTS, ReportStream
from cyclic_cli.prepare.report import Report, merge
from cyclic_cli.prepare.sources import Input
from cyclic_cli.prepare.tables import TABLE_NAMES
from cyclic_cli.prepare.texts import side_car
from cyclic_cli.privacy.scrub import Identifying


def stream(*paths: Path, **settings: Any) -> ReportStream:
    files = [Input(path, path.name, path.name) for path in paths]
    return LAYOUTS["tables"].read(files, PrepareConfig(**settings))


def write(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def content(report: Report) -> dict[str, Any]:
    """The fields of a report that are not empty, without its position and identities."""
    fields = asdict(report)
    for name in ("line", "table", "identifying"):
        del fields[name]
    return {name: value for name, value in fields.items() if value}


ROWS = [
    {
        "Path": "a/1.png", "Patient ID": "77", "StudyInstanceUID": "1.2.3", "AccessionNumber": "A-9", "split": "Valid",
        "SOPInstanceUID": "1.2.3.4", "report_text": "Größe normal; klar.\nKein Erguss.", "No Finding": "1.0",
        "referring_physician": "Dr. Grün", "Study Date": "20200131", "kVp": "120",
    },
    {
        "Path": "a/2.png", "Patient ID": "78.0", "StudyInstanceUID": "", "AccessionNumber": "", "split": "",
        "SOPInstanceUID": "", "report_text": "", "No Finding": "NaN", "referring_physician": "", "Study Date": "",
        "kVp": "",
    },
]  # fmt: skip
EXPECTED = [
    {
        "image": "a/1.png", "instance": "1.2.3.4", "study": "1.2.3", "accession": "A-9", "patient": "77",
        "text": "Größe normal; klar.\nKein Erguss.", "split": "val", "labels": {"no_finding": 1.0},
    },
    {"image": "a/2.png", "patient": "78", "labels": {"no_finding": None}},
]  # fmt: skip


def as_csv(delimiter: str, rows: list[dict[str, str]] = ROWS) -> str:
    lines = Path("made.csv")
    with lines.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return lines.read_bytes().decode()


def as_json(rows: list[dict[str, str]] = ROWS) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("t.csv", lambda: as_csv(",").encode()),
        ("t.csv", lambda: as_csv(";").encode()),
        ("t.csv", lambda: b"sep=;\r\n" + as_csv(";").encode("cp1252")),
        ("t.csv", lambda: b"sep=|\r\n" + as_csv("|").encode()),
        ("t.tsv", lambda: as_csv("\t").encode("cp1252")),
        ("t.csv", lambda: codecs.BOM_UTF8 + as_csv(",").encode()),
        ("t.csv", lambda: as_csv(",").encode("utf-16")),
        ("t.csv", lambda: codecs.BOM_UTF16_BE + as_csv(";").encode("utf-16-be")),
        ("t.csv", lambda: as_csv(",").encode("utf-16-le")),
        ("t.tsv", lambda: as_csv("\t").encode("utf-16-be")),
        ("t.csv", lambda: as_csv(",").encode("utf-32")),
        ("t.csv", lambda: as_csv(",").encode("utf-32-be")),
        ("t.csv", lambda: as_csv(",").encode("mac_roman")),
        ("t.csv", lambda: as_csv(";").encode("cp850")),
        ("t.jsonl", lambda: as_json().encode("utf-16-le")),
        ("t.csv", lambda: as_csv(",").replace("\r\n", "\r").encode()),
        ("t.csv.gz", lambda: gzip.compress(as_csv(",").encode())),
        ("packed.csv", lambda: gzip.compress(as_csv(",").encode())),
        ("t.jsonl", lambda: as_json().encode()),
        ("t.ndjson.gz", lambda: gzip.compress(codecs.BOM_UTF8 + as_json().encode())),
        ("t.csv", lambda: as_csv(",").encode() + b"\r\n,,,,,,,,,,\r\n  \r\n"),
    ],
    ids=[
        "comma", "semicolon", "excel", "bar", "tabs", "utf-8 bom", "utf-16", "utf-16 big endian", "utf-16 unmarked",
        "utf-16 big endian unmarked", "utf-32", "utf-32 unmarked", "mac", "dos", "json utf-16", "cr line ends", "gzip",
        "gzip without suffix", "json", "json gzip", "blank rows",
    ],
)  # fmt: skip
def test_a_table_reads_the_same_in_every_format_and_encoding(name: str, written: Callable[[], bytes]) -> None:
    reports = stream(write(name, written()))
    assert reports.labels == ["no_finding"]
    read = list(reports)
    assert [content(report) for report in read] == EXPECTED
    assert read[0].identifying == Identifying(("Dr. Grün", "20200131", "77", "1.2.3", "A-9"))
    assert read[1].identifying == Identifying(("78",))
    assert read[0].table == str(Path(name).absolute())


def test_reports_name_their_line_and_hide_their_content() -> None:
    path = write("t.csv", 'path,text\na.png,"One\nmore."\nb.png,Two.\n')
    assert [report.line for report in stream(path)] == ["t.csv, line 3", "t.csv, line 4"]
    path = write("t.jsonl", '\n{"path": "a.png", "text": "One."}\n\n{"path": "b.png", "text": "Two."}')
    reports = list(stream(path))
    assert [report.line for report in reports] == ["t.jsonl, line 2", "t.jsonl, line 4"]
    assert "One" not in repr(reports)


def test_columns_are_recognised_by_their_usual_names_in_any_spelling() -> None:
    for image in ("path", "Image", "imagePath", "FILE NAME", "filename", "dicom_id", "DICOM-Path"):
        assert [content(report) for report in stream(write("t.csv", f"{image},text\nx.png,T.\n"))] == [
            {"image": "x.png", "text": "T."}
        ]
    for column, field in {
        "SOPInstanceUID": "instance", "sop_instance_uid": "instance", "instance_uid": "instance",
        "AccessionNumber": "accession", "accession_number": "accession", "Accession No.": "accession",
        "StudyInstanceUID": "study", "study_id": "study", "PatientID": "patient", "subject_id": "patient",
    }.items():  # fmt: skip
        assert [content(report) for report in stream(write("t.csv", f"{column},caption\n5,T.\n"))] == [
            {field: "5", "text": "T."}
        ]


def test_the_text_is_a_column_or_findings_and_impression_and_a_report_column_may_be_a_number() -> None:
    row = {"report": "17", "indication": "Cough.", "findings": "Clear.", "impression": "Normal."}
    assert [content(report) for report in stream(write("t.jsonl", json.dumps(row)))] == [
        {"study": "17", "text": "Clear.\nNormal."}
    ]
    assert [content(report) for report in stream(write("t.csv", "file,report\na,Clear.\n"))] == [
        {"image": "a", "text": "Clear."}
    ]
    both = stream(write("t.csv", "file,text,findings\na,Whole.,Part.\n"))
    assert [content(report) for report in both] == [{"image": "a", "text": "Whole."}]


def test_an_image_that_is_named_by_a_uid_gets_that_instance() -> None:
    path = write("t.csv", "image_id,text\n1.2.840.10008.1.7,T.\n1.2.840.1.7.dcm,U.\n")
    assert [report.instance for report in stream(path)] == ["1.2.840.10008.1.7", ""]


def test_columns_named_in_the_settings_are_read_and_must_exist() -> None:
    path = write("t.csv", "bild,befund,person,path,seite\nx.png,Klar.,9,other.png,links\n")
    settings = {
        "image_column": "bild",
        "text_column": "befund",
        "patient_column": "person",
        "label_columns": ("seite",),
    }
    reports = stream(path, **settings)
    assert reports.labels == ["seite"]
    assert reports.notes == [
        "t.csv: image: bild; text: befund; patient: person; labels: seite; 1 other columns are not read"
    ]
    assert [content(report) for report in reports] == [
        {"image": "x.png", "text": "Klar.", "patient": "9", "labels": {"seite": "links"}}
    ]
    with pytest.raises(UsageError, match="Unknown column of the tables: 'bidl'") as error:
        stream(path, image_column="bidl")
    assert "'bild'" in error.value.hint
    second = write("u.csv", "path,edema\na.png,1\n")
    assert stream(path, second, **settings).labels == ["seite", "edema"]


def test_json_rows_may_have_columns_of_their_own() -> None:
    rows = [{"path": "a", "text": "T."}] * 1500 + [{"path": "b", "edema": True, "text": None}, {"path": 7}]
    reports = stream(write("t.jsonl", as_json(rows)))
    assert reports.labels == ["edema"]
    last = list(reports)[-2:]
    assert [content(report) for report in last] == [
        {"image": "b", "labels": {"edema": 1.0}}, {"image": "7", "labels": {"edema": None}}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,text\na.png,No effusion, no mass\n", "t.csv, line 2: more cells than the header row"),
        ("path,text\na.png,No effusion\nand no mass\n", "t.csv, line 3: fewer cells than the header row"),
        ('path,text\n\na.png,"secret\nb.png,x\n', "t.csv, line 4: unexpected end"),
        ('path,text\na.png,"secret"x\n', "t.csv, line 2: ',' expected after '\"'"),
        ("path,text\na.png,se\0cret\n", "t.csv, line 2, has a NUL character"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "no column of images"),
        ("path,text,text\na.png,secret,secret\n", "t.csv, line 1: 2 columns are called 'text'"),
        ("sep=;\npath;text;path\na;b;c\n", "t.csv, line 2: 2 columns are called 'path'"),
        ("path,text\n", "t.csv has a header row but no other rows"),
        ("", "no column of images"),
        ("\n\n \n", "no column of images"),
        ("foo,bar\nsecret,secret\n", "no column of images"),
        ("path,age\nsecret,secret\n", "no column of images"),
        ("patient,edema\nsecret,1\n", "no column of images"),
        ("path,split\na.png,secret\n", "t.csv, line 2: unknown name of a split"),
        ('path,text\n"' + "x" * (2**24 + 1), "t.csv, line 2, is too long for a table"),
    ],
)
def test_a_table_that_would_be_misread_is_refused(content: str | bytes, message: str) -> None:
    path = write("t.csv", content)
    with pytest.raises(UsageError) as error:
        list(stream(path))
    assert message in error.value.message
    assert error.value.hint
    assert "secret" not in error.value.message + error.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"path": "a"}\n["secret"]\n', "t.jsonl, line 2, is not a JSON object"),
        ('{"path": "a"}\n\n{"path": "secret"\n', "t.jsonl, line 3, is not a JSON object"),
        ('{"path": ' + "[" * 100_000, "t.jsonl, line 1, is not a JSON object"),
        ('{"path": "a", "text": "b"}\n{"path": "se\0cret"}\n', "t.jsonl, line 2, has a NUL character"),
        ("".join(json.dumps({f"c{number}": 1}) + "\n" for number in range(10_001)), "more than 10000 columns"),
        ("", "no column of images"),
    ],
)
def test_json_lines_that_would_be_misread_are_refused(content: str, message: str) -> None:
    path = write("t.jsonl", content)
    with pytest.raises(UsageError) as error:
        list(stream(path))
    assert message in error.value.message
    assert "secret" not in error.value.message + error.value.hint


def test_long_names_of_columns_are_shortened_in_errors() -> None:
    with pytest.raises(UsageError) as error:
        stream(write("t.csv", f"{'long ' * 20},b\n1,2\n"))
    assert f"Columns: b, {'long ' * 8}…." in error.value.hint


@pytest.mark.parametrize("cut", [20, -20])
def test_a_damaged_or_missing_table_is_an_error(cut: int) -> None:
    whole = gzip.compress(as_csv(",").encode())
    with pytest.raises(CyclicError, match=r"The table t\.csv\.gz cannot be read: it is damaged"):
        list(stream(write("t.csv.gz", whole[:cut])))
    with pytest.raises(CyclicError, match="cannot be read: No such file"):
        stream(Path("nowhere.csv"))


def test_a_column_of_images_patients_or_texts_cannot_be_a_label() -> None:
    path = write("t.csv", "path,patient,accession,sopinstanceuid,text,modality\na.png,7,8,9,x,CT\n")
    for column in ("path", "patient", "accession", "sopinstanceuid", "text"):
        with pytest.raises(UsageError, match="holds images, patients or texts, so it cannot be a label"):
            stream(path, label_columns=(column,))
    assert stream(path, label_columns=("modality",)).labels == [
        "label_modality"
    ]  # the index has a column `modality` of its own


def test_tables_are_read_in_a_zip_archive() -> None:
    with zipfile.ZipFile("z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/reports.csv", as_csv(","))
    table = Input(Path("z.zip"), "z.zip/in/reports.csv", "z.zip/in/reports.csv", "in/reports.csv")
    read = list(LAYOUTS["tables"].read([table], PrepareConfig()))
    assert [content(report) for report in read] == EXPECTED
    assert read[0].table == f"{Path('z.zip').absolute()}/in/reports.csv"


def test_one_stray_byte_changes_no_other_row_and_the_guess_is_told() -> None:
    lines = [b"path,text", "a,Müller: großer Erguß.".encode(), "b,Größe normal.".encode("cp1252"), "c,Łódź.".encode()]
    reports = stream(write("t.csv", b"\n".join(lines)))
    assert reports.notes[1:] == ["t.csv: lines that are not UTF-8 are read as cp1252, which was guessed"]
    assert [report.text for report in reports] == ["Müller: großer Erguß.", "Größe normal.", "Łódź."]


def test_a_quoted_text_may_have_line_ends_in_every_encoding() -> None:
    text = 'path,text\r\na,"Größe normal.\r\nKein ""Erguß"", Müller."\r\nb,Übrig.\r\n'
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32-le", "cp1252", "mac_roman"):
        read = list(stream(write("t.csv", text.encode(encoding))))
        assert [report.text for report in read] == ['Größe normal.\r\nKein "Erguß", Müller.', "Übrig."], encoding
        assert [report.line for report in read] == ["t.csv, line 3", "t.csv, line 4"]


def test_joined_files_may_have_a_mark_within() -> None:
    rows = [json.dumps({"path": name, "text": "Größe"}, ensure_ascii=False).encode() + b"\n" for name in "ab"]
    assert [report.image for report in stream(write("t.jsonl", b"".join(codecs.BOM_UTF8 + row for row in rows)))] == [
        "a",
        "b",
    ]


def test_texts_names_and_labels_are_plain_text_and_paths_stay_as_they_are() -> None:
    row = {
        "path": "a&amp;b\\T\\c.png",
        "text": "<p>M&uuml;ller</p>",
        "patient name": "M&uuml;ller",
        "side": "Li&#110;ks",
    }
    (report,) = stream(write("t.jsonl", json.dumps(row)), label_columns=("side",))
    assert (report.image, report.text, report.labels) == ("a&amp;b\\T\\c.png", "Müller", {"side": "Links"})
    assert report.identifying.names == ("Müller",)


def test_half_a_character_in_json_is_damage_and_no_error() -> None:
    (report,) = stream(write("t.jsonl", '{"path": "a", "text": "M\\ud83dller \\ud83d\\ude00"}'))
    assert "\ufffd" in report.text
    assert report.text.endswith("😀")


# --------------------------------------------------------------------------------------------------- identities


def test_identifying_columns_are_distinguished_from_clinical_columns() -> None:
    for name in (
        "name,Name,patient_name,PatientName,patientname,First Name,lastname,surname,Maiden name,MRN,ssn,patient number,"
        "OtherPatientIDs,medical_record_no,AccessionNumber,StudyDate,date,Date of Birth,PatientBirthDate,dob,exam date,"
        "seriesdate,InstitutionName,hospital,institution_address,address,ZIP,city,phone number,Telephone,email,"
        "ReferringPhysicianName,referringphysicianname,radiologist,reporting_radiologist,performing physician,operator,"
        "StationName,Geburtsdatum,Vorname,Überweisender Arzt,Prénom,fecha_de_nacimiento,visit_id,insurance number"
    ).split(","):
        assert is_identifying(name), name
    for name in (
        "file_name,image_name,disease_name,modality,view_position,ViewPosition,patient_age,PatientSex,age,sex,label,"
        "region,location,body part,finding,diagnosis,update,validated,candidate,procedure,series description,"
        "window_center,radiology,comparison,technique,state,patient_position,kVp,Rows,quality,laterality"
    ).split(","):
        assert not is_identifying(name), name


def test_cells_of_identifying_columns_are_kept_as_names_and_long_cells_as_remarks() -> None:
    remark = "Seen by " + "somebody " * 20
    path = write("t.csv", f'path,text,patient name,address,kVp\na.png,Clear.,"Doe, Jane",{remark.strip()},120\n')
    reports = stream(path)
    assert reports.notes[0].endswith("3 other columns are not read (contents of 2 are cut out of the reports)")
    (report,) = reports
    assert report.identifying == Identifying(("Doe, Jane",), (remark.strip(),))
    assert content(report) == {"image": "a.png", "text": "Clear."}


# ---------------------------------------------------------------------------------------------- helpers


def test_rows_of_one_image_are_merged_unless_they_contradict_each_other() -> None:
    first = Report(image="a", patient="7", labels={"edema": 1.0, "nodule": None}, line="t, line 2")
    second = Report(image="x/a", text="T.", accession="5", split="train", labels={"nodule": 0.0})
    named = Report(identifying=Identifying(("Doe",)), line="u, line 9")
    merged = merge(first, second)
    assert merged is not None
    merged = merge(merged, named)
    assert merged == Report(
        image="a", patient="7", text="T.", accession="5", split="train", labels={"edema": 1.0, "nodule": 0.0},
        line="t, line 2", identifying=Identifying(("Doe",)),
    )  # fmt: skip
    for name in ("text", "patient", "study", "accession", "instance", "split"):
        assert merge(Report(**{name: "1"}), Report(**{name: "2"})) is None
        assert merge(Report(**{name: "1"}), Report(**{name: "1"})) == Report(**{name: "1"})
    assert merge(first, Report(labels={"edema": 0.0})) is None


def test_a_side_car_has_the_name_of_its_image_or_is_report_txt() -> None:
    texts = {"scan.txt", "report.txt", "1.2.3.4.txt"}
    assert side_car(Path("scan.dcm"), texts) == "scan.txt"
    assert side_car(Path("1.2.3.4"), texts) == "1.2.3.4.txt"
    assert side_car(Path("other.png"), texts) == "report.txt"
    assert side_car(Path("other.png"), {"notes.txt"}) is None


def test_tables_with_usual_names_are_read_although_nobody_names_them() -> None:
    assert {"reports.csv", "reports.jsonl", "findings.csv", "labels.csv", "reports.tsv", "labels.csv.gz"} <= {
        *TABLE_NAMES
    }
    assert LAYOUTS["tables"].claims("reports.csv")
    assert not LAYOUTS["tables"].claims("deep/reports.csv")


# ---------------------------------------------------------------------------------------------- streaming


COLUMNS = ("path", "text", "edema")


def many(name: str, rows: int) -> Path:
    """A table with a number of rows of about 150 characters each."""
    row = "p/{0}.png,Study {0} shows no effusion and no pneumothorax. " + "The lungs are clear. " * 4 + ",{1}\n"
    lines: Iterator[str] = (row.format(number, number % 2) for number in range(rows))
    if name.endswith(".jsonl"):
        lines = (json.dumps(dict(zip(COLUMNS, line[:-1].split(","), strict=True))) + "\n" for line in lines)
    else:
        lines = chain([",".join(COLUMNS) + "\n"], lines)
    with gzip.open(name, "wt", compresslevel=1) if name.endswith(".gz") else open(name, "w") as file:
        file.writelines(lines)
    return Path(name)


def peak(path: Path) -> tuple[int, int]:
    """The number of rows read, and the peak of memory in bytes."""
    tracemalloc.start()
    count = sum(1 for _ in stream(path))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return count, most


@pytest.mark.parametrize("rows", [20_000, pytest.param(200_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["t.csv.gz", "t.jsonl"])
def test_memory_does_not_grow_with_the_length_of_a_table(name: str, rows: int) -> None:
    few, of_few = peak(many(name, 2_000))
    count, most = peak(many(name, rows))
    assert (few, count) == (2_000, rows)
    assert most < 1.1 * of_few + 2**16


def test_time_grows_linearly_with_the_length_of_a_table() -> None:
    times = []
    for rows in (2_000, 20_000):
        path = many("t.csv", rows)
        runs = []
        for _ in range(3):
            begin = time.perf_counter()
            assert math.isclose(sum(1 for _ in stream(path)), rows)
            runs.append(time.perf_counter() - begin)
        times.append(min(runs))
    assert times[1] < 20 * times[0]
