"""Tests of plain texts: odd characters become usual ones, misread texts are repaired, and damaged ones are told."""

import json
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.makers import make_png, smooth_image

from cyclic_cli.prepare.texts import is_readable, plain

SENTENCE = "Kühn, Jörg: Größe Łódź Сидоров – „ok“ 5 µm à gauche École 李明"
LEGITIMATE = (
    "„AÄ“ CAFÉ“ CAFÉ” É’", "SEÑORA Ñandú ¿Qué?", "Ângulo Ânus NÃO ÃO à â ã", "PĂŞUNE", "√2 ¬ ├", "Čeština Řšž ŘŠŽ",
    "Åse Ørsted ÅÄÖ", "ЖРІС– й", "Μαρία", "10 µm² ±3 °C ≥ 5 ≤ 3 → • – — “a” ‘b’ … ½ ×", "Ấ Việt Nam", "ŐŰ ÁÉÍÓÖ",
    "İSTANBUL ŞÇĞ", "ŻÓŁĆ ŹDŹBŁO", "张伟，男。", "ゔ ガ 鈴木", "김철수", "לוי", "سالم", "ใจดี", "Ⅳ ½ ①",
)  # fmt: skip


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("Ku\u0308hn, Jo\u0308rg", "Kühn, Jörg"), ("K\u200bühn J\xadör\u2060g\ufeff", "Kühn Jörg"),
        ("Dr.\xa0Kühn 5\u202fmm\u3000x", "Dr. Kühn 5 mm x"), ("K\xa0ühn, A\xa0été", "Kühn, A été"),
        ("ＫＩＭ　１２３－４５", "KIM 123-45"), ("ﬁbrosis eﬀusion", "fibrosis effusion"), ("\u202eKim\u202c", "Kim"),
        ("Page 1\x0cPage 2\x0bx", "Page 1\nPage 2\nx"), ("Clear.\x1a\0\0", "Clear."), ("\uf0b7 Clear", "• Clear"),
        ("K\xfc\x96\x85", "Kü–…"), ("<p>K&uuml;hn</p>", "Kühn"), ("Ã gauche", "à gauche"), ("5 Â±2 Â°C", "5 ±2 °C"),
        ("KÃ¼hn und Größe", "Kühn und Größe"), ("K├╝hn", "Kühn"), ("K√ºhn", "Kühn"), ("  a  ", "a"),
        ("K¨uhn Ku¨hn", "Kühn Kühn"),
    ],
)  # fmt: skip
def test_odd_characters_become_usual_ones(written: str, text: str) -> None:
    assert plain(written) == text
    assert is_readable(text)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "mac_roman", "cp437", "cp850"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_text_in_utf_8_that_was_misread_is_repaired(encoding: str, times: int) -> None:
    misread = SENTENCE
    for _ in range(times):
        misread = "".join(_misread(byte, encoding) for byte in misread.encode())
    assert plain(misread) == SENTENCE


def _misread(byte: int, encoding: str) -> str:
    return bytes([byte]).decode(encoding, "ignore") or chr(byte)


def test_cyrillic_that_was_misread_is_repaired() -> None:
    assert plain("лёгкие чистые".encode().decode("cp1251")) == "лёгкие чистые"


@pytest.mark.parametrize("text", [SENTENCE, *LEGITIMATE])
def test_text_in_usual_characters_stays_as_it_is(text: str) -> None:
    assert plain(text) == unicodedata.normalize("NFC", text).replace("，", ",")
    assert is_readable(text)


def test_damage_is_told() -> None:
    for text in ("K\ufffdhn", "a\x07", "a\x81", "\ue000", "K?hn", "Gr??e normal", "üÃ¼", "a\ud83d"):
        assert not is_readable(plain(text)), ascii(text)
    for text in (
        "Effusion?", "fracture?dislocation", "? fracture", "pain ?fracture", "http://host/a?b=c", "Fraktur?nein",
        "Erguss?Stauung?", "why?Because",
    ):  # fmt: skip
        assert is_readable(plain(text)), text


def test_plain_texts_cost_little() -> None:
    text = "Größe normal. Kein Erguß, kein Infiltrat; Befund unauffällig. " * 20
    begin = time.perf_counter()
    for _ in range(1_000):
        assert is_readable(plain(text))
    assert time.perf_counter() - begin < 1


def test_a_damaged_text_is_left_out_and_listed_and_its_image_is_used(cyclic: Callable[..., Any]) -> None:
    for number in range(5):
        make_png(Path(f"in/{number}.png"), smooth_image(number))
    Path("in/reports.csv").write_text("path,text,side\n0.png,Größe normal.,left\n1.png,K\ufffdhn normal.,l\ufffdft\n")
    Path("in/2.txt").write_bytes(b"K\xfchn normal. Gr\xf6\xdfe normal.")
    Path("in/3.txt").write_bytes(bytes(range(1, 26)) * 9)
    Path("in/4.txt").write_text("{\\rtf1 Gr\\'f6\\'dfe normal.\\par}")
    options = ("--size", "32", "--already-deidentified", "--label-column", "side")
    ran = cyclic("prepare", "in", "--out", "ds", *options)
    assert ran.code == 0
    assert "2 texts are damaged or in an unknown encoding, and were not used; rejected.jsonl lists them" in ran.err
    assert "1 text files: lines that are not UTF-8 are read as cp1252, which was guessed" in ran.err
    rows = pq.read_table("ds/index.parquet").to_pylist()
    assert {row["source"]: row["text"] for row in rows} == {
        "0.png": "Größe normal.", "1.png": "", "2.png": "Kühn normal. Größe normal.", "3.png": "",
        "4.png": "Größe normal.",
    }  # fmt: skip
    assert {row["side"] for row in rows} == {None, "left"}
    listed = [json.loads(line) for line in Path("ds/rejected.jsonl").read_text().splitlines()]
    assert [(line["source"], line["status"], line["reason"]) for line in listed] == [
        ("reports.csv, line 3", "text", "unreadable_text"), ("3.png", "text", "unreadable_text"),
    ]  # fmt: skip
    hidden = cyclic("prepare", "in", "--out", "hidden", *options, "--no-paths", "--json", "--strict")
    assert (hidden.code, hidden.json["texts_unreadable"]) == (8, 2)
    listed = [json.loads(line) for line in Path("hidden/rejected.jsonl").read_text().splitlines()]
    assert [line["source"] for line in listed] == ["report 2", "000004"]
