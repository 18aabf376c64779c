"""Values in an undeclared or wrong code page are read by every code page that gives words."""

import time

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from cyclic_cli.imaging.dicom.code_pages import readings_of
from cyclic_cli.imaging.dicom.header import identities_of
from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.privacy.scrub import fingerprints, scrub

KEYER = Keyer(b"a secret")
NAMES = [
    ("Brzęczyszczykiewicz^Łucja", ("cp1250", "iso8859_2", "cp852", "utf_8")),
    ("Příhoda^Jiří", ("cp1250", "iso8859_2", "mac_latin2")),
    ("Núñez Ibáñez^Íñigo", ("cp1252", "mac_roman", "cp850", "utf_8")),
    ("Schönhäuser^Jürgen", ("latin-1", "cp437", "mac_roman")),
    ("Şahinoğlu^Gökçe", ("cp1254", "cp857")),
    ("Jākobsons^Ģirts", ("cp1257",)),
    ("Черепановская^Зинаида", ("cp1251", "koi8_r", "cp866", "iso8859_5", "mac_cyrillic", "utf_8")),
    ("ЩУКИНА^ЕЛЕНА", ("cp1251", "koi8_r", "cp866")),
    ("Шевченківська^Їлона", ("cp1251", "koi8_u")),
    ("Καραγιαννόπουλος^Στέλιος", ("cp1253", "iso8859_7", "cp737")),
    ("אברמוביץ^יעל", ("cp1255", "iso8859_8", "cp862")),
    ("الحسيني^منصور", ("cp1256", "iso8859_6")),
    ("欧阳^修远", ("gb18030", "utf_8")),
    ("歐陽^修遠", ("big5", "gb18030")),
    ("長谷川^千尋", ("cp932", "euc_jp")),
    ("독고^영재", ("cp949", "euc_kr")),
    ("วรวุฒิ^ศรีสุข", ("cp874",)),
]


def header(name: bytes, declared: str | None) -> Dataset:
    """A header with the name as a file has it, in one code page, whatever the character set that it declares."""
    name += b" " * (len(name) % 2)
    data = Dataset()
    if declared is not None:
        data.SpecificCharacterSet = declared
    data[0x00100010] = RawDataElement(Tag(0x00100010), "PN", len(name), name, 0, False, True)
    return data


@pytest.mark.parametrize(("name", "page"), [(name, page) for name, pages in NAMES for page in pages])
def test_the_right_reading_is_among_the_readings(name: str, page: str) -> None:
    assert name in readings_of(name.encode(page))


@pytest.mark.parametrize("declared", [None, "", "ISO_IR 100", "ISO_IR 144", "ISO_IR 192", "Not Supplied"])
@pytest.mark.parametrize(("name", "page"), [(name, pages[0]) for name, pages in NAMES])
def test_a_name_is_cut_whatever_character_set_is_declared(declared: str | None, name: str, page: str) -> None:
    known = fingerprints(identities_of(header(name.encode(page), declared)).identifying, KEYER)
    family, given = name.split("^")
    for said in (f"{family} {given}", f"{given} {family}", f"{family.upper()}, {given}"):
        text = scrub(f"L4/5: {said}. Normal.", known, KEYER)
        assert text == "L4/5: ___. Normal."


def test_readings_are_words_of_one_script_in_usual_case() -> None:
    assert readings_of("Иванов".encode("cp1251")) & {"иВАНОВ", "Èâàíîâ"} <= {"Èâàíîâ"}
    assert readings_of("Größe 3 mm".encode("cp1252")) >= {"Größe 3 mm"}
    assert not readings_of(b"\x80\x81\x8d\x8f\x90\x01")
    assert readings_of("ü".encode() * 200) == {"ü" * 200}


def test_values_repeated_in_headers_are_read_once() -> None:
    values = [f"Müller{number % 50}".encode("cp1252") for number in range(20_000)]
    begin = time.perf_counter()
    assert all(readings_of(value) for value in values)
    assert time.perf_counter() - begin < 2
