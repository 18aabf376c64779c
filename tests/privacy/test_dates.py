"""Tests that dates of many languages, scripts and calendars are cut, and that levels, scores and measures stay."""

import re
import unicodedata
from importlib.resources import files

import pytest
from helpers.scrubbed import scrubbed

COMMON_LANGUAGES = (
    "af ar az be bg bn bs ca cs cy da de el en es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk km kn ko lo "
    "lt lv mk ml mn mr ms mt my nb nl pa pl pt ro ru si sk sl sq sr sv sw ta te th tr uk ur uz vi zh"
).split()
"""Languages of reports, whose months are dates without a year too."""
HEADING = """\
# Names of months, from the Unicode CLDR (Unicode License v3), in lower case and without a last dot.
#
# First those of common languages, which make a date with a day alone; after a blank line those of all other languages,
# which need a year too. tests/privacy/test_dates.py writes and checks this list with the tables of Babel.
"""


# ---------------------------------------------------------------------------------------------------------- months


def month_list() -> str:
    """The content of `assets/months.txt` by the tables of Babel."""
    from babel import localedata

    common = _months_of(COMMON_LANGUAGES)
    others = _months_of(localedata.locale_identifiers()) - common
    return HEADING + "\n".join(sorted(common)) + "\n\n" + "\n".join(sorted(others)) + "\n"


def _months_of(languages: list[str]) -> set[str]:
    from babel import Locale, UnknownLocaleError

    found = set()
    for language in languages:
        try:
            tables = Locale.parse(language).months
        except UnknownLocaleError:
            continue
        for context in ("format", "stand-alone"):
            for width in ("wide", "abbreviated"):
                found |= {_plain_month(month) for month in tables.get(context, {}).get(width, {}).values()}
    return {month for month in found if not re.search(r"\d|[月월]", month) and len(month) >= 3}


def _plain_month(month: str) -> str:
    plain = unicodedata.normalize("NFC", month).lower().replace("\u200f", "").strip(" .")
    return re.sub(r"^(?:de|da|di) |^d['’]", "", plain)


def test_the_list_of_months_is_that_of_the_cldr() -> None:
    babel = pytest.importorskip("babel", minversion="2.19")
    if babel.__version__.startswith("2.19."):  # each version has the tables of another CLDR
        assert (files("cyclic_cli") / "assets" / "months.txt").read_text(encoding="utf-8") == month_list()


# ------------------------------------------------------------------------------------------------- dates are cut

DATES = """
    12.03.2019|12–03–2019|12‐03‐2019|12·03·2019|12 . 03 . 2019|12 03 2019|12/03/2562|20/12/1398|1398/12/20|
    12.03.2019r|12.03.2019г|12.III.2019|12/III/19|12-iii-2019|12 III 2019|III/2019|
    12 marzo 2019|12 de marzo de 2019|12 ene. 2019|3 ago 2019|5 dic. 2019|12 março 2019|12 out 2019|
    12 de abr. de 2019|
    12 gennaio 2019|12 gen 2019|12 ott 2019|12 mag 2019|12 maart 2019|12 mrt. 2019|12 mei|12 december 2019|
    12. Jänner 2019|12. Mrz. 19|12-Dez-2019|12. Jan|12e mars 2019|1er janvier|1ᵉʳ février 2019|
    12 marca 2019|12 marca|12 paź 2019|12. března 2019|12. maj 2019|12:e mars 2019|12. maaliskuuta 2019|12 Mart 2019|
    12. ožujka 2019|12 martie 2019|12 kovo 2019|2019 m. kovo 12|12. marts|2019. március 12|2019. március 12-én|
    12 de març de 2019|12 Maret 2019|12 Deireadh Fómhair 2019|12 Meán Fómhair 2019|
    12 марта 2019|12 марта|12 березня 2019|12 март 2019|12 Μαρτίου 2019|12 Μαρ 2019|12 במרץ 2019|12 מרץ 2019|
    12 مارس 2019|12 كانون الثاني 2019|١٢/٠٣/٢٠١٩|۱۲/۰۳/۱۳۹۸|12 ژانویهٔ 2019|
    12 मार्च 2019|१२/०३/२०१९|12 มีนาคม 2562|12 มีนาคม|12 มี.ค. 62|๑๒/๐๓/๒๕๖๒|12 มีนาคม 2019|
    2019年03月12日|2019年3月|3月12日|２０１９年３月１２日|平成31年3月12日|令和元年三月十二日|民國108年3月12日|
    2019년 3월 12일|3월 12일|ngày 12 tháng 3 năm 2019|ngày 12 tháng 3|12 tháng 3, 2019
"""


