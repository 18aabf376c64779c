"""Tests that people without a header and addresses are cut, and that ordinary and medical words stay."""

import re

import pytest
from helpers.scrubbed import scrubbed

PEOPLE = """
    Discussed with Dr. Okafor at 14:35|Befundet von Dr. med. Anna Weber-Okafor|Prof. Dr. A. Okafor, Facharzt|
    Chidi Okafor, MD|CHIDI OKAFOR, M.D.|J. R. Okafor MD, PhD|Okafor, MD reviewed the images|Chidi B. Okafor, FRCR|
    Signed: Okafor, Chidi|Electronically signed by Chidi Okafor, MD on file|Electronically signed by: CHIDI OKAFOR|
    DICTATED BY: OKAFOR, CHIDI|Dictated and signed by Chidi O. Okafor|Reported by: Dr C Okafor|
    Reviewed by Chidi van Okafor|
    Read by: Okafor|gez. Okafor|gez. Dr. Okafor|Diktiert von: Okafor|Vidiert durch OÄ Okafor|
    Validiert von Anna Okafor|
    Dictado por Chidi Okafor|Firmado: Chidi Okafor|Firmado por: Dra. Okafor|Fdo. Chidi Okafor|
    Informado por Ana de Okafor|
    Dr.ssa Okafor|Dott.ssa Anna Okafor|Refertato da: Okafor Anna|Firmato da Okafor|
    Validé par le Dr Okafor|Dicté par Anna Okafor|Signé : Okafor|Signé par Anna Okafor|Mme Okafor|Pr Dr Okafor|
    Beoordeeld door drs. A. van Okafor|Ondertekend door Okafor|mevr. Okafor|
    Laudado por Chidi Okafor|Assinado: Chidi Okafor|Ditado por Okafor|Sr. Okafor|
    Opisał: lek. Jan Okafor|Opisał(a): Jan Okafor|Podpisano: Okafor|Opisane przez Jan Okafor|
    Radiologist: Chidi Okafor|Radiologe: Chidi Okafor|Referring physician: Okafor|Technologist: C. Okafor|
    Name: Okafor, Chidi|Nombre: Chidi Okafor|Nom : Okafor Chidi|Cognome: Okafor|
    Mr. Okafor|Mrs Okafor|Ms. Okafor|Herr Okafor|Frau Okafor|DR OKAFOR NOTIFIED|seen by DR OKAFOR|Dr. Rose Okafor|
    Dr. Mrozek-Okafor|Dr.\u00a0Okafor
"""


@pytest.mark.parametrize("text", [item.strip() for item in PEOPLE.replace("\n", "").split("|")])
def test_people_are_found_by_what_stands_beside_them(text: str) -> None:
    for frame in ("{}", "Lungs clear.\n{}\nEnd of report", "No effusion.\n{}"):
        out = scrubbed(frame.format(text))
        assert not re.search("kafor|chidi|anna|weber|mrozek|rose", out, re.IGNORECASE)
        assert "___" in out


def test_people_with_other_letters_are_found() -> None:
    assert scrubbed("Врач: Окафоров А.П. Описал: Окафоров") == "Врач: ___. Описал: ___"
    assert scrubbed("Dr. Öztürkoğlu und Dr. Łukaszewska") == "Dr. ___ und Dr. ___"
    assert scrubbed("Dr. O'Okafor and Dr. d'Okafor") == "Dr. ___ and Dr. ___"


