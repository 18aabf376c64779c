"""Tests of the guess of encodings: in each of them a report reads as it was written, and damage is told from text."""

import codecs
import random
import time
from io import BytesIO

import pytest

from cyclic_cli.prepare.encodings import BLOCK, UNKNOWN, Encoding, decoded, find_encoding

TEXTS = {
    "de": "Größe normal. Kein Pneumothorax. Rundherd im rechten Oberlappen für Herrn Jörg Häußler. Kein Pleuraerguß.",
    "fr": "Épanchement gauche. Cœur normal. Pas d’épaississement. Opacité évoquant un foyer, Mme Lefèvre.",
    "es": "Tórax sin alteraciones. Corazón de tamaño normal. La señora Ibáñez presenta opacidad en el lóbulo inferior.",
    "pl": "Pole płucne prawe bez zmian. Wysięk w jamie opłucnej po stronie lewej. Pacjentka Zofia Śliwińska, kaszel.",
    "cs": "Plíce jsou rozvinuté, bez ložiskových změn. Srdce není zvětšené. Pacientka Kateřina Dvořáčková má kašel.",
    "tr": "Akciğerlerde lezyon izlenmedi. Kalp boyutları normaldir. Hasta Şükrü Yıldız öksürük şikayetiyle başvurdu.",
    "ru": "Очаговых изменений в лёгких не выявлено. Корни структурны. Пациент Сидоров Пётр. Сердце не увеличено.",
    "uk": "Вогнищевих змін у легенях не виявлено. Пацієнтка Ющенко Ганна. Серце не збільшене, їй краще.",
    "el": "Χωρίς εστιακές αλλοιώσεις στους πνεύμονες. Η καρδιά έχει φυσιολογικό μέγεθος. Ασθενής Γεώργιος Δήμου.",
    "he": "לא נראו ממצאים מוקדיים בריאות. הלב בגודל תקין. המטופל משה לוי מתלונן על שיעול. תפליט פלאורלי משמאל.",
    "ar": "لا توجد آفات بؤرية في الرئتين. حجم القلب طبيعي. المريض سالم محمود يشكو من السعال.",
    "th": "ไม่พบความผิดปกติในปอดทั้งสองข้าง ขนาดหัวใจปกติ ผู้ป่วยมีอาการไอ",
    "zh": "双肺纹理清晰，未见明显实变影。心影大小正常。患者李明，左侧胸腔少量积液，建议复查。",
    "zh-Hant": "雙肺紋理清晰，未見明顯實變影。心影大小正常。患者李明，左側胸腔少量積液，建議複查。",
    "ja": "両肺野に明らかな異常陰影は認めません。心拡大なし。患者鈴木一郎さんは咳嗽を訴えています。",
    "ko": "양쪽 폐야에 특이 소견 없음. 심장 크기는 정상입니다. 환자 박민수는 기침을 호소합니다.",
}
ENCODINGS = {
    "de": "cp1252 mac_roman cp850 cp437", "fr": "cp1252 mac_roman", "es": "cp1252 mac_roman cp850",
    "pl": "cp1250 iso8859_2 cp852", "cs": "cp1250 iso8859_2 cp852", "tr": "cp1254 iso8859_9",
    "ru": "cp1251 koi8_r cp866 iso8859_5 mac_cyrillic", "uk": "cp1251 koi8_u", "el": "cp1253 iso8859_7 cp737",
    "he": "cp1255 iso8859_8", "ar": "cp1256 iso8859_6", "th": "cp874", "zh": "gbk gb18030", "zh-Hant": "big5",
    "ja": "shift_jis euc_jp iso2022_jp", "ko": "euc_kr cp949 iso2022_kr",
}  # fmt: skip


@pytest.mark.parametrize(
    ("language", "encoding"), [(language, name) for language, names in ENCODINGS.items() for name in names.split()]
)
def test_a_report_reads_as_it_was_written(language: str, encoding: str) -> None:
    text, found = decoded(TEXTS[language].encode(encoding))
    assert text == TEXTS[language]
    assert found.is_guessed


@pytest.mark.parametrize("language", TEXTS)
def test_wide_encodings_need_no_mark(language: str) -> None:
    report = f"Report 1\r\n{TEXTS[language]}\n"
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        assert decoded(report.encode(encoding)) == (report, Encoding(encoding, whole=True))
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        text, found = decoded(report.encode(encoding))
        assert text == report
        assert not found.is_guessed


def test_texts_of_east_asia_need_neither_a_mark_nor_a_space() -> None:
    for language in ("zh", "zh-Hant", "ja"):
        for encoding in ("utf-16-le", "utf-16-be"):
            assert decoded(TEXTS[language].encode(encoding))[0] == TEXTS[language]


def test_a_line_in_utf_8_is_read_so_whatever_its_neighbours_are() -> None:
    lines = [TEXTS["de"].encode("cp1252"), TEXTS["ru"].encode(), TEXTS["zh"].encode(), b"plain"]
    assert decoded(b"\n".join(lines))[0] == "\n".join((TEXTS["de"], TEXTS["ru"], TEXTS["zh"], "plain"))
    lines = [TEXTS["ru"].encode("koi8_r"), TEXTS["de"].encode()]
    assert decoded(b"\r\n".join(lines))[0] == "\r\n".join((TEXTS["ru"], TEXTS["de"]))


def test_a_stray_byte_changes_nothing_else_in_its_line() -> None:
    assert decoded("Jörg: ".encode() + "Größe".encode("cp1252"))[0] == "Jörg: Größe"


def test_a_stray_line_changes_no_line_of_a_file_in_another_encoding() -> None:
    lines = [TEXTS["de"].encode("cp1252"), "Müller".encode("cp850"), TEXTS["fr"].encode("cp1252")]
    text, found = decoded(b"\n".join(lines))
    assert found == Encoding("cp1252")
    assert text == "\n".join((TEXTS["de"], "M\ufffdller", TEXTS["fr"]))


def test_the_sample_may_come_late_and_lines_may_be_long() -> None:
    before = b"plain line\n" * (3 * BLOCK // 10) + b"x" * 3 * BLOCK + b"\n"
    text, found = decoded(before + TEXTS["de"].encode("cp1252"))
    assert text == before.decode() + TEXTS["de"]
    assert found == Encoding("cp1252")
    assert find_encoding(BytesIO(before)) == Encoding()
    # A character at the end of a block is not cut.
    assert find_encoding(BytesIO(b"x" * (BLOCK - 1) + "ü".encode() + b"\n")) == Encoding()


def test_bytes_of_no_encoding_are_unknown_and_become_replacement_characters() -> None:
    noise = random.Random(0).randbytes(400).replace(b"\0", b"").replace(b"\x1b", b"")
    text, found = decoded(b"Text\n" + noise)
    assert found.name == UNKNOWN
    assert text.startswith("Text\n")
    assert "\ufffd" in text
    assert found.described == "lines that are not UTF-8 are in no known encoding"


def test_every_input_has_a_text() -> None:
    numbers = random.Random(1)
    for _ in range(300):
        content = numbers.randbytes(numbers.randrange(60))
        for mark in (b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF32_BE, b"\x1b$B", b"\x1b$)C"):
            text, _ = decoded(mark + content)
            text.encode()  # without half characters


def test_guessing_takes_a_moment_for_a_file_of_any_size() -> None:
    content = (TEXTS["he"].encode("cp1255") + b"\n") * 50_000
    begin = time.perf_counter()
    assert find_encoding(BytesIO(content)).name == "cp1255"
    assert time.perf_counter() - begin < 5
