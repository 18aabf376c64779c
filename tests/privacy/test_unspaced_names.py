"""Names in scripts without spaces are cut, joined with other words, in any order; ordinary words stay."""

import time

import pytest

from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.privacy.scrub import Identifying, fingerprints, scrub

KEYER = Keyer(b"a secret")


def scrubbed(text: str, *names: str) -> str:
    known = fingerprints(Identifying(names), KEYER)
    once = scrub(text, known, KEYER)
    assert scrub(once, known, KEYER) == once
    return once


@pytest.mark.parametrize(
    ("name", "text", "left"),
    [
        ("王^小明", "患者王小明复查，肺部正常。", "患者___复查，肺部正常。"),
        ("王^小明", "王 小明：右肺结节。", "___：右肺结节。"),
        ("王小明", "患者王小明，男。", "患者___，男。"),
        ("欧阳^修远", "欧阳修远的胸片；修远。", "___的胸片；___。"),
        ("Hasegawa^Chihiro=長谷川^千尋=ハセガワ^チヒロ", "長谷川千尋様の胸部。", "___様の胸部。"),
        ("長谷川^千尋", "千尋長谷川、長谷川　千尋、長谷川さん", "___、___、___さん"),
        ("ハセガワ^チヒロ", "ハセガワチヒロ様、リンパ節なし", "___様、リンパ節なし"),
        ("서^문영", "환자 서문영님은 정상이다. 서 문영.", "환자 ___님은 정상이다. ___."),
        ("วรวุฒิ^ศรีสุข", "ผู้ป่วยวรวุฒิ ศรีสุข ปอดปกติ", "ผู้ป่วย___ ปอดปกติ"),
        ("วรวุฒิ^ศรีสุข", "นายวรวุฒิศรีสุขอายุ", "นาย___อายุ"),
    ],
)
def test_names_are_cut_within_a_text_without_spaces(name: str, text: str, left: str) -> None:
    assert scrubbed(text, name) == left


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("정^상", "정상 소견, 이상 없음"),  # Jeong Sang; normal, no abnormality
        ("ヤマダ^リン", "リンパ節腫大なし、プリン"),  # Rin; lymph node
        ("王^明", "明显增大，王者"),
        ("ดี^สุข", "สุขภาพดี ปอดปกติ"),
        ("Yamada^Tarou=山田^太郎", "山の田、太い郎等。右肺上葉 3/5"),
        ("김^지수", "체질량 지수 22, 정상"),  # Ji-su; index
    ],
)
def test_ordinary_words_stay(name: str, text: str) -> None:
    assert scrubbed(text, name) == text


def test_remarks_in_these_scripts_cut_nothing() -> None:
    known = fingerprints(Identifying((), ("胸部正面", "흉부", "ทรวงอก")), KEYER)
    text = "胸部正面像。흉부 정상. ทรวงอกปกติ"
    assert scrub(text, known, KEYER) == text


def test_long_texts_are_fast() -> None:
    known = fingerprints(Identifying(("Hasegawa^Chihiro=長谷川^千尋", "王^小明")), KEYER)
    text = "両側肺野に明らかな異常陰影を認めない。心胸郭比は正常範囲内。" * 100
    begin = time.perf_counter()
    for _ in range(20):
        assert scrub(text, known, KEYER) == text
    assert time.perf_counter() - begin < 5
