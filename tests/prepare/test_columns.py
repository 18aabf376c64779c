"""Columns of names, numbers and dates are recognised by heading or by cells; columns of findings never are."""

import random

import pytest

from cyclic_cli.config import PrepareConfig
from cyclic_cli.prepare.columns import Columns
from cyclic_cli.prepare.identity_contents import identifying_contents
from cyclic_cli.prepare.identity_headings import is_clinical, is_identifying

IDENTITY_HEADINGS = {
    "en": "Patient_Full_Name|PatName|Client Name|Next of kin|Reported By|Signed_By|Dictated by|Ordered By|Prescriber|"
    "Ward|Hosp_No|IP No|Exam ID|Ref No|UHID|Chart Number|Town|GP|Referred by|Requisition No|Visit Nr|Performing Tech|"
    "D.O.B.|Acc#|Film no|Exam_DT|Passport|Postal code|Contact person|Facility|Signature|NPI",
    "de": "Familienname|Untersucher|Zuweiser|Radiologe|Hausarzt|Ort|Straße|PLZ|Fallnummer|PatNr|Patientennummer|AHV-Nr|"
    "Befundet von|Überweisender Arzt|Krankenkasse|Auftragsnummer|Versichertennr|Geburtsname|Wohnort|Einsender|"
    "Geb.-Dat.|Röntgen-Nr|Zimmer|Abteilung|Signatur|Sachbearbeiter|Mutter|KVNR",
    "fr": "Nom|Prénom|Nom du patient|Médecin prescripteur|Radiologue|Ville|Signé par|IPP|N° dossier|Date de naissance",
    "es": "Nombre del paciente|Apellidos|Médico|NHC|Ciudad|Fecha|Firmado por|DNI|Historia Nº|Núm. historia",
    "it": "Nome|Cognome|Medico refertatore|Codice Fiscale|Comune|Data di nascita|Refertato da|Indirizzo",
    "pt": "Nome do paciente|Sobrenome|CPF|Prontuário|Endereço|Cidade|Data de nascimento|Laudado por",
    "nl": "Naam|Achternaam|Huisarts|Geboortedatum|BSN|Woonplaats|Aanvrager",
    "pl": "Imię i nazwisko|Nazwisko|PESEL|Lekarz|Data badania|Ulica|Miasto|Nr karty",
    "north": "Namn|Efternamn|Personnummer|Läkare|Etternavn|Fødselsnummer|Læge|CPR|Sukunimi|Henkilötunnus",
    "east": "Jméno|Příjmení|Rodné číslo|Lékař|Név|Orvos|Nume|Prenume|CNP|Hasta Adı|Soyadı|Doktor|Prezime ime",
    "ru": "ФИО|Фамилия|Имя|Врач|Дата рождения|Адрес|СНИЛС|Прізвище|Лікар",
    "el": "Ονοματεπώνυμο|Επώνυμο|Ιατρός|Ημερομηνία|ΑΜΚΑ",
    "east asia": "姓名|氏名|患者名|生年月日|病历号|住院号|报告医生|電話|地址|이름|환자번호|생년월일|담당의사",
    "south asia": "ชื่อ|นามสกุล|โรงพยาบาล|นพ. แพทย์|नाम|रोगी का नाम",
    "semitic": "الاسم|اسم المريض|الطبيب|رقم الهاتف|שם משפחה|ת.ז. מטופל|רופא|תאריך",
}
CLINICAL_HEADINGS = (
    "Finding|Findings|Finding Labels|Diagnosis|ViewPosition|Modality|Body Part|Laterality|Score|Age|Sex|BI-RADS|"
    "Manufacturer|Series Number|Image Number|Slice Thickness|kVp|Follow-up #|Befund|Diagnose|Seite|Alter|Geschlecht|"
    "Körperregion|Schweregrad|Lokalisation|Untersuchungsart|Diagnostic|Côté|Sexe|Hallazgos|Lado|Edad|Reperto|Lato|Età|"
    "Achados|Idade|Bevinding|Leeftijd|Rozpoznanie|Płeć|Диагноз|Пол|Возраст|Διάγνωση|所見|診断|部位|年齢|性别|소견|나이|"
    "file_name|Nom du fichier|Nome do arquivo|disease_name|Nom de la maladie"
).split("|")
SURNAMES = (
    "Kowalczyk Okonkwo Brzezinski Szymanska Featherstonehaugh Lüdenscheidt Núñez Iwaniuk Hrdlicka Papadakis Oyelaran "
    "Vandervoort Skjelbred Tchaikowsky Abernathy Zdziarski Mbeki Oberholzer Ferragamo Duchesne Ivarsson Lehtonen"
).split()
FINDINGS = ("Rundherd links basal", "Pleuraerguss rechts", "Lungenembolie", "Normalbefund", "Kardiomegalie", "Emphysem")


