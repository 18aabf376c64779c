"""Identities in a header are found at any depth and in any encoding. Facts are defined terms and plausible numbers."""

import io
from typing import Any

import numpy as np
import pydicom
import pytest
from helpers.makers import make_dicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from cyclic_cli.imaging.dicom.header import MOST_BYTES_BEHIND, Facts, elements_behind, facts_of, identities_of
from cyclic_cli.imaging.dicom.structured_report import text_of


def stored(data: Dataset, syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """The dataset after it was written to a file and read again."""
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "2.25.7"
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return pydicom.dcmread(io.BytesIO(file.getvalue()))


def names(data: Dataset, syntax: str = ExplicitVRLittleEndian) -> tuple[str, ...]:
    return identities_of(stored(data, syntax)).identifying.names


def remarks(data: Dataset, syntax: str = ExplicitVRLittleEndian) -> tuple[str, ...]:
    return identities_of(stored(data, syntax)).identifying.remarks


def header(**values: Any) -> Dataset:
    data = Dataset()
    for name, value in values.items():
        setattr(data, name, value)
    return data


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_names_and_remarks_at_any_depth(syntax: str) -> None:
    inner = header(StudyDescription="remark two", PersonName="Two^Name")
    inner.private_block(0x0029, "TEST", create=True).add_new(1, "LO", "remark three")
    data = header(
        PatientName="One^Name", PatientID="4711", AccessionNumber="A-1", StudyDate="20240312", StudyTime="101112.5",
        InstitutionName="A House", OperatorsName=["Three^Name", "Four^Name"], SeriesDescription="remark one", KVP="120",
        BodyPartExamined="CHEST", StudyInstanceUID="1.2.3", RequestAttributesSequence=Sequence([inner]), Rows=7,
    )  # fmt: skip
    data.private_block(0x0031, "TEST", create=True).add_new(2, "SH", "remark four")
    found = identities_of(stored(data, syntax))
    expected = "One^Name|4711|A-1|20240312|101112|A House|Three^Name|Four^Name|Two^Name".split("|")
    assert set(expected) <= set(found.identifying.names)
    assert {"remark one", "remark two", "remark three", "remark four", "CHEST"} <= set(found.identifying.remarks)
    assert {"120", "1.2.3", "7"}.isdisjoint(found.identifying.names + found.identifying.remarks)
    assert (found.patient, found.study, found.accession) == (("4711",), "1.2.3", "A-1")
    assert repr(found) == "Identities(hidden)"


def test_private_values_of_unknown_representation() -> None:
    inner = header(PatientComments="deep remark", PersonName="Deep^Name")
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = True, True
    write_dataset(file, inner)
    item = b"\xfe\xff\x00\xe0" + len(file.getvalue()).to_bytes(4, "little") + file.getvalue()
    data = Dataset()
    block = data.private_block(0x0029, "TEST", create=True)
    for number, value in enumerate((b"plain remark", item, bytes(range(32)), b"\x01\x02name", b"x" * 5000), 1):
        block.add_new(number, "UN", value)
    found = identities_of(stored(data)).identifying
    assert {"plain remark", "deep remark"} <= set(found.remarks)
    assert found.names == ("Deep^Name",)
    assert not any("xxx" in remark for remark in found.remarks)


@pytest.mark.parametrize(
    ("declared", "encoding", "name"),
    [
        ("ISO_IR 100", "latin-1", "Müller^Jürgen"), ("ISO_IR 192", "utf-8", "Müller^Jürgen"),
        ("", "utf-8", "Müller^Jürgen"), ("", "latin-1", "Müller^Jürgen"), ("ISO_IR 144", "iso8859_5", "Иванов^Пётр"),
        ("ISO_IR 126", "iso8859_7", "Παπαδόπουλος^Νίκος"), ("GB18030", "gb18030", "王^小东"),
        ("\\ISO 2022 IR 87", "iso2022_jp", "Yamada^Tarou=山田^太郎"),
    ],
)  # fmt: skip
def test_character_sets(declared: str, encoding: str, name: str) -> None:
    data = header(SpecificCharacterSet=declared.split("\\"), PatientName=name.encode(encoding))
    assert name in names(data)


def test_structured_report_text_is_not_a_remark() -> None:
    item = header(ValueType="TEXT", TextValue="No sialadenitis.", PersonName="One^Name")
    data = header(ContentSequence=Sequence([item]))
    kept = stored(data)
    assert "No sialadenitis." in identities_of(kept).identifying.remarks
    kept.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    assert "No sialadenitis." not in identities_of(kept).identifying.remarks
    assert "One^Name" in identities_of(kept).identifying.names


def content_item(kind: str, meaning: str, value: str, code: str = "", relation: str = "CONTAINS") -> Dataset:
    """A content item of a structured report."""
    name = header(CodeValue=code or "1", CodingSchemeDesignator="DCM" if code else "99X", CodeMeaning=meaning)
    text = {"PersonName": value} if kind == "PNAME" else {"TextValue": value}
    return header(ValueType=kind, RelationshipType=relation, ConceptNameCodeSequence=Sequence([name]), **text)


def test_persons_and_institutions_in_the_items_of_a_structured_report_are_names() -> None:
    items = [content_item("TEXT", "Finding", f"Text {number}.") for number in range(50)]
    items += [
        content_item("PNAME", "Person Observer Name", "One^Name"),
        content_item("TEXT", "Person Observer's Organization Name", "A House", "121009", "HAS OBS CONTEXT"),
        content_item("TEXT", "Krankenhaus", "B House"), content_item("TEXT", "Referring Physician", "Two Name"),
        content_item("TEXT", "Physician Note", "No sialadenitis."), content_item("TEXT", "Hospital", "x" * 101),
    ]  # fmt: skip
    deep = content_item("PNAME", "Author", "Deep^Name")
    for _ in range(15):
        deep = header(ValueType="CONTAINER", ContentSequence=Sequence([deep]))
    kept = stored(header(ValueType="CONTAINER", ContentSequence=Sequence([*items, deep])))
    kept.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.22"
    found = identities_of(kept).identifying
    assert {"One^Name", "A House", "B House", "Two Name", "Deep^Name"} <= set(found.names)
    assert not {"No sialadenitis.", "x" * 101, "Text 1."} & {*found.names, *found.remarks}
    assert "House" not in text_of(kept)
    assert "Two Name" not in text_of(kept)
    assert "Physician Note: No sialadenitis." in text_of(kept)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_elements_behind_the_pixel_data(syntax: str) -> None:
    behind = Dataset()
    behind.add_new(0x7FE10010, "LO", "MAKER")
    behind.add_new(0x7FE11001, "PN", "Behind^Name")
    behind.add_new(0x7FE11002, "UT", "y" * (MOST_BYTES_BEHIND + 2))
    signature = header(PersonName="Signing^Name", CertificateOfSigner=b"1234")
    behind.add_new(0xFFFAFFFA, "SQ", Sequence([signature]))
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    before = stored(header(PatientName="Front^Name"), syntax)
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = implicit, little
    write_dataset(file, behind)
    content = file.getvalue()
    found = elements_behind(io.BytesIO(content + bytes(64)), before)
    assert set(found.keys()) == set(behind.keys())
    said = identities_of(before, found).identifying
    assert {"Front^Name", "Signing^Name"} <= set(said.names)
    assert "Behind^Name" in said.names + said.remarks
    assert not any("yyy" in text for text in said.names + said.remarks)
    for damaged in (content[:30], content[5:], b"", bytes(1000), b"\xff" * 1000):
        assert all(element.tag > 0x7FE00010 for element in elements_behind(io.BytesIO(damaged), before).values())


def test_damaged_elements_are_skipped_without_error() -> None:
    data = stored(header(PatientName="One^Name", PatientID="4711", StudyDescription="remark"))
    data.add_new(0x00400275, "LO", "a text where a sequence belongs")
    data._dict[pydicom.tag.Tag(0x00081140)] = pydicom.dataelem.RawDataElement(  # a sequence with invalid content
        pydicom.tag.Tag(0x00081140), "SQ", 6, b"garbag", 0, False, True
    )
    found = identities_of(data)
    assert {"One^Name", "4711"} <= set(found.identifying.names)
    assert "remark" in found.identifying.remarks
    deep = Dataset()
    for _ in range(50):
        deep = header(RequestAttributesSequence=Sequence([deep]), PatientName="One^Name")
    assert identities_of(deep).identifying.names == ("One^Name",)


def facts(**values: Any) -> Facts:
    return facts_of(header(**values), (10, 20))


def test_facts_are_defined_terms() -> None:
    good = {"Modality": "DX", "BodyPartExamined": "chest ", "ViewPosition": "PA", "PatientSex": "F"}
    kept = facts(
        **good, PatientAge="043Y", PhotometricInterpretation="MONOCHROME1", BitsStored=12, PixelSpacing=[0.14, 0.14]
    )
    assert kept == Facts("DX", "CHEST", "PA", "F", "40-44", "MONOCHROME1", 12, 0.14, 10, 20)
    other = facts(Modality="OKONKWO", BodyPartExamined="OKONKWO", ViewPosition=["PA", "OKONKWO"], PatientSex="OKONKWO",
                  PhotometricInterpretation="OKONKWO", PatientAge="OKON")  # fmt: skip
    assert other == Facts("other", "other", "other", "other", "", "other", 0, 0.0, 10, 20)
    assert facts() == Facts(height=10, width=20)


@pytest.mark.parametrize(
    ("age", "band"),
    [("089Y", "85-89"), ("090Y", "90+"), ("104Y", "90+"), ("999Y", "90+"), ("018M", "0-4"), ("003D", "0-4"),
     ("43Y", ""), ("043Y ", "40-44"), ("٠٤٣Y", ""), ("0043Y", ""), ("", "")],
)  # fmt: skip
def test_ages_are_kept_as_bands(age: str, band: str) -> None:
    assert facts(PatientAge=age).age == band


@pytest.mark.parametrize(
    ("spacing", "kept"),
    [
        ([0.1431234, 0.1431234], 0.1431),
        ([918273.6, 1], 0.0),
        ([0, 0], 0.0),
        ([-0.2, 0.2], 0.0),
        ([], 0.0),
        (0.00025, 0.00025),
    ],
)
def test_implausible_pixel_spacing_is_dropped(spacing: Any, kept: float) -> None:
    assert facts(PixelSpacing=spacing).pixel_spacing == kept


@pytest.mark.parametrize(("bits", "kept"), [(12, 12), (0, 0), (918, 0), (64, 64)])
def test_implausible_bits_are_dropped(bits: int, kept: int) -> None:
    assert facts(BitsStored=bits).bits == kept


def test_dicom_file_has_the_identities_in_its_header(tmp_path: Any) -> None:
    from cyclic_cli.config import Preprocessing
    from cyclic_cli.imaging.dicom.reading import DicomFile

    path = make_dicom(tmp_path / "a.dcm", np.eye(16, dtype=np.uint16), PatientName="One^Name", AccessionNumber="A-1")
    file = DicomFile(path.read_bytes(), Preprocessing(size=16))
    assert file.identities.accession == "A-1"
    assert "One^Name" in file.identities.identifying.names