WORDS = """
    Dr. to review. Please ask Dr. on call. DR chest PA. DR Thorax in 2 Ebenen. DR Hüftgelenk links. DR. NOTIFIED.
    MS plaques. MS Herde periventrikulär. MR Brain. MR Angiographie. Mr. and Mrs. M. supraspinatus, A. carotis, V.
    cava.
    Reduced FA, MD and RD. MD maps. Increased MD 1.2. FA and MD. Duchenne MD. Becker MD with fatty change. ADC, MD.
    AD, RD, MD.
    Signed: Radiology. Electronically signed. Signed off. Reviewed with the team.
    Findings discussed with Radiology at 14:35.
    Performed by interventional radiology. Referred by emergency department. Read by resident. Verified.
    Ordered by clinic.
    Befundet von der Radiologie. Erstellt von Hand. Diktiert. gez. Radiologie. Name: Röntgen Thorax.
    Frau Kollegin; Herr Kollege.
    Facharzt: Vorstellung empfohlen. Arzt: Rücksprache. Radiologist: no. Physician: none. Technologist: Notified.
    Name: Unbekannt.
    Patient: Keine Beschwerden. Patient: Dyspnoe. Order: Chest. Author: Radiology. Attending: Notified. PLEASE DO.
    Firmado: servicio de radiología. Dictado por el servicio. Validé par le service. Refertato da radiologia.
    Laudado por médico.
    Beoordeeld door de radioloog. Opisane przez lekarza. Signé par le service. Firma digital. Sr. consultant.
""".strip().splitlines()


@pytest.mark.parametrize("text", [line.strip() for line in WORDS])
def test_words_that_name_nobody_stay(text: str) -> None:
    assert scrubbed(text) == text


ADDRESSES = """
    12 Baker Street|12 Elm Street, Springfield, IL 62701|1234 Okafor Drive|Springfield, IL 62701-1234|SW1A 1AA|
    Hauptstr. 5, 80331 München|Lindenstraße 12a|Lange Straße 5, 10115 Berlin|D-80331 München|CH-8001 Zürich|
    A-1090 Wien|
    5 rue Pasteur, 75015 Paris|12 bis, rue de la Okafor|rue Okafor 5|via Garibaldi 12, 00184 Roma|viale Okafor, 3|
    calle Okafor 3, 28013 Madrid|avenida de Okafor, n.º 12|rua Okafor, 123|1250-096 Lisboa|
    Kerkstraat 12, 1012 AB Amsterdam|
    1012 AB Amsterdam|ul. Okaforska 5|00-950 Warszawa|ул. Окафорова, д. 5|Storgatan 12
"""


@pytest.mark.parametrize("address", [item.strip() for item in ADDRESSES.replace("\n", "").split("|")])
def test_addresses_are_cut(address: str) -> None:
    assert re.fullmatch(r"Lives in ___(?:, ___)?; alone", scrubbed(f"Lives in {address}; alone"))


WEB = """
    a.okafor@clinic.example|max.okafor@klinik-köln.de|müller@köln.de|okafor (at) klinik.de|okafor[at]klinik[dot]de|
    okafor at klinik dot de|okafor(arroba)clinica.es|okafor {at} clinic.example|klinik-okafor.de/4711|
    pacs.clinic.org/study?id=7|www.klinik-okafor.de/patient/4711
"""


@pytest.mark.parametrize("address", [item.strip() for item in WEB.replace("\n", "").split("|")])
def test_email_and_web_addresses_are_cut(address: str) -> None:
    assert scrubbed(f"Write to {address}, please") == "Write to ___, please"


PLACES = """
    Via PICC line 5 French. Via NG tube 3 cm. via femoral approach 12 mm. Place the tube 3 cm. Place PICC 3. 2 lanes.
    via PEG 20 French.
    Close follow-up in 3 months. 3 Square centimetres. 12 Baker cysts. 3 Street falls. 2 nodules close.
    On the way 12 mm. Court 3.
    1250 HU Dichte; 10000 Einheiten; Leukozyten, 15000 Thrombozyten; 12000 Platelets; 1000 ML NaCl;
    20000 Thrombozyten.
    L4 5MM; S1 3CM; C5 6TH; T1 2ND; CT 12 X 3; 3 IN PLACE. Atemweg 3; Arbeitsplatz 12; Schulterplatz 4; Implantat 3.
    Seen at 14:35; sagittal at T2 dot blot; frei.Der Rest; links.es gibt; seg. 3/4; mm/s; w/o.
    place 3; cours 5; place de 3 clips; al 10 %; ul 5; str 5; Bd. 3; El paseo 12 mm; avenue of 12.
""".strip().splitlines()


@pytest.mark.parametrize("text", [line.strip() for line in PLACES])
def test_words_of_addresses_in_reports_stay(text: str) -> None:
    assert scrubbed(text) == text
