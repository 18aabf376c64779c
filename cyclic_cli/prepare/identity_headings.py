"""Tells by the heading of a table's column whether it holds persons, institutions, addresses, numbers of them or dates.

Headings of hospital systems in many languages are compared word by word, without case, accents and separators. Parts of
words are compared too, because German joins words (`Patientennummer`), and Chinese and Japanese have no spaces.
"""

import re
import unicodedata
from functools import lru_cache

IDENTITY_WORDS = frozenset(
    # English
    "aka alias aadhaar campus cnic contact csn department dept dt dtm dttm empi facility guarantor hkid kvnr login "
    "mandant mykad nickname npi nric ohip operatore passport phn postal ramq signature typist username "
    "verified accession address anesthesiologist birthdate birthday birthplace city client clinic clinician county "
    "dictated dictator dob doctor email employer fax firstname forename fullname gp guardian hospital initials "
    "institution insured kin lastname mail mrn nhs nurse operator performer phone physician physicians postcode "
    "practitioner prescriber provider radiographer radiologist radiologists reader referrer referring reporter "
    "requester resident signatory signed signer spouse ssn station street surgeon surname tech technician "
    "technologist tel telephone town transcriptionist uhid verifier ward witness zip zipcode author attending "
    "consultant approver date datetime timestamp "
    # German
    "abteilung angehorige anrede ansprechpartner autor bearbeiter bett bsnr einrichtung erfasser geb gebdat "
    "kostenstelle krankenhausname lanr mutter namensangabe passnummer patientenname postleitzahl praxisname "
    "sachbearbeiter schreibkraft sekretariat signatur titel vater verantwortlicher zeitstempel zimmer "
    "zugangsnummer adresse ahv anforderer anschrift arbeitgeber arzt arztin assistent aufnahmedatum befunddatum "
    "befunder befundet behandler datum einsender einweiser familienname geburtsdatum geburtsname geburtsort "
    "geburtstag hausarzt klinik klinikum kostentrager krankenhaus krankenkasse mta mtra mtr nachname operateur ort "
    "pat patientin plz praxis radiologe radiologin rufname stadt station strasse telefon unterschrift untersucher "
    "vorname wohnort zuname zuweiser uberweiser untersuchungsdatum vidiert signiert "
    # French
    "auteur manip niss rapporteur rpps securite secu adresse courriel domicile etablissement hopital ipp "
    "manipulateur manipulatrice medecin naissance nir operateur prenom prescripteur radiologue redacteur rue "
    "signataire ville patronyme "
    # Spanish and Portuguese
    "centro clinica colegiado crm nasc tecnico apelido apellido apellidos bairro cedula cep cidade ciudad correo "
    "cpf cuil curp cidadao direccion dni domicilio endereco facultativo fecha hospital medica medico morada "
    "municipio nascimento nacimiento nhc nie nif nuhsa paciente prescriptor prontuario radiologa radiologo rfc rg "
    "rut sobrenome telefono telefone "
    # Italian, Romanian, Catalan
    "reparto struttura tsrm citta cnp codicefiscale cognome comune indirizzo ospedale nascita paziente prenume "
    "prescrittore refertatore adresa cognoms "
    # Dutch, Swedish, Norwegian, Danish, Finnish, Icelandic
    "hetu patientnaam patientnavn potilaan potilas rekvirent remittent verantwoordelijke aanvrager achternaam arts "
    "bsn cpr efternamn efternavn etternavn etunimi fodselsdato fodselsnummer fodelsedatum fornamn fornavn "
    "geboortedatum henkilotunnus huisarts kennitala lakare laakari laege lege patientnamn personnummer postnummer "
    "roepnaam sairaala sjukhus sukunimi sykehus sygehus verwijzer voornaam woonplaats ziekenhuis "
    # Polish, Czech, Slovak, Slovene, Croatian, Hungarian, Turkish, Baltic, Vietnamese, Indonesian
    "asmens beteg egn emso isikukood jmbg mbo neve pacientas pacients pacjenta patsient rod vysetrujici adres "
    "doktor eesnimi hasta hastane jmeno keresztnev lekar lekarz miasto nazwisko oib orvos pacient pacjent "
    "perekonnanimi pesel pojisteni priezvisko prijmeni priimek prezime skierowal soyad soyadi szpital taj tckn "
    "telefonszam ulica uvards vards vardas pavarde vezeteknev "
    # Russian, Ukrainian, Bulgarian
    "фамилия отчество фио пациент пациентка больнои врач рентгенолог телефон адрес город улица больница клиника "
    "снилс омс полис дата прізвище лікар пацієнт лікарня пациенти егн лекар болница прізвищеімя піб "
    # Greek
    "ονοματεπωνυμο επωνυμο επιθετο πατρωνυμο ασθενης γιατρος ιατρος ακτινολογος ημερομηνια τηλεφωνο διευθυνση πολη "
    "νοσοκομειο αμκα "
    # Arabic, Hebrew, Persian
    "المريض الطبيب طبيب التاريخ تاريخ الهاتف هاتف العنوان المستشفى بیمار پزشک משפחה פרטי מטופל רופא תאריך טלפון "
    "כתובת תז".split()
)
"""A heading with one of these words names an identity."""
WORDS_FOR_NAME = frozenset(
    "nom nome nombre nombres nama nev meno ime imie naam navn namn nimi nafn nume ad adi имя імя ονομα الاسم اسم "
    "نام שם".split()
)
"""The same, unless the heading also says whose name it is: of a file, or of a disease."""
FILES = frozenset(
    "archivo arquivo bestand bild datei dicom dosya fichier fil file folder imagem imagen image immagine kuva "
    "obraz path plik файл".split()
)
NAME_WORDS = frozenset(
    "name names patient pat pt person subject client first last given family middle maiden full birth mother "
    "mothers father fathers s".split()
)
"""A heading with the word `name` and only these words names a person. So `patient_name` does, and `file_name` and
`disease_name` do not."""
OWNERS = frozenset(
    "acc cr enterprise ic lab film master medicare pacjenta ray rontgen study citizen account admission "
    "appointment bed billing bill card case chart client encounter episode exam examination file filler folder "
    "foreign health hosp hospital inpatient insurance insurer invoice ip ipd kis medical member national op opd "
    "order outpatient pat patient person placer policy pt record ref reference reg registration report request "
    "requisition ris room sample specimen social subject tax unit user visit aufnahme auftrag akte akten fall "
    "kranken patienten untersuchung anforderung versicherten versicherung dossier examen sejour patiente historia "
    "expediente cartella pratica paciente paziente hasta dosya karta badania zlecenia история карта karty".split()
)
NUMBERS = frozenset(
    "id ids identifier n no nr num number numbers nbr nummer numero numer cislo sayi nro αριθμος номер kennung".split()
)
"""A heading with a word of `OWNERS` and a word of `NUMBERS` is a number that stands for a person or an examination."""
IDENTITY_PARTS = re.compile(
    "accession|medicalrecord|healthcard|postcode|driverlicen|compterendupar|contactperson|signoff|^ne(e)?le$|patientenn|"
    "physician|radiologist|referring|institution|telephone|phonenumber|surname|forename|"
    "(patient|person|first|last|given|family|middle|maiden|full|birth|pat|client)s?name|nextofkin|"
    "(reported|signed|dictated|approved|verified|read|reviewed|requested|ordered|referred|performed|authori[sz]ed|"
    "prescribed|transcribed|entered|checked|attended)by|"
    "(befundet|erstellt|unterschrieben|freigegeben|vidiert|diktiert|uberwiesen|angefordert)(von|durch)|"
    "(signe|valide|redige|prescrit|dicte)par|(firmado|informado|validado|solicitado|dictado|assinado|laudado)p[oe]r|"
    "(refertato|firmato|validato|richiesto)da|"
    "(study|series|exam|examination|scan|acquisition|content|birth|report|admission|discharge|visit|order|death)date|"
    "datadi|data(da|de|do)?(esame|exame|nascita|nascimento|urodzenia|badania|narozeni|nasterii|referto|laudo)|"
    "(patient|person|record|case|encounter|visit|admission|order|requisition|insurance|hospital|socialsecurity)s?"
    "(id|ids|no|nr|num|number|identifier)$|"
    "(patienten|pat|fall|auftrags|aufnahme|kranken|akten|vorgangs|untersuchungs|anforderungs|versicherten|versicherungs|"
    "kassen|personal|ausweis|steuer|haus|telefon|handy|mobil|konto)(nummer|nr|id|kennung)|"
    "sozialversicherung|(uber|ein|zu)weisende|arzt$|arztin$|name(n)?(des|der)patient|codicefiscale|tesserasanitaria|"
    "numero(de|do|da|di|del)?(dossier|historia|paciente|paziente|prontuario|cartella|securitesociale|afiliacion|cliente)|"
    "rodnecislo|datanasterii|fechade|anamnesenummer|"
    "姓名|氏名|名前|患者|病人|姓$|^名$|医[师師生]|醫師|医者|担当医|主治|技[师師]|生年月日|出生|日期|検査日|检查日|撮影日|电话|電話|"
    "地址|住址|住所|身份证|身分證|病[历歷案]号|病歷號|住院[号號]|门诊[号號]|門診號|登[记記]号|检查[号號]|影像[号號]|卡[号號]|编号|編號|"
    "番号|医院|醫院|病院|診療科|科室|病[区區]|床[号號]|单位|職業|职业|"
    "이름|성명|수진자|환자|등록번호|병록번호|차트번호|주민|생년월일|전화|주소|의사|판독의|의뢰의|병원|검사일|"
    "ชื่อ|นามสกุล|ผู้ป่วย|แพทย์|วันที่|วันเกิด|โทร|ที่อยู่|โรงพยาบาล|เลขที่|เลขประจำตัว|नाम|रोगी|मरीज|चिकित्सक|"
    "фамили|отчеств|пациент|рождени|телефон|больниц|ονοματ|επωνυμ|ασθεν"
)
"""Finds the same in headings without separators, such as `patientname` or `Patientennummer`."""
CLINICAL_WORDS = frozenset(
    # English
    "abnormality acquisition age anatomy area birads body bits category class classification code comparison "
    "condition conclusion contrast count density description diagnosis diagnoses disease dose event examined "
    "exposure finding findings follow frame frames gender gleason grade group height histology impression "
    "indication index kvp label labels laterality lesion lesions level lirads location malignancy manufacturer mas "
    "measure model modality morphology number organ orientation outcome part pathology phase pixel pirads plane "
    "position pose probability procedure projection protocol quality rads reason region result results rows "
    "columns score segment sequence series severity sex shape side site size slice slices spacing stage staging "
    "state status symptom symptoms target technique thickness tirads treatment type view volume weight width "
    "window language split fold source version url license dataset software "
    # German
    "alter befund befunde beurteilung bewertung bildqualitat diagnose diagnosen dichte dicke dosis ebene "
    "erkrankung fragestellung gerat geschlecht gewicht grad grosse hersteller indikation kategorie klasse "
    "klassifikation kontrastmittel korperregion lage lokalisation methode modalitat projektion region schweregrad "
    "seite stadium technik untersuchungsart verfahren "
    # French
    "cote densite diagnostic examen examens incidence lateralite maladie modalite region resultat sexe stade "
    "taille technique "
    # Spanish, Portuguese, Italian
    "achado achados categoria clase conclusion densidad densita diagnostico diagnosi edad eta hallazgo hallazgos "
    "idade incidencia lado lateralidad lato lesion lesione modalidad modalidade modalita organo patologia "
    "proyeccion proiezione quadro regiao region regione reperto reperti resultado risultato sesso sexo tecnica "
    # Dutch, Swedish, Polish, Russian, Greek
    "bevinding bevindingen geslacht leeftijd zijde fynd kon sida alder plec wiek strona rozpoznanie badanie wynik "
    "диагноз заключение пол возраст сторона область модальность διαγνωση ευρημα φυλο ηλικια πλευρα".split()
)
"""A heading with one of these words describes the image or its reading, whatever the cells look like."""
CLINICAL_PARTS = re.compile(
    "^kvp$|befund|diagnos|lokalisation|qualitat|所見|所见|診断|诊断|性別|性别|年齢|年龄|部位|左右|結果|结果|소견|진단|성별|나이|부위|"
    "การวินิจฉัย|เพศ|อายุ|ผล"
)

