"""Tests that patterns of all kinds stay stable and fast in any text."""

import random
import subprocess
import sys
import time

import pytest

from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.privacy.scrub import scrub

KEYER = Keyer(b"a secret")
PIECES = (
    "Dr. Okafor MD M.D. , Signed: gez. von Frau 12 Elm Street Hauptstr. 5 80331 München rue via 12/03 on 5/03 27.02. "
    "und bis ___ 12 March 2019 III marzo 12.III.19 月 3月12日 มี.ค. 93 Jahre age: ninety-three years "
    "Tel. 0221 / 123 45 67 "
    "DNI 12.345.678-Z 612 345 678 (at) dot .de/ Name: L4/5 4/5 90+ – · ١٢/٠٣/٢٠١٩ A-B d'Okafor"
).split(" ")


def test_scrubbing_patterns_again_changes_nothing() -> None:
    chance = random.Random(0)
    for _ in range(1500):
        text = "".join(chance.choice(PIECES) + chance.choice([" ", " ", " ", "", "-", ", ", "\n"]) for _ in range(12))
        once = scrub(text, [], KEYER)
        assert scrub(once, [], KEYER) == once


def test_repeated_patterns_take_linear_time() -> None:
    begin = time.process_time()
    for piece in (*PIECES, "Dr. A-", "rue A. ", "___ and 12/03 ", "a at b dot ", "DR ", "A1 1AA "):
        scrub(f"{piece} " * 3_000, [], KEYER)
    assert time.process_time() - begin < 30


def test_tables_of_telephone_numbers_are_loaded_only_when_needed() -> None:
    code = (
        "import sys; from cyclic_cli.privacy.scrub import scrub; from cyclic_cli.privacy.keys import Keyer\n"
        "scrub('Nodule of 3.5 x 2.1 cm at L4/5 on 12/03/2019. Dr. Okafor', [], Keyer(b'key'))\n"
        "assert 'phonenumbers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Level T8.\n1707180 end", "Level T8.\n___ end"),  # a number does not reach over the end of a line
        ("Grade 0/5.\n835520", "Grade 0/5.\n___"),
        ("seen on 6th of September. 80-year-old", "seen on ___ 80-year-old"),
        ("call by telephone. 96-year-old man", "call by telephone. 90+-year-old man"),
        ("Aufnahme 3.11.2018/14:30 Uhr", "Aufnahme ___/14:30 Uhr"),  # a time does not hide a date
        ("seen 11/3/2018.14:30", "seen ___.14:30"),
        ("2018-11-03/14:30", "___/14:30"),
        ("van 24-07 tot 19-11", "van ___ tot ___"),
        ("de 20/11 a 11/08", "de ___ a ___"),
        ("od 26.04 do 14.12", "od ___ do ___"),
        ("força de 4/5 a 5/5", "força de 4/5 a 5/5"),
        ("SUV 3.14 to 2.17", "SUV 3.14 to 2.17"),
        ("fratura da 8ª/9ª/10ª costelas; costelas 8/9/10", "fratura da 8ª/9ª/10ª costelas; costelas 8/9/10"),
        ("Donna di anni 93", "Donna di anni 90+"),
    ],
)
def test_what_a_benchmark_found(text: str, expected: str) -> None:
    assert scrub(text, (), KEYER) == expected
