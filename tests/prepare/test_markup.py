"""Tests of markup in reports: each form becomes plain text, plain text stays as it is, and nothing takes long."""

import random
import time

import pytest

from cyclic_cli.prepare.markup import without_markup

HEADER = r"{\rtf1\ansi\ansicpg1252\deff0{\fonttbl{\f0\fswiss Arial;}}\f0\fs20 "


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (HEADER + r"Frau K\'fchn, J\'f6rg\par Gr\'f6\'dfe normal.\par}", "Frau Kühn, Jörg\nGröße normal."),
        (HEADER + r"K\u252?hn \u252\'fchn {\uc0\u252 hn}\par}", "Kühn ühn ühn"),
        (HEADER + r"a{\info{\author Kim}}{\header Kim}{\*\generator Kim;}{\pict\wmetafile8 0f0f}b}", "ab"),
        (HEADER + r"1\tab 2\cell 3\row\line 4\~5\_6\-7 \{8\}\\9 \emdash}", "1\t2\t3\n\n4 5-67 {8}\\9 —"),
        (HEADER + "one\r\n two\\\nthree}", "one two\nthree"),
        (r"{\rtf1\ansi\ansicpg936 \'d5\'c5\par}", "张"),
        (r"{\rtf1\ansi{\fonttbl{\f0\fcharset0 A;}{\f1\fcharset204 B;}}\f1 \'c8\'e2\'e0\'ed\f0  \'fc}", "Иван ü"),
        (r"{\rtf1\mac K\'9fhn}", "Kühn"),
        (r"{\rtf1 \u-10179?\u-8704? ok}", "😀 ok"),
        (r"{\rtf1{\pict\bin5 }}}}}}text}", "text"),
        ("Before " + r"{\rtf1 M\'fc{\b ll}er}" + " after", "Before Müller after"),
        (r"K\'fchn\par Befund", "Kühn\nBefund"),
        (r"{\rtf1 open {\b end", "open end"),
        ("<p>Frau <b>K&uuml;hn</b>,<br/>J&#246;rg</p>", "Frau Kühn,\nJörg"),
        ("<html><head><title>Kim</title></head><body><!-- Kim -->\n<div>a</div>\n\n<div>b</div></body></html>", "a\nb"),
        ('<P class=MsoNormal style="margin:0">a<o:p></o:p></P><script>Kim</script>', "a"),
        ("<table><tr><td nowrap>one</td><td>two</td></tr></table>", "one two"),
        ("<report><finding id='1'>Clear.</finding></report>", "Clear."),
        ('<?xml version="1.0"?><text><paragraph>a</paragraph><paragraph>b</paragraph></text>', "a\nb"),
        ("<![CDATA[<p>Kühn</p>]]>", "Kühn"),
        ("&lt;p&gt;K&amp;uuml;hn &amp;lt; 5&lt;/p&gt;", "Kühn < 5"),
        (r"a\.br\b\F\c\S\d\T\e\R\f\E\g\H\h\N\.", "a\nb|c^d&e~f\\gh."),
        (r"a\.sp2\b\.in+4\c\XC3BC\d\XFC\e\X0D0A\f", "a\nb cüdüe\n\nf"),
        (
            "MSH|^~\\&|RIS\rPID|1||7^^^A||Kim^Jo\rOBX|1|TX|1||Clear.\\.br\\No \\T\\~More||||||F\r"
            "OBX|2|CE|1||R91^Nodule^L\rOBX|3|ED|1||^AP^PDF^Base64^QUFB\rOBX|4|XCN|1||Kim\rNTE|1||Call.",
            "Clear.\nNo &\nMore\nNodule\nCall.",
        ),
        ("OBX|1|FT|||Line one\nline two\nOBX|2|DT|||20240102\n", "Line one\nline two"),
        ("K=C3=BChn =E2=80=93 ok =3D 5, TE=80, EF=45", "Kühn – ok = 5, TE=80, EF=45"),
        (r"K\u00fchn, J\xf6rg\nGr\u00f6\u00dfe\r\nnormal\tok \ud83d\ude00", "Kühn, Jörg\nGröße\nnormal\nok 😀"),
        ("K%C3%BChn%2C ok 50%, 95 %CI", "Kühn, ok 50%, 95 %CI"),
        ("K=FChn, Gr=F6=DFe", "Kühn, Größe"),
        ("x" * 70 + "y=\r\nz =C3=\r\n=BC", "x" * 70 + "yz ü"),
    ],
)
def test_markup_becomes_plain_text(written: str, text: str) -> None:
    assert without_markup(written) == text


@pytest.mark.parametrize(
    "text",
    [
        "Nodule <5 mm, a < b, b > a, p<0.05, x<y and y>z, 3<=4, T<-2.5", "a<b, b>c", "<DATE> <unk> <name@host.org> <->",
        "Seen by [**Name**] & Co, R&D, AT&T; S&P", "L4\\L5, C:\\Temp\\x.txt, 3\\4, \\", "{a} {b}", "a|b|c\n1|2|3",
        "TE=80, TR=90 ms, EF=45, T=FE, x=-2.5\ny=C", "Score = 3 =\n5", "OBX and PID are words", "PID |1", "T\\5\\",
        "C:\\new\\x", "50%CI, 3%C",
        "IVC\\SVC", "<", "&", "=", "\\", "|", "", "<a", "<!-- a", "&;", "&#;", "{\\rt",
    ],
)  # fmt: skip
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert without_markup(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "<!--" * 200_000, "<a " * 200_000, "<a " + "b=c " * 200_000, "<div>" * 100_000, "<a" + " " * 800_000,
        '<a b="' * 100_000, ("<a" + " " * 1000) * 800, "<p>" + "<![CDATA[" * 90_000, "&lt;" * 200_000, "&a" * 400_000,
        "{\\rtf1" + "{" * 400_000, "{\\rtf1" * 100_000, "{\\rtf1{\\pict " + "ab" * 1_000_000 + "}x}", "\\" * 800_000,
        "{\\rtf1{\\fonttbl" + "\\f1\\fcharset" * 50_000, "{\\rtf1\\bin999999999 x", "\\X41\\" * 150_000, "=" * 800_000,
        "{\\rtf1{\\field{\\*\\fldinst{" * 20_000 + "HYPERLINK \"a\"}}{b}}", "OBX|1|TX|" * 90_000, "\n=" * 400_000,
        (" " * 75 + "=\n") * 10_000, "OBX|1|TX|||a\n" * 60_000, "\\'fc" * 200_000,
    ],
)  # fmt: skip
def test_no_text_takes_long(text: str) -> None:
    begin = time.perf_counter()
    without_markup(text)
    assert time.perf_counter() - begin < 10


def test_every_text_is_read() -> None:
    pieces = (
        r"{ } \ \'fc \'8 \u252? \uc2 \bin3 \f1 \fcharset99 \fonttbl {\rtf1 \ansicpg9999 \par <p> </p> <!-- --> & "
        r"&#xD800; &#0; <head> <![CDATA[ ]]> OBX|1|ED| MSH|^ | ~ =C3 =BC \X41\ \.br\ ü x"
    ).split()
    numbers = random.Random(0)
    for _ in range(2_000):
        text = "".join(numbers.choices([*pieces, "\n", " "], k=numbers.randrange(12)))
        without_markup(text).encode()  # without half characters
