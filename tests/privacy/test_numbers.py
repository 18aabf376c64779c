"""Tests that telephone and national numbers and high ages are cut whole, and that other numbers stay."""

import re

import pytest
from helpers.scrubbed import scrubbed

TELEPHONES = """
    Tel. 0221 / 123 45 67|Tel.: 089 / 12 34 56 - 78|Tel 0043 1 40400 1234|Fax: (089) 1234-567|Telefon 02 1234567|
    teléfono 612 345 678|Telemóvel 912 345 678|Ligar 11 91234-5678|Ring 22 33 44 55|Zadzwonić 123 456 789|
    Call 555 123 4567|Call 5551234|Durchwahl 4411|ext. 89|Tel.: 4711|Appeler 01 23 45 67 89|Bellen 06 12345678|
    тел. 8 (912) 345-67-89|τηλ. 210 123 4567|电话 138 1234 5678|電話 03-1234-5678|전화 02-123-4567
"""


@pytest.mark.parametrize("text", [item.strip() for item in TELEPHONES.replace("\n", "").split("|")])
def test_telephone_numbers_after_a_word_are_cut_whole(text: str) -> None:
    out = scrubbed(f"{text}. Ende")
    assert not re.search(r"\d", out)
    assert out.endswith("___. Ende")
    assert out.count("___") == 1


@pytest.mark.parametrize(
    "number",
    ["138 1234 5678", "22 33 44 55", "0412 345 678", "070-123 45 67", "0221 / 123 45 67", "01 23 45 67 89",
     "+49 (0)221 / 123 45 67", "030 - 1234567", "(11) 91234-5678", "1-555-010-9999", "912 345-67-89"],
)  # fmt: skip
def test_telephone_numbers_of_many_countries_are_cut_without_a_word(number: str) -> None:
    assert scrubbed(f"see {number} now") == "see ___ now"


NATIONAL = """
    DNI 12.345.678-Z|DNI: 12345678Z|NIE X1234567L|CPF 123.456.789-09|CPR 120350-1234|NHS 943 476 5919|
    Aadhaar 1234 5678 9012|SSN 123 45 6789|SSN: 123-45-6789|NHC: 54321|Prontuário 12345|Pat.-Nr. 4711|BSN 1234.56.782|
    Patient no. 4711|Case number 8812|Fall-Nr. 12345|Fallnummer 4711|Accession 19-4711|PESEL 44051401458|
    RUT 12.345.678-K|
    NIR 1 84 12 76 451 089 46|KVNR A123456780|住院号：54321|患者番号 4711|Historia nº 4711|Dossier n° 4711|
    СНИЛС 123-456-789 01
"""


@pytest.mark.parametrize("text", [item.strip() for item in NATIONAL.replace("\n", "").split("|")])
def test_labelled_national_numbers_are_cut_whole(text: str) -> None:
    out = scrubbed(f"{text}. Ende")
    assert not re.search(r"\d", out)
    assert out.endswith("___. Ende")


@pytest.mark.parametrize(
    "number",
    ["123.456.789-09", "12.345.678-Z", "X1234567L", "1 84 12 76 451 089 46", "RSSMRA85T10A562S", "ABCDE1234F",
     "2345 6789 0124", "046 454 286", "85.07.30-033.28", "850709-9805", "131052-308T", "010150 12345", "ABCD 1234 5678",
     "756.1234.5678.97", "QQ 12 34 56 C", "4000 0012 3456 7899", "123 45 6789"],
)  # fmt: skip
def test_national_numbers_are_known_by_their_form_or_check_digits(number: str) -> None:
    assert not re.search(r"\d", scrubbed(f"see {number} now"))


AGES = """
    93-jähriger Patient|93 Jahre|Mujer de 93 años|Mulher de 93 anos|Man van 93 jaar|93-jarige vrouw|uomo di 93 anni|
    homme de 93 ans|Pacjent 93 lata|93 letni|Пациент 93 лет|93歳女性|男93岁|93세 여자|93 år|93 yaşında|93M with cough|
    93F w/ pain|
    Age: 93. Sex: F|Alter: 93|Edad: 93|Idade 93|Età: 93|Âge : 93|Leeftijd 93|Возраст: 93|年龄：93|aged 93|٩٣ سنة|๙๓ ปี|
    ninety-three year old man|ninety years old|dreiundneunzigjährig|noventa y tres años|noventa e três anos|
    quatre-vingt-treize ans|novantatré anni|drieënnegentigjarige
"""


@pytest.mark.parametrize("text", [item.strip() for item in AGES.replace("\n", "").split("|")])
def test_ages_over_89_are_found_in_many_languages(text: str) -> None:
    out = scrubbed(text)
    assert out.count("90+") == 1
    assert not re.search(r"\d", out.replace("90+", ""))
    assert not re.search("ninety|neunzig|novent|noventa|vingt|novant|negentig", out)


STAY = """
    Platelets 150 000; 12.345.678 Zellen; 1.250.000 IE; 5 000 000; 10000 Einheiten; 1,000 units; 1000 IE Heparin.
    TR 2000 TE 30; b 0 500 1000; matrix 256 256 128; 512 384 128; b 50 400 800; 100 200 300 ms; 320 x 320.
    In 2010 2012 2015 surgery; images 100-1200; HU 40-60; ratio 1:2; series 3/12, image 45/120; 120 80 70 bpm.
    call 911; Ring 2 3 4; Tel 2 views; Contact 3 mm; Kontakt 12 mm; Kontakt zu 3 Rippen; bel 2; ring 12 mm.
    case 12; case 3; study 3; order 2; Fall 3; Untersuchung 2; patient 45 years; id 12; exam 120 kVp;
    patient 4711 seen.
    image 95; stage 92; age 72; Alter 54; bone age 120 months; 92 mm; 95 %; 93 bpm; 98F; 90F catheter; 101 F;
    93 months.
    120 lat view; 120 kV lat; SpO2 92 %; Alter Infarkt 95 mm; age of 5; edad 45 años; 72 ans; 89歳; 88岁;
    ninety degrees.
    Tc-99m; I-131; CA 19-9; F-18; COVID-19; H1N1; C3-C4; T11/12; pH 7.35; FiO2 0.5; 14-gauge; 12-lead; 2-0-0;
    3 x 2 cm.
""".strip().splitlines()


@pytest.mark.parametrize("text", [line.strip() for line in STAY])
def test_counts_measures_and_scores_stay(text: str) -> None:
    assert scrubbed(text) == text
