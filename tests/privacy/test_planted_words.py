"""Tests that identities in headers, tables and paths never reach what a command writes.

Every attribute of the DICOM dictionary, and some private attributes, get a word, number, date or UID that occurs
nowhere else. The reports contain these values too. Then commands run, and all files that they write are searched.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pydicom
import pytest
from helpers.makers import Ran, make_dicom, make_png, smooth_image
from PIL import Image
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ImplicitVRLittleEndian

Cyclic = Callable[..., Ran]

PATIENTS = 12
MARK = "zqjvxk"  # part of every planted word
NUMBER = "7391468"  # part of every planted number and UID
YEAR = "1931"  # year of every planted date
NEEDED = {  # attributes that describe how pixels are stored and shown, and so keep their values
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "PixelData", "FloatPixelData",
    "DoubleFloatPixelData", "SOPClassUID", "BurnedInAnnotation", "SpecificCharacterSet", "PatientSex", "PatientAge",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleSlope", "RescaleIntercept", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "PresentationLUTShape", "ModalityLUTSequence", "VOILUTSequence", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "NumberOfFramesInOverlay", "PixelDataProviderURL",
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------- planted values


class Planter:
    """Makes valid values that occur nowhere else; `said` collects the values that a report may contain."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self.numbers = numbers
        self.said: list[str] = []

    def word(self) -> str:
        number = next(self.numbers)
        letters = "".join(chr(ord("a") + number // 26**place % 26) for place in range(4))
        self.said.append(f"Zqjvxk{letters}")
        return self.said[-1]

    def value(self, vr: str) -> object:
        """A value for a value representation (VR); None for a VR without values of its own, such as SQ."""
        number = next(self.numbers)
        month, day = 1 + number % 12, 1 + number % 28
        if vr in ("LO", "LT", "SH", "ST", "UC", "UT", "PN"):
            return f"{self.word()}^{self.word()}" if vr == "PN" else self.word()
        if vr in ("CS", "AE"):
            return self.word().upper()
        if vr == "UR":
            return f"https://{self.word()}.example/{self.word()}"
        if vr in ("DA", "DT"):
            self.said += [f"{day:02}/{month:02}/{YEAR}", f"{YEAR}-{month:02}-{day:02}", f"{day:02}.{month:02}.{YEAR}"]
            return f"{YEAR}{month:02}{day:02}" + ("101112" if vr == "DT" else "")
        plain = {
            "TM": "101112", "AS": "047Y", "UI": f"1.2.826.0.1.{NUMBER}.{number}", "IS": f"{NUMBER}{number % 100}",
            "DS": f"{NUMBER}.{number}", "US": 7391, "SS": -7391, "UL": 7391468, "SL": -7391468, "UV": 7391468,
            "SV": -7391468, "FL": 7391468.5, "FD": 7391468.5, "AT": 0x73914682,
        }  # fmt: skip
        if vr in ("OB", "UN"):
            return f"{self.word()} {self.word()}".encode()
        if vr in ("OD", "OF", "OL", "OV", "OW"):
            return np.full(4, 7391468, "<f4").tobytes() * 2
        self.said += [plain[vr]] if vr in ("IS", "UI") else []
        return plain.get(vr)


def planted(planter: Planter, every: bool) -> Dataset:
    """A header with a value in every attribute of the dictionary, or in one attribute per value representation."""
    data, seen = Dataset(), set()
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if keyword in NEEDED or not keyword or tag >> 16 in (0x0000, 0x0002, 0x0004, 0xFFFA, 0xFFFC, 0xFFFE):
            continue
        if " or " in vr:  # pixels, lookup tables and waveforms, whose VR depends on other attributes
            continue
        if not every and vr in seen and tag not in (0x00100010, 0x00100020, 0x00080050, 0x00080080, 0x00080090):
            continue
        seen.add(vr)
        if vr == "SQ":
            item = Dataset()
            item.StudyDescription, item.PersonName = planter.word(), planter.value("PN")
            data.add(DataElement(tag, "SQ", Sequence([item])))
        else:
            data.add(DataElement(tag, vr, planter.value(vr)))
    add_private(data, planter)
    nested = Dataset()
    add_private(nested, planter)
    data.add(DataElement(0x00081140, "SQ", Sequence([nested])))
    return data


def add_private(data: Dataset, planter: Planter) -> None:
    block = data.private_block(0x0029, "CYCLIC TEST", create=True)
    for offset, vr in enumerate(("LO", "SH", "LT", "ST", "UT", "PN", "CS", "DA", "DT", "UI", "IS", "DS", "OB", "UN")):
        block.add_new(offset, vr, planter.value(vr))
    item = Dataset()
    item.PatientComments = planter.word()
    block.add_new(0x80, "SQ", Sequence([item]))


@dataclass(frozen=True)
class Planted:
    """A folder of files with planted values, the table of their reports, and the number of planted words."""

    folder: Path
    table: Path
    words: int


def report_with(said: list[str]) -> str:
    """A report that contains all values, in several orders, in several cases and joined in several ways."""
    first, *_ = said
    pieces = [
        " ".join(said), " ".join(reversed(said)).upper(), ", ".join(said[:9]).lower(), "^".join(said[:5]),
        f"{first}'s chest. Dr. {first}-{first.upper()}; ({first}) _{first}_ {first}/{first}: no pneumothorax.",
    ]  # fmt: skip
    return "\n".join(pieces)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    folder = tmp_path_factory.mktemp("planted") / "source"
    numbers = count()
    rows = []
    for patient in range(PATIENTS):
        planter = Planter(numbers)
        header = planted(planter, every=patient % 6 == 0)
        header.PatientID = f"{planter.word()}{patient}"
        header.StudyInstanceUID = f"1.2.826.0.1.{NUMBER}.1.{patient}"
        name = planter.word()
        path = folder / planter.word() / f"{name}.dcm"
        syntax = ImplicitVRLittleEndian if patient % 2 else "1.2.840.10008.1.2.1"
        values = {element.keyword: element.value for element in header if element.keyword}
        make_dicom(path, smooth_image(patient).astype(np.uint16) * 16, syntax=syntax, **values)
        stored = pydicom.dcmread(path)
        for element in header:
            if element.tag.is_private:
                stored.add(element)
        stored.file_meta.SourceApplicationEntityTitle = planter.word().upper()
        stored.file_meta.PrivateInformationCreatorUID = UID(f"1.2.826.0.1.{NUMBER}.9")
        stored.file_meta.PrivateInformation = planter.word().encode()
        stored.save_as(path)
        cells = {column: planter.word() for column in ("patient_name", "mrn", "address", "hospital", "insurance_no")}
        cells |= {"birth_date": f"{YEAR}-05-06", "remark": Planter(numbers).word()}
        content = path.read_bytes().lower() + json.dumps(cells).lower().encode()
        said = [word for word in planter.said if not word.isalpha() or word.lower().encode() in content]
        rows.append({"path": str(path.relative_to(folder)), "text": report_with(said), **cells})
    table = folder / "reports.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Planted(folder, table, next(numbers))


# ------------------------------------------------------------------------------------------------------------- search


def needles() -> list[bytes]:
    """The encodings in which bytes may contain planted words: UTF-8, UTF-16, hexadecimal and base64."""
    found = []
    for word in (MARK, MARK.upper(), MARK.capitalize()):
        found += [word.encode(), word.encode("utf-16-le"), word.encode().hex().encode()]
        for shift in range(3):  # the base64 characters that depend only on the word
            coded = base64.b64encode(b"\0" * shift + word.encode() + b"\0\0\0")
            found.append(coded[-(-shift * 8 // 6) : (shift + len(word)) * 8 // 6])
    return found


NEEDLES = needles()
NUMBERS = re.compile(
    rf"(?<![0-9a-f]){NUMBER}|{NUMBER}(?![0-9a-f])|(?<![0-9a-f]){YEAR}[-/.]?\d\d|[./]{YEAR}(?!\d)".encode()
)


def leaks(content: bytes) -> list[str]:
    """The kinds of planted values in some bytes. The values themselves are not given, as test output is kept too."""
    return [needle.hex() for needle in NEEDLES if needle in content] + [
        f"number at {match.start()}" for match in NUMBERS.finditer(content)
    ]


def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and the content that is compressed in them."""
    yield path.read_bytes()
    if path.suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            yield repr(file.metadata.to_dict()).encode() + repr(file.schema_arrow.metadata).encode()
            for column in file.read().to_pydict().values():
                yield "\n".join(map(str, column)).encode()
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
            yield repr(image.info).encode()


def assert_nothing_leaks(*places: Path | str) -> None:
    for place in places:
        if isinstance(place, str):
            assert not leaks(place.encode()), "the terminal"
            continue
        for path in place.rglob("*"):
            name = str(path.relative_to(place))
            assert not leaks(name.encode()), "a file's name"
            for content in contents(path) if path.is_file() else ():
                assert not leaks(content), name


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders where a command may write: working folder, home, cache and temporary folder."""
    folders = [tmp_path / name for name in ("work", "home", "cache", "tmp")]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(folders[-1]))
    monkeypatch.setenv("CYCLIC_SALT", "the same patients in the same splits")
    return folders


# -------------------------------------------------------------------------------------------------------------- tests


def test_the_search_finds_what_is_planted(files: Planted, tmp_path: Path) -> None:
    text = files.table.read_text()
    word = re.findall(r"Zqjvxk[a-z]{4}", text)[0]
    assert leaks(text.encode())
    for hidden in (word.upper().encode(), word.encode("utf-16-le"), word.encode().hex().encode()):
        assert leaks(b"\x01\x02" + hidden)
    assert all(leaks(base64.b64encode(b"x" * shift + word.encode())) for shift in range(3))
    assert leaks(f"12/03/{YEAR}".encode())
    assert leaks(f"id {NUMBER}12".encode())
    pyarrow.parquet.write_table(pyarrow.table({"a": [word] * 100}), tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(AssertionError):
        assert_nothing_leaks(tmp_path)
    assert files.words > 5000


def test_nothing_planted_reaches_what_commands_write(files: Planted, cyclic: Cyclic, places: list[Path]) -> None:
    said = ["prepare", files.folder, "--no-paths", "--size", "32", "--split", "50/25/25"]
    ran = [cyclic(*said, "--reports", files.table, "--json")]
    assert ran[0].code == 0, ran[0].err
    assert ran[0].json["paired"] == PATIENTS
    assert all(ran[0].json["splits"].values())
    scans = ["reconstruct", files.folder / "*" / "*.dcm", "--no-paths", "--model", "runs/model"]
    ran += [
        cyclic("train", "--arch", "conv", "--epochs", "1", "--device", "cpu", "--out", "runs/model"),
        cyclic("train", "--arch", "conv", "--epochs", "1", "--device", "cpu", "--out", "runs/model"),  # refused
        cyclic("info", "dataset"), cyclic("info", "dataset", "--json"), cyclic("info", "runs/model", "--json"),
        cyclic(*scans, "--json", "--summary", "summary.json"),
        cyclic(*scans, "--format", "npy", "--out", "arrays"),
        cyclic(*said, "--reports", files.table),  # the dataset is finished
        cyclic(*said, "--reports", files.table, "--bits", "16"),  # refused: the dataset has other settings
        cyclic(*said, "--reports", files.table, "--part", "1/2", "--out", "parts"),  # left unfinished
        cyclic(*said, "--layout", "tables", "--out", "found", "--frames", "all", "--bits", "16", "--exact"),
        cyclic("embed", files.folder / "*" / "*.dcm", "--no-paths", "--model", "runs/model"),
        cyclic("embed", "dataset", "--model", "runs/model", "--out", "e.parquet", "--with-text"),
    ]  # fmt: skip
    key = pyarrow.parquet.read_table("e.parquet")["key"].to_pylist()[0]
    ran.append(cyclic("search", key, "--in", "e.parquet", "--dataset", "dataset", "--page", "page.html"))
    codes = [0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert [result.code for result in ran] == codes, [result.err for result in ran]
    assert "no pneumothorax." in Path("page.html").read_text(encoding="utf-8")
    assert_nothing_leaks(*places, *(result.out + result.err for result in ran))


def test_texts_keep_everything_but_identities(files: Planted, cyclic: Cyclic) -> None:
    cyclic("prepare", files.folder, "--no-paths", "--size", "32", "--reports", files.table, "--json")
    texts = pyarrow.parquet.read_table("dataset/index.parquet")["text"].to_pylist()
    assert len(texts) == PATIENTS
    assert all("'s chest. Dr. ___" in text and "no pneumothorax." in text for text in texts)


def test_nothing_planted_reaches_errors(files: Planted, cyclic: Cyclic, places: list[Path]) -> None:
    """Causes of errors: broken copies, contradicting rows, a ragged table, failing runs."""
    broken = places[0].parent / "broken"
    for number, path in enumerate(sorted(files.folder.rglob("*.dcm"))):
        content = path.read_bytes()
        kind = ("beginning", "half", "attribute")[number % 3]
        copy = broken / kind / path.relative_to(files.folder)
        copy.parent.mkdir(parents=True)
        damaged = {
            "beginning": content[:400], "half": content[: len(content) // 2],
            "attribute": content.replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00LO\x02\x00"),
        }  # fmt: skip
        copy.write_bytes(damaged[kind])
    rows = [json.loads(line) for line in files.table.read_text().splitlines()]
    marked = rows[0]["patient_name"]
    other = [{**rows[0], "text": f"{marked} says otherwise"}, {**rows[1], "patient_name": marked, "patient": marked}]
    conflicting = broken.parent / "conflicting.jsonl"
    conflicting.write_text("".join(json.dumps(row) + "\n" for row in rows + other))
    ragged = broken.parent / "ragged.csv"
    ragged.write_text(f"path,text\n{rows[0]['path']},{marked},and {marked}\n")
    wrong = broken.parent / "wrong.csv"
    wrong.write_text(f"path,split,text\n{rows[0]['path']},{marked},{marked}\n")
    nothing = broken.parent / "nothing.csv"
    nothing.write_text("a,b\n1,2\n")
    binary = broken.parent / "binary.csv"
    binary.write_bytes(b"path,text\n\x00\xff" + marked.encode() + b'"\n')
    one = sorted(files.folder.rglob("*.dcm"))[0]
    said = ["prepare", files.folder, "--no-paths", "--size", "32"]
    ran = {
        "broken": cyclic("prepare", broken / "beginning", "--no-paths", "--size", "32", "--out", "a"),
        "strict": cyclic("prepare", broken, files.folder, "--no-paths", "--size", "32", "--strict", "--out", "b"),
        "conflicting": cyclic(*said, "--reports", conflicting, "--out", "c"),
        "ragged": cyclic(*said, "--reports", ragged, "--out", "d"),
        "wrong": cyclic(*said, "--reports", wrong, "--out", "e"),
        "nothing": cyclic(*said, "--reports", nothing, "--out", "f"),
        "binary": cyclic(*said, "--reports", binary, "--out", "g"),
        "frames": cyclic(*said, "--frames", "7", "--out", "h"),
        "reconstruct": cyclic("reconstruct", broken, "--no-paths", "--out", "i", "--json"),
        "twice": cyclic("reconstruct", one, one, "--no-paths", "--out", "j"),
        "train": cyclic("train", "c", "--device", "cpu", "--arch", "conv", "--epochs", "1", "--set", "model.width=0"),
        "info": cyclic("info", "a"),
    }  # fmt: skip
    codes = {name: result.code for name, result in ran.items()}
    failing = {"broken": 1, "strict": 8, "ragged": 2, "wrong": 2, "nothing": 2, "binary": 2, "train": 2, "info": 1}
    assert codes == dict.fromkeys(ran, 0) | failing
    assert "conflicting_rows" in Path("c/rejected.jsonl").read_text()
    for name, result in ran.items():
        assert not leaks((result.out + result.err).encode()), f"{name} on the terminal"
    assert_nothing_leaks(*places)


def test_nothing_planted_in_png_and_jpeg_files_reaches_what_commands_write(cyclic: Cyclic, places: list[Path]) -> None:
    planter = Planter(count())
    source = places[0].parent / "pictures"
    for number in range(4):
        folder = source / planter.word()
        make_png(folder / f"{planter.word()}.png", smooth_image(number))
        with Image.open(next(folder.glob("*.png"))) as image:
            image.load()
        exif = Image.Exif()
        exif[0x010E], exif[0x013B] = planter.word(), planter.word()  # description, artist
        image.save(folder / f"{planter.word()}.jpg", exif=exif, comment=planter.word().encode())
    ran = [
        cyclic("prepare", source, "--no-paths", "--size", "32", "--patient-pattern", "[^/]+", "--split", "50/25/25"),
        cyclic("reconstruct", source, "--no-paths", "--json"),
        cyclic("reconstruct", source, "--no-paths", "--format", "npy", "--out", "arrays"),
    ]
    assert [result.code for result in ran] == [0, 0, 0], [result.err for result in ran]
    assert_nothing_leaks(*places, *(result.out + result.err for result in ran))


def test_the_texts_of_structured_reports_are_scrubbed(cyclic: Cyclic, places: list[Path]) -> None:
    planter = Planter(count())
    header = planted(planter, every=False)
    header.StudyInstanceUID = f"1.2.826.0.1.{NUMBER}.1"
    said = report_with(planter.said)
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", "2.25.1"
    item = Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", f"No pneumothorax. {said}"
    header.ValueType, header.ContentSequence = "CONTAINER", Sequence([item])
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    source = places[0].parent / "reports"
    source.mkdir()
    header.save_as(source / "report.dcm", enforce_file_format=True)
    radiograph = {"StudyInstanceUID": header.StudyInstanceUID, "PatientID": header.PatientID}
    make_dicom(source / "radiograph.dcm", smooth_image(1).astype(np.uint16), **radiograph)
    ran = cyclic("prepare", source, "--no-paths", "--size", "32", "--split", "100/0/0")
    assert ran.code == 0, ran.err
    texts = pyarrow.parquet.read_table("dataset/index.parquet")["text"].to_pylist()
    assert any("No pneumothorax." in text for text in texts)
    assert_nothing_leaks(*places, ran.out + ran.err)


def test_what_the_patient_pattern_finds_in_paths_is_cut_from_reports(cyclic: Cyclic, places: list[Path]) -> None:
    planter = Planter(count())
    source = places[0].parent / "folders"
    for number in range(3):
        first, last = planter.word(), planter.word()
        folder = source / f"{last}_{first}_{YEAR}0102"
        make_png(folder / "scan.png", smooth_image(number))
        (folder / "scan.txt").write_text(f"{first} {last}, {last.upper()}: no pneumothorax.")
    said = ["prepare", source, "--no-paths", "--size", "32", "--patient-pattern", r"([^/]+)/scan\.png"]
    ran = cyclic(*said, "--split", "100/0/0")
    assert ran.code == 0, ran.err
    texts = pyarrow.parquet.read_table("dataset/index.parquet")["text"].to_pylist()
    assert texts == ["___: no pneumothorax."] * 3
    make_png(source / "more.png", smooth_image(7))
    ran_again = cyclic(*said, "--split", "100/0/0", "--update")
    assert ran_again.code == 0, ran_again.err
    assert_nothing_leaks(*places, ran.out + ran.err, ran_again.out + ran_again.err)


def test_values_behind_the_pixels_and_under_any_heading_are_cut(cyclic: Cyclic, places: list[Path]) -> None:
    planter = Planter(count())
    source = places[0].parent / "elsewhere"
    rows = ["path,zustand,text"]
    for number in range(12):
        behind, cell = planter.word(), planter.word()
        path = make_dicom(source / f"{number}.dcm", smooth_image(number).astype(np.uint16) * 16)
        stored = pydicom.dcmread(path)
        stored.add_new(0x7FE10010, "LO", "MAKER")
        stored.add_new(0x7FE11001, "LO", behind)
        signature = Dataset()
        signature.PersonName = planter.word()
        stored.add_new(0xFFFAFFFA, "SQ", Sequence([signature]))
        stored.save_as(path)
        rows.append(f"{number}.dcm,{cell},{behind} and {cell} by {signature.PersonName}: no pneumothorax.")
    (source / "reports.csv").write_text("\n".join(rows))
    ran = cyclic("prepare", source, "--no-paths", "--size", "32", "--split", "100/0/0")
    assert ran.code == 0, ran.err
    assert "recognised by their cells: zustand" in ran.err
    texts = pyarrow.parquet.read_table("dataset/index.parquet")["text"].to_pylist()
    assert texts == ["___ and ___ by ___: no pneumothorax."] * 12
    assert_nothing_leaks(*places, ran.out + ran.err)


def test_strict_text_keeps_out_what_cannot_be_judged(cyclic: Cyclic, places: list[Path]) -> None:
    planter = Planter(count())
    source = places[0].parent / "strict"
    rows = ["path,text"]
    for number in range(4):
        make_png(source / f"{number}.png", smooth_image(number))
        rows.append(f"{number}.png,{planter.word() if number else 'Heart'} is normal.")
    (source / "reports.csv").write_text("\n".join(rows))
    said = ["prepare", source, "--size", "32", "--split", "100/0/0", "--strict-text"]
    ran = [cyclic(*said, "--json"), cyclic(*said, "--out", "again"), cyclic(*said, "--no-paths", "--out", "hidden")]
    assert [result.code for result in ran] == [0, 0, 0], [result.err for result in ran]
    assert (ran[0].json["texts_kept_out"], ran[0].json["paired"], ran[0].json["image_only"]) == (3, 1, 3)
    assert "lists the texts that --strict-text kept out" in ran[1].err
    lines = [json.loads(line) for line in Path("dataset/rejected.jsonl").read_text().splitlines()]
    assert [(line["source"], line["status"], line["reason"]) for line in lines] == [
        (f"reports.csv, line {number}", "text", "unjudged_text") for number in (3, 4, 5)
    ]
    assert "reports.csv" not in Path("hidden/rejected.jsonl").read_text()
    assert_nothing_leaks(*places, *(result.out + result.err for result in ran))