_ACCENTS = re.compile("[\u0300-\u036f]")
_LETTERS = str.maketrans({"ß": "ss", "ł": "l", "ı": "i", "ø": "o", "đ": "d", "ð": "d", "æ": "ae", "œ": "oe"})


@lru_cache(maxsize=4096)
def is_identifying(heading: str) -> bool:
    """Whether a column of this heading may hold a person's identity, or where and when a person was seen."""
    words = words_of(heading)
    is_name = bool({"name", "names"} & words) and words <= NAME_WORDS
    is_name |= bool(words & WORDS_FOR_NAME) and not words & FILES and not is_clinical(heading)
    is_number = bool(words & OWNERS) and bool(words & NUMBERS)
    is_listed = (words | {joined(heading)}) & IDENTITY_WORDS or IDENTITY_PARTS.search(joined(heading))
    return bool(is_name or is_number or is_listed)


@lru_cache(maxsize=4096)
def is_clinical(heading: str) -> bool:
    """Whether a column of this heading describes the image or its reading, so that its words must stay in reports."""
    return bool(words_of(heading) & CLINICAL_WORDS) or bool(CLINICAL_PARTS.search(joined(heading)))


def words_of(heading: str) -> frozenset[str]:
    """The words of a heading in lower case, without accents: `SOPInstanceUID` has sop, instance and uid."""
    parted = re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", heading.strip())
    return frozenset(re.findall(r"[^\W_]+", _plain(parted.replace("#", " no "))))


def joined(heading: str) -> str:
    """The heading as one word, in which all its spellings agree."""
    return "".join(letter for letter in _plain(heading) if letter.isalnum() or unicodedata.category(letter)[0] == "M")


def _plain(heading: str) -> str:
    """The heading in lower case, without the accents of Latin, Greek and Cyrillic letters."""
    parts = unicodedata.normalize("NFKD", heading).lower().translate(_LETTERS)
    return unicodedata.normalize("NFC", _ACCENTS.sub("", parts))