@pytest.mark.parametrize("date", [item.strip() for item in DATES.replace("\n", "").split("|")])
def test_dates_of_many_languages_are_cut(date: str) -> None:
    assert re.fullmatch(r"Film: ___\.? end; \(___\.?\)", scrubbed(f"Film: {date} end; ({date})"))


@pytest.mark.parametrize("date", ["2019年03月12日", "2019-03-12", "12/03/2019", "2019/3/12"])
def test_dates_are_cut_between_letters_of_scripts_without_spaces(date: str) -> None:
    assert scrubbed(f"与{date}片比较，第3肋") == "与___片比较，第3肋"


@pytest.mark.parametrize("between", ["-", "–", " - ", " bis ", " to "])
def test_both_dates_of_a_range_are_cut(between: str) -> None:
    assert scrubbed(f"12.03.2019{between}15.03.2019 mm") == f"___{between}___ mm"


ANNOUNCED = """
    from 02/27 to 03/15|from 02/27 to 3/4|on 5/03 and 6/03|on 3/15|since 12/24|CT 02/27|dated 07/04|
    vom 27.02. bis 3.3.|am 1.2. und 3.3.|am 27.02.|seit 5.3.|zum 05/03|(27.02.)|
    le 12/03|du 05/03 au 06/04|depuis 27/02|el 12/03 y el 5/04|del 05/03 al 6/4|desde 27/02|fecha: 27/02|
    il 05/03|dal 27/02 al 3/3|op 05/03|sinds 27/02|vanaf 05/03|em 15/03|desde 05/03|até 05/03|
    dnia 05.03.|od 27.02. do 03.03.|от 05.03.|с 27.02. до 03.03.
"""


@pytest.mark.parametrize("text", [item.strip() for item in ANNOUNCED.replace("\n", "").split("|")])
def test_days_without_a_year_are_cut_where_a_word_announces_them(text: str) -> None:
    assert not re.search(r"\d", scrubbed(f"Seen {text} ok"))


STAY = """
    L4/5, C5/6 und Th12/L1; Kraft 4/5, 5/5 Kraft; 1/2 Dosis; BI-RADS 4/5; T1/T2; 12-lead; ribs 7/8/9.
    on 4/5 of the images; on 12/15 slices; from 4/5 to 5/5; from 5/10 to 3/10; on 2/3 views; since 4/5; GCS on 03/10.
    Lymph nodes 0/15, 3/12 and 2/20; 12/15 nodes; visual acuity 20/40; pain 08/10; Gleason 3+4; 24/7.
    am 4/5 der Bilder; ab 1.5 cm; bis 2.3 cm; vom 2. bis 5. Tag; am 2. Finger; 2. Metacarpale; 5. Lendenwirbel.
    EVA de 08/10; del 10 al 12 %; 3/4 de los casos; el 2.5 cm; dolor 8/10; fuerza 5/5; 3ª costilla.
    Douleur à 08/10; du 5/5; le 2e métatarse; EVA du 05/10; 3ème côte.
    Dor de 08/10; em 2/3 dos casos; 3º metacarpo; de 5 a 10 mm; 2ª costela.
    il 2/3 dei casi; dal 10 al 20 %; 5° metacarpo; op 2/3 van de beelden; van 5 tot 10 mm; kracht 4/5; 3e rib.
    siła 4/5; od 5 do 10 mm; в 2/3 случаев; сила 4/5; с 5 до 10 мм; 5 лет.
    3 set of images; 7 out of 10; 5 was 12; see 3; was 2019; van 2019; 2 may represent; 3 des 5; 4 par 6; 5 mars.
    In 2010 2012 2015 surgery; 2010–2015; 5–10 mm; L4–L5; 10–12–15 mm; 12 03 mm; images 10 11 2019.
    Zone II/III; grade III/IV; NYHA III 2019; 3 II 4; segments V, VI and VIII; 12 X 10 mm; 3 x 4 x 20 mm; type 2 V 3.
    3个月; 3月复查; 5年前; 12毫米; 第3肋; 3월; 3개월; 3 tháng; trong 3 tháng 2 lần.
    SUV 12.05. No change. Creatinine 1.02. Next. Image 12.05. Series 3. At 14:35.
    Dosis 1.250 mg; 3,5 x 2,1 cm; 10,5 mm; 0.25 0.50 0.75 mg; 1,000 2,000 3,000 units.
""".strip().splitlines()


@pytest.mark.parametrize("text", [line.strip() for line in STAY])
def test_levels_scores_and_measures_stay(text: str) -> None:
    assert scrubbed(text) == text