@pytest.mark.parametrize("language", IDENTITY_HEADINGS)
def test_headings_of_identities_are_recognised(language: str) -> None:
    missed = [heading for heading in IDENTITY_HEADINGS[language].split("|") if not is_identifying(heading)]
    assert not missed


def test_headings_of_findings_are_not_identities() -> None:
    assert not [heading for heading in CLINICAL_HEADINGS if is_identifying(heading)]
    files = {heading for heading in CLINICAL_HEADINGS if "fich" in heading or "arq" in heading or "file" in heading}
    assert not [heading for heading in CLINICAL_HEADINGS if not is_clinical(heading) and heading not in files]


def rows(count: int, seed: int = 5) -> list[dict[str, str]]:
    """Rows of a table under headings that say nothing, with reports that name every third patient."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        surname, finding = SURNAMES[number % len(SURNAMES)], draw.choice(FINDINGS)
        named = f"Kontrolle bei {surname}. " if number % 3 == 0 else ""
        made.append({
            "text": f"{named}{finding}. Aufnahme im Stehen, Aktenzeichen {40000 + 7 * number}.",
            "k1": f"{surname.upper()}, {draw.choice('ABCDEF')}.", "k2": str(40000 + 7 * number),
            "k3": f"{1 + number % 28}.{1 + number % 12}.20{10 + number % 9}", "k4": f"X{number:04d}-{100 + number}",
            "f1": finding, "f2": draw.choice(["PA", "AP", "LAT", "Lateral"]), "f3": draw.choice(["CT", "MR", "CR"]),
            "f4": str(draw.randrange(1, 6)), "f5": str(draw.randrange(18, 99)), "f6": f"{draw.random():.4f}",
            "f7": draw.choice(["Siemens", "Philips", "Canon"]), "f8": str(draw.choice([80, 120, 2048, 3000])),
            "f9": draw.choice(["links", "rechts", "beidseits"]), "f10": draw.choice(["T1", "T2", "L4/5", "Th12/L1"]),
            "f11": f"{finding} seit {number} Tagen, im Verlauf.", "f12": "", "f13": draw.choice(["Ja", "Nein"]),
        })  # fmt: skip
    return made


@pytest.mark.parametrize("count", [12, 40, 500])
def test_cells_of_identities_are_recognised_under_any_heading(count: int) -> None:
    table = rows(count)
    headings = [name for name in table[0] if name != "text"]
    assert identifying_contents(headings, ["text"], table) == ["k1", "k2", "k3", "k4"]


def test_a_single_row_is_judged_by_its_own_report() -> None:
    text = "Kontrolle Kowalczyk. Rundherd links."
    row = {"text": text, "a": "Kowalczyk", "b": "Rundherd", "c": "links", "d": "48213", "e": "3", "f": "Okonkwo"}
    assert identifying_contents("abcdef", ["text"], [row]) == ["a", "d"]
    asian = {"text": "患者王小明复查。", "a": "王小明", "b": "李建国"}
    assert identifying_contents("ab", ["text"], [asian]) == ["a"]


def test_findings_that_differ_from_row_to_row_stay() -> None:
    words = ["Lungenembolie", "Pneumothorax", "Fraktur", "Emphysem", "Erguss", "Stauung", "Tumor", "Zyste", "Ödem",
             "Sarkoidose", "Atelektase", "Silikose"]  # fmt: skip
    table = [{"text": f"{word} rechts.", "x": word, "y": f"{word} rechts"} for word in words]
    assert not identifying_contents(["x", "y"], ["text"], table)


def test_columns_with_a_role_are_never_judged_and_the_note_names_the_others() -> None:
    table = rows(20)
    names = [*table[0], "path", "label"]
    given = [{**row, "path": row["k1"], "label": row["k1"]} for row in table]
    columns = Columns.find(names, PrepareConfig(label_columns=("label", "k4")), {}).with_contents(names, given)
    assert columns.by_contents == ("k1", "k2", "k3")
    assert columns.described() == (
        "image: path; text: text; labels: label, k4; 16 other columns are not read "
        "(contents of 3 are cut out of the reports, recognised by their cells: k1, k2, k3)"
    )
