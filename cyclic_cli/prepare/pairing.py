"""Images meet their reports: from what was offered, and what it was worth, to the samples of an index.

    match     every report finds the images it speaks of, by the strictest rule that finds one
    own       every image and every text gets its patient and its study
    scrub     identities of a patient's headers and rows are cut out of the patient's reports
    choose    equal pixels are kept once; texts without an image become samples
    split     every patient gets a split

An image without its report is a pity, one with another's report a disaster: what is ambiguous stays apart. What comes
out depends on the set of inputs and reports alone, never on their order; all of it happens in the tables of the offer's
scratch database, so that memory does not grow.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

from cyclic_cli.errors import REASONS, CyclicError
from cyclic_cli.prepare.inventory import (
    BESIDE,
    ENDING,
    LONGEST_ENDING,
    NAME,
    OF_STUDY,
    RELATIVE,
    STEM,
    STRUCTURED,
    Inventory,
)
from cyclic_cli.prepare.near_duplicates import near_duplicates
from cyclic_cli.prepare.tables import Report, merge
from cyclic_cli.privacy.keys import SPLITS, place, split_of
from cyclic_cli.privacy.scrub import scrub
from cyclic_cli.storage.dataset import FRAME_COLUMNS, INDEX_COLUMNS, INPUT_COLUMNS, REPORT_COLUMNS

Row = dict[str, Any]
CONTRADICTING = "{} images that were not given have rows that contradict one another: none is kept"

_SAMPLE = [name for name in INDEX_COLUMNS if name not in ("split", "position")]
_SCHEMA = f"""
CREATE TABLE headers AS SELECT place, min(frame) AS frame, status, patient, patient_number, study,
    accession, instance, sample, words FROM frames GROUP BY place;
CREATE UNIQUE INDEX headers_place ON headers (place);
CREATE INDEX headers_instance ON headers (instance);
CREATE INDEX headers_accession ON headers (accession);
CREATE TABLE matches (place, number INTEGER, PRIMARY KEY (place, number)) WITHOUT ROWID;
CREATE TABLE owners (place, number INTEGER, told, header, header_number, path, study, header_study, split, line, labels,
                     conflict, alone, alone_study, patient, named);
CREATE TABLE said (place PRIMARY KEY, text) WITHOUT ROWID;
CREATE TABLE tellers (number INTEGER, patient);
CREATE TABLE words (patient, word, PRIMARY KEY (patient, word)) WITHOUT ROWID;
CREATE TABLE samples ({", ".join(f'"{name}"' for name in INDEX_COLUMNS)}, place, named, line, labels, perceptual_hash);
"""


class Pairing:
    """Brings images and reports together; `run` fills the tables that the other methods read.

    Args:
        offer: Inputs, their frames and reports; labels are added to no more.
    """

    def __init__(self, offer: Inventory) -> None:
        self.offer, self.db, self.keyer, self.config = offer, offer.db, offer.keyer, offer.config
        self.text_labels: set[str] = set()  # that hold words, not numbers
        self.split_given = False
        self._counts: Counter[str] = Counter()  # of what is worth a warning
        self._near_pairs: list[tuple[int, int, int]] | None = None

    def run(self) -> "Pairing":
        self.db.executescript(_SCHEMA)
        self._match()
        self._own()
        self._scrub()
        self._say()
        self._choose()
        self._add_texts()
        self._split()
        self._weigh()
        return self

    # ----------------------------------------------------------------------------------------------- match

    def _match(self) -> None:
        """Fill `matches`: which reports speak of which inputs."""
        self._match_images()
        self.db.executescript(
            """
            INSERT OR IGNORE INTO matches SELECT i.place, r.number FROM reports r JOIN images i
                ON i."table" = r."table" AND i.image = r.image WHERE i.place IS NOT NULL;
            INSERT OR IGNORE INTO matches SELECT h.place, r.number FROM reports r JOIN headers h
                ON h.instance = r.instance WHERE r.instance != '';
            """
        )
        self._drop_shared_side_cars()
        self.db.executescript(
            f"""
            INSERT OR IGNORE INTO matches SELECT i.place, r.number FROM reports r JOIN inputs i
                ON i.place = r.place WHERE r.rank = {BESIDE};
            CREATE TABLE studies AS
                SELECT place, study FROM headers WHERE study != ''
                UNION SELECT place, path_study FROM inputs WHERE path_study != ''
                UNION SELECT m.place, r.study FROM matches m JOIN reports r USING (number) WHERE r.study != '';
            CREATE INDEX studies_study ON studies (study);
            INSERT OR IGNORE INTO matches SELECT s.place, r.number FROM reports r JOIN studies s
                ON s.study = r.study WHERE r.rank >= {OF_STUDY} AND r.study != '';
            -- A hospital's number: another hospital may have given it to another patient's study.
            CREATE TABLE accessions AS SELECT accession FROM headers WHERE accession != ''
                GROUP BY accession HAVING count(DISTINCT patient) = 1 AND count(DISTINCT study) = 1;
            INSERT OR IGNORE INTO matches SELECT h.place, r.number FROM reports r JOIN accessions a USING (accession)
                JOIN headers h USING (accession) WHERE r.rank >= {OF_STUDY}
                AND (r.patient = '' OR h.patient = '' OR r.patient IN (h.patient, h.patient_number));
            CREATE INDEX matches_number ON matches (number);
            """
        )

    def _match_images(self) -> None:
        """Give every image that a table names its input: one at most, by the strictest rule that finds one.

        Its path starts at the table's folder; or at a source; or it is how the path of one input alone ends; a mere
        file name, with or without suffix, must be unique among inputs and rows.
        """
        self.db.executescript(
            """
            CREATE TABLE images AS SELECT DISTINCT "table", image, stem, within, depth, wanted, place
                FROM reports WHERE image IS NOT NULL;
            CREATE INDEX images_image ON images ("table", image);
            CREATE TABLE taken ("table", place, PRIMARY KEY ("table", place)) WITHOUT ROWID;
            INSERT INTO taken SELECT DISTINCT "table", place FROM images WHERE place IS NOT NULL;
            CREATE TABLE keys AS SELECT place, j.key AS kind, j.value AS key FROM inputs, json_each(names) j
                WHERE EXISTS (SELECT 1 FROM images);
            CREATE INDEX keys_key ON keys (kind, key);
            CREATE INDEX inputs_absolute ON inputs (absolute);
            """
        )
        self._give("JOIN inputs u ON u.absolute = i.wanted")
        self._give(self._unique("within", RELATIVE))
        self._give(self._unique("image", RELATIVE))
        deepest = self.db.execute("SELECT coalesce(max(depth), 0) FROM images").fetchone()[0]
        # Endings of all lengths count as one rule: no length goes before another.
        found = 'SELECT i.rowid AS row, u.place, i."table" FROM images i'
        endings = [
            f"{found} {self._unique('image', ENDING + depth - 2)} WHERE depth = {depth}"
            for depth in range(2, min(deepest, LONGEST_ENDING) + 1)
        ]
        if endings:
            self._give_found(" UNION ALL ".join(endings))
        by_name = self._give(f"{self._unique('image', NAME)} AND i.depth = 1")
        by_name += self._give(f"{self._unique('stem', STEM)} AND i.depth = 1", alone=True)
        self._counts["{} rows of the tables found their image by its file name alone"] = by_name
        # What was given stays given, when a later month brings files of the same names.
        self.db.execute(
            """UPDATE reports SET place = i.place FROM images i
               WHERE i."table" = reports."table" AND i.image = reports.image AND i.place IS NOT NULL"""
        )

    def _unique(self, column: str, kind: int) -> str:
        """A join of images with the inputs that alone have such a name."""
        alone = f"SELECT key, min(place) AS place FROM keys WHERE kind = {kind} GROUP BY key HAVING count(*) = 1"
        return f"JOIN ({alone}) u ON u.key = i.{column}"

    def _give(self, join: str, alone: bool = False) -> int:
        return self._give_found(f'SELECT i.rowid AS row, u.place, i."table" FROM images i {join}', alone)

    def _give_found(self, found: str, alone: bool = False) -> int:
        """Give images that have none yet the inputs that no stricter rule gave to the same table; how many got one.

        `alone`: not where two images of a table would get one input.
        """
        self.db.execute(
            f"""CREATE TABLE gave AS SELECT f.row, f.place, f."table" FROM ({found}) f JOIN images i ON i.rowid = f.row
                WHERE i.place IS NULL
                  AND NOT EXISTS (SELECT 1 FROM taken t WHERE t."table" = f."table" AND t.place = f.place)"""
        )
        if alone:
            self.db.execute('CREATE INDEX gave_place ON gave ("table", place)')
            twice = 'SELECT 1 FROM gave g WHERE g."table" = gave."table" AND g.place = gave.place AND g.row != gave.row'
            self.db.execute(f"DELETE FROM gave WHERE EXISTS ({twice})")
        given = self.db.execute("UPDATE images SET place = gave.place FROM gave WHERE images.rowid = gave.row").rowcount
        self.db.execute('INSERT OR IGNORE INTO taken SELECT "table", place FROM gave')
        self.db.execute("DROP TABLE gave")
        return given

    def _drop_shared_side_cars(self) -> None:
        """A folder's one report belongs to its images only where they are of one study, or at least of one patient."""
        shared = self.db.execute(
            """WITH known AS (SELECT m.place, max(r.study) AS study, max(r.patient) AS patient
                   FROM matches m JOIN reports r USING (number) GROUP BY m.place)
               SELECT r.shared FROM reports r JOIN inputs i USING (place) JOIN headers h USING (place)
                   LEFT JOIN known k USING (place) WHERE r.shared IS NOT NULL AND h.status = 'used'
               GROUP BY r.shared HAVING count(DISTINCT coalesce(nullif(k.study, ''), nullif(h.study, ''),
                   nullif(i.path_study, ''), nullif(k.patient, ''), nullif(h.patient, ''), i.path_patient)) > 1"""
        ).fetchall()
        self.db.executemany("DELETE FROM reports WHERE shared = ?", shared)
        text = "{} report.txt lie beside images of several patients or studies, and were not used"
        self._counts[text] = len(shared)

    # ------------------------------------------------------------------------------------------------- own

    def _own(self) -> None:
        """Fill `owners`: patient and study of every input, and of every report that speaks of none."""
        said = "r.rank, r.generation, r.patient, r.study, r.split, r.labels, r.line"
        inputs = self.db.execute(
            f"""SELECT i.place, h.patient, h.patient_number, i.path_patient, h.study, i.path_study, h.sample, {said}
                FROM inputs i JOIN headers h USING (place) LEFT JOIN matches m USING (place)
                LEFT JOIN reports r ON r.number = m.number ORDER BY i.place, r.rank, r.generation DESC, r.number"""
        )
        for (place_key, *header, sample), rows in groupby(inputs, lambda row: row[:7]):
            merged = self._merged([row[7:] for row in rows if row[7] is not None])
            alone = sample or self.keyer.key("text", place_key)
            self._add_owner(place_key, None, merged, alone, *[value or "" for value in header])
        reports = self.db.execute(
            f"""SELECT coalesce(r.image, -r.number), r."table", r.number, r.image, r.text, r.words, {said}
                FROM reports r WHERE r.number NOT IN (SELECT number FROM matches) AND r.rank != {BESIDE}
                ORDER BY r."table", 1, r.number"""
        )
        for _, group in groupby(reports, lambda row: row[:2]):
            told = list(group)
            texts = {row[4]: row for row in told if row[4]}
            self._counts[CONTRADICTING] += len(texts) > 1
            for _, _, number, image, text, words, *_ in texts.values() if len(texts) == 1 else []:
                merged = self._merged([row[6:] for row in told])
                patient = merged.patient if merged else ""  # many have the same words in their report
                alone = self.keyer.key("text", str(image), patient, scrub(text, json.loads(words or "[]"), self.keyer))
                self._add_owner(None, number, merged, alone)
        self._name_patients()

    def _merged(self, rows: list[tuple[Any, ...]]) -> Report | None:
        """What reports of one image say together, but for the text.

        Those of one rank and generation must agree, or there is None; what they leave open is filled by the next.
        """
        whole = Report()
        for _, same in groupby(rows, lambda row: row[:2]):
            said: Report | None = Report()
            for _, _, patient, study, split, labels, line in same:
                names = (patient or "", study or "", split or "")
                new = Report(patient=names[0], study=names[1], split=names[2], labels=json.loads(labels))
                said = said and merge(replace(said, line=said.line or line or ""), new)
            if said is None:
                return None
            self.text_labels |= {name for name, value in said.labels.items() if isinstance(value, str)}
            filled = {name: value for name, value in whole.labels.items() if value is not None}
            whole = Report(
                patient=whole.patient or said.patient, study=whole.study or said.study, split=whole.split or said.split,
                labels={**said.labels, **filled}, line=whole.line or said.line,
            )  # fmt: skip
        return whole

    def _add_owner(
        self, place_key: str | None, number: int | None, said: Report | None, alone: str, header: str = "",
        header_number: str = "", path: str = "", header_study: str = "", path_study: str = "",
    ) -> None:  # fmt: skip
        """All that tells who an input or a text belongs to, and the keys it has where nothing else does."""
        key, told = self.keyer.key, said or Report()
        study = told.study or header_study or path_study
        alone_patient = key("patient of study", study) if study else key("patient of sample", alone)
        row = (
            place_key, number, told.patient, header, header_number, path, study or key("study of sample", alone),
            header_study, told.split, told.line, json.dumps(told.labels), said is None, alone_patient, study != "",
        )  # fmt: skip
        self.db.execute(f"INSERT INTO owners VALUES ({', '.join('?' * len(row))}, '', 1)", row)

    def _name_patients(self) -> None:
        """Give every owner its patient: by the table, else the header, the path, the study, or nobody else.

        A person is known by several keys: an issuer may be missing, a table may speak of some images only, a file may
        have lost its PatientID. Where only one patient can be meant, it is that one: else a study would lie in two
        splits.
        """
        self.db.executescript(
            """
            CREATE TABLE issued AS SELECT header_number AS number, min(header) AS patient FROM owners
                WHERE header != header_number GROUP BY header_number HAVING count(DISTINCT header) = 1;
            UPDATE owners SET header = issued.patient FROM issued WHERE owners.header = issued.number;
            CREATE TABLE renamed AS SELECT header, min(told) AS patient FROM owners
                WHERE told != '' AND header != '' GROUP BY header HAVING count(DISTINCT told) = 1;
            CREATE UNIQUE INDEX renamed_header ON renamed (header);
            UPDATE owners SET patient = coalesce(nullif(told, ''),
                (SELECT patient FROM renamed r WHERE r.header = owners.header), nullif(header, ''), path);
            CREATE TABLE studied AS SELECT study, min(patient) AS patient FROM
                    (SELECT study, patient FROM owners UNION SELECT header_study, patient FROM owners)
                WHERE study != '' AND patient != '' GROUP BY study HAVING count(DISTINCT patient) = 1;
            CREATE UNIQUE INDEX studied_study ON studied (study);
            UPDATE owners SET patient = studied.patient FROM studied WHERE owners.patient = ''
                AND owners.study = studied.study;
            UPDATE owners SET patient = alone, named = 0 WHERE patient = '';
            CREATE UNIQUE INDEX owners_place ON owners (place);
            INSERT INTO tellers SELECT m.number, o.patient FROM matches m JOIN owners o USING (place)
                UNION SELECT number, patient FROM owners WHERE number IS NOT NULL;
            CREATE INDEX tellers_number ON tellers (number);
            """
        )

    # ----------------------------------------------------------------------------------------------- scrub

    def _scrub(self) -> None:
        """Cut out of every report what the headers and rows of its patient name."""
        self.db.executescript(
            """
            CREATE TABLE texted AS SELECT DISTINCT t.patient FROM tellers t JOIN reports r USING (number)
                WHERE r.text != '' OR r.labels LIKE '%": "%';
            CREATE UNIQUE INDEX texted_patient ON texted (patient);
            CREATE TABLE naming AS SELECT DISTINCT o.patient FROM owners o JOIN headers h USING (place)
                WHERE h.words IS NOT NULL AND h.words != '[]';
            CREATE UNIQUE INDEX naming_patient ON naming (patient);
            INSERT OR IGNORE INTO words SELECT o.patient, j.value FROM owners o JOIN texted USING (patient)
                JOIN headers h USING (place), json_each(h.words) j;
            INSERT OR IGNORE INTO words SELECT t.patient, j.value FROM tellers t JOIN reports r USING (number),
                json_each(r.words) j;
            """
        )
        texts = self.db.execute(
            """SELECT (SELECT group_concat(patient, ' ') FROM tellers t WHERE t.number = r.number) AS patients,
                   r.number, r.text, r.labels
               FROM reports r WHERE r.text != '' OR r.labels LIKE '%": "%' ORDER BY patients"""
        )
        bare = 0
        for patients, rows in groupby(texts, lambda row: row[0]):
            words = self._words((patients or "").split())
            for _, number, text, labels in rows:
                bare += bool(text) and not self._is_naming(patients or "", number)
                self.db.execute(
                    "UPDATE reports SET text = ?, labels = ? WHERE number = ?",
                    (scrub(text, words, self.keyer), self._clean_labels(labels, words), number),
                )
        labelled = """SELECT patient, rowid, labels FROM owners WHERE labels LIKE '%": "%' ORDER BY patient"""
        for patient, rows in groupby(self.db.execute(labelled), lambda row: row[0]):
            words = self._words([patient])
            for _, row, labels in rows:
                clean = self._clean_labels(labels, words)
                self.db.execute("UPDATE owners SET labels = ? WHERE rowid = ?", (clean, row))
        if not self.config.already_deidentified:
            only = "dates, phones and long numbers were cut out"
            self._counts[f"of {{}} reports no header or column names anybody: only {only}"] = bare

    def _is_naming(self, patients: str, number: int) -> bool:
        """Whether a header of the patients, or the report's own row, holds more than numbers that are keys."""
        known = "SELECT 1 FROM naming WHERE patient = ? UNION SELECT 1 FROM reports WHERE number = ? AND naming"
        return any(self.db.execute(known, (patient, number)).fetchone() for patient in patients.split())

    def _words(self, patients: list[str]) -> frozenset[str]:
        """Fingerprints of what the headers and rows of some patients name."""
        marks = ", ".join("?" * len(patients))
        rows = self.db.execute(f"SELECT word FROM words WHERE patient IN ({marks})", patients)
        return frozenset(word for (word,) in rows)

    def _clean_labels(self, labels: str, words: frozenset[str]) -> str:
        """Labels as JSON; one that is text may hold a name, as a report may."""
        said = json.loads(labels)
        clean = {name: scrub(value, words, self.keyer) for name, value in said.items() if isinstance(value, str)}
        return json.dumps(said | clean)

    def _say(self) -> None:
        """Fill `said`: the text of every input. Two texts of one table about one image make a conflict."""
        texts = self.db.execute(
            """SELECT m.place, r.rank, r.generation, r.text FROM matches m JOIN reports r USING (number)
               WHERE r.text != '' ORDER BY m.place, r.rank, r.generation DESC, r.text"""
        )
        for place_key, rows in groupby(texts, lambda row: row[0]):
            (rank, _), first = next(groupby(rows, lambda row: row[1:3]))
            said = list(dict.fromkeys(row[3] for row in first))
            if len(said) > 1 and rank != STRUCTURED:  # a study has several structured reports, all true
                self.db.execute("UPDATE owners SET conflict = 1 WHERE place = ?", (place_key,))
            else:
                self.db.execute("INSERT INTO said VALUES (?, ?)", (place_key, "\n\n".join(said)))

    # ---------------------------------------------------------------------------------------------- choose

    def _choose(self) -> None:
        """Of equal pixels keep one: under the patient key that sorts first, with a text if there is one."""
        kept = ", ".join(f'"{name}"' for name in _SAMPLE)
        self.db.executescript(
            f"""
            CREATE TABLE used AS SELECT f.place, f.frame, f.content, f.perceptual_hash, o.patient,
                    row_number() OVER same AS rank,
                    first_value(f.place) OVER same AS of_place, first_value(o.patient) OVER same AS of_patient
                FROM frames f JOIN owners o USING (place) LEFT JOIN said s USING (place)
                WHERE f.status = 'used' AND NOT o.conflict
                WINDOW same AS (PARTITION BY f.content ORDER BY o.patient, s.text IS NULL, f.sample, f.place, f.frame);
            INSERT INTO samples ({kept}, split, place, named, line, labels, perceptual_hash)
                SELECT {", ".join(map(_sample_column, _SAMPLE))}, o.split, f.place, o.named, o.line, o.labels,
                    f.perceptual_hash
                FROM used u JOIN frames f USING (place, frame) JOIN owners o USING (place) JOIN inputs i USING (place)
                LEFT JOIN said s USING (place) WHERE u.rank = 1;
            CREATE INDEX samples_place ON samples (place);
            """
        )

    def _add_texts(self) -> None:
        """Reports whose image is missing, not used or a duplicate become samples without an image, once a study."""
        self.db.executescript(
            """
            CREATE TABLE known_texts (owner, text, PRIMARY KEY (owner, text)) WITHOUT ROWID;
            INSERT OR IGNORE INTO known_texts SELECT patient, text FROM samples WHERE text != '';
            INSERT OR IGNORE INTO known_texts SELECT study, text FROM samples WHERE text != '';
            """
        )
        texts = self.db.execute(
            """SELECT o.patient, o.study, coalesce(s.text, r.text) AS text, o.named, o.split, o.line, o.labels
               FROM owners o LEFT JOIN said s USING (place) LEFT JOIN reports r USING (number)
               WHERE coalesce(s.text, r.text, '') != '' AND NOT o.conflict ORDER BY o.patient, o.study, text"""
        )
        for patient, study, text, named, split, line, labels in texts:
            known = "SELECT 1 FROM known_texts WHERE text = ? AND owner IN (?, ?)"
            if not self.db.execute(known, (text, patient, study)).fetchone():
                self.db.executemany("INSERT OR IGNORE INTO known_texts VALUES (?, ?)", [(patient, text), (study, text)])
                row = _TEXT_ONLY | {
                    "sample": self.keyer.key("text sample", patient, study, text), "patient": patient, "study": study,
                    "text": text, "named": named, "split": split, "line": line, "labels": labels,
                }  # fmt: skip
                self.offer.insert("samples", row)

    # ----------------------------------------------------------------------------------------------- split

    def _split(self) -> None:
        """Give every patient a split, from the table where it gives one."""
        given = self.db.execute(  # of owners, not samples: it holds for the patient, whatever became of the image
            "SELECT patient, min(split), max(split) FROM owners WHERE split != '' GROUP BY patient"
        )
        self.db.execute("CREATE TABLE splits (patient PRIMARY KEY, split) WITHOUT ROWID")
        for patient, first, last in given:
            if first != last:
                lines = "SELECT min(line) FROM owners WHERE patient = ? AND split IN (?, ?) GROUP BY split"
                found = sorted(line for (line,) in self.db.execute(lines, (patient, first, last)) if line)
                raise CyclicError(
                    "A table puts one patient into two splits.",
                    f"Mend the table: {' and '.join(found)}." if found else f"Patient key {patient}: mend the table.",
                )
            self.split_given = True
            self.db.execute("INSERT INTO splits VALUES (?, ?)", (patient, first))
        shares = self.config.split
        self.db.create_function("place", 1, place, deterministic=True)
        self.db.create_function("hashed_split", 1, lambda where: split_of(where, shares)[0], deterministic=True)
        self.db.create_function("position", 1, lambda where: split_of(where, shares)[1], deterministic=True)
        self.db.execute(
            """UPDATE samples SET position = CASE WHEN patient IN (SELECT patient FROM splits) THEN place(patient)
                   ELSE position(place(patient)) END,
               split = coalesce((SELECT split FROM splits WHERE splits.patient = samples.patient),
                   hashed_split(place(patient)))"""
        )

    # ------------------------------------------------------------------------------------- what came out

    def samples(self) -> Iterator[Row]:
        """The rows of the index, in its order."""
        order = " ".join(f"WHEN '{name}' THEN {number}" for number, name in enumerate(SPLITS))
        columns = ", ".join(f'"{name}"' for name in INDEX_COLUMNS)
        rows = self.db.execute(
            f"SELECT {columns}, labels FROM samples ORDER BY CASE split {order} END, position, patient, sample, frame"
        )
        for *values, labels in rows:
            row = dict(zip(INDEX_COLUMNS, values, strict=True))
            said = json.loads(labels)
            words = {name: said.get(name) for name in self.offer.labels}
            words |= {name: str(words[name]) for name in self.text_labels if words.get(name) is not None}
            yield row | {"has_image": bool(row["has_image"]), "has_text": bool(row["has_text"])} | words

    def inputs(self) -> Iterator[Row]:
        """The rows of `inputs.parquet`: every frame of every input."""
        frame = ", ".join(f"f.{name}" for name in FRAME_COLUMNS)
        stored = [name for name in INPUT_COLUMNS if name not in FRAME_COLUMNS]
        rows = self.db.execute(
            f"SELECT {', '.join(f'i.{name}' for name in stored)}, {frame} FROM inputs i JOIN frames f USING (place) "
            "ORDER BY i.number, f.frame"
        )
        return (_from_json(dict(zip(INPUT_COLUMNS, row, strict=True)), "names", "words") for row in rows)

    def reports(self) -> Iterator[Row]:
        """The rows of `reports.parquet`."""
        columns = ", ".join(f'"{name}"' for name in REPORT_COLUMNS)
        rows = self.db.execute(f"SELECT {columns} FROM reports ORDER BY number")
        return (_from_json(dict(zip(REPORT_COLUMNS, row, strict=True)), "words") for row in rows)

    def rejected(self) -> Iterator[Row]:
        """The lines of `rejected.jsonl`: every skipped and rejected input, and the bad frames of one that was used."""
        rows = self.db.execute(
            """SELECT coalesce(i.source, printf('%06d', i.number + 1)) AS name, w.status, f.frame, f.reason, f.detail
               FROM worth w JOIN inputs i USING (place) JOIN frames f USING (place)
               WHERE w.status IN ('skipped', 'rejected') AND f.frame = w.first
                   OR w.status = 'used' AND f.status != 'used'
               ORDER BY name, f.frame"""
        )
        for name, status, frame, reason, detail in rows:
            of_frame = {"frame": frame} if status == "used" else {}
            conflict = {"reason": "conflicting_rows", "detail": REASONS["conflicting_rows"]} if reason is None else {}
            said = {"status": "frame" if of_frame else status, "reason": reason, "detail": detail}
            yield {"source": name, **of_frame, **said, **conflict}

    def duplicates(self) -> Iterator[Row]:
        """The lines of `duplicates.jsonl`: what was left out for equal pixels, and pairs that look nearly the same."""
        name = "coalesce({0}.source, printf('%06d', {0}.number + 1))"
        exact = self.db.execute(
            f"""SELECT {name.format("i")} AS name, {name.format("o")}, u.patient = u.of_patient, u.frame FROM used u
                JOIN inputs i USING (place) JOIN inputs o ON o.place = u.of_place
                WHERE u.rank > 1 ORDER BY name, u.frame"""
        )
        for source, other, same, frame in exact:
            yield {"source": source, "frame": frame, "of": other, "kind": "exact", "same_patient": bool(same)}
        for first, second, distance in self._near():
            one, two = (self._named(row, name) for row in (first, second))
            same = {"same_patient": one["patient"] == two["patient"], "splits": sorted({one["split"], two["split"]})}
            yield {"source": two["name"], "of": one["name"], "kind": "near", "distance": distance, **same}

    def counts(self) -> dict[str, Any]:
        """The totals that the summary and `dataset.yaml` share. Nothing of it depends on time or workers."""
        one = self.db.execute
        worth = dict(one("SELECT status, count(*) FROM worth GROUP BY status").fetchall())
        reasons = one(
            """SELECT coalesce(f.reason, 'conflicting_rows'), count(*) FROM worth w JOIN frames f
               ON f.place = w.place AND f.frame = w.first WHERE w.status = 'rejected' GROUP BY 1 ORDER BY 1"""
        ).fetchall()
        splits = dict(one("SELECT split, count(*) FROM samples GROUP BY split").fetchall())
        samples, patients, studies, images, paired = one(
            """SELECT count(*), count(DISTINCT patient), count(DISTINCT study), coalesce(sum(has_image), 0),
                      coalesce(sum(has_image AND has_text), 0) FROM samples"""
        ).fetchone()
        return {
            "inputs": sum(worth.values()), "used": worth.get("used", 0), "duplicates": worth.get("duplicate", 0),
            "skipped": worth.get("skipped", 0), "rejected": worth.get("rejected", 0),
            "rejected_by_reason": dict(reasons), "near_duplicates": len(self._near()), "samples": samples,
            "patients": patients, "studies": studies, "paired": paired, "image_only": images - paired,
            "text_only": samples - images, "report_files": self.offer.report_files,
            "splits": {name: splits.get(name, 0) for name in SPLITS},
        }  # fmt: skip

    def warnings(self) -> list[str]:
        """What the user should know, each with its count."""
        named, imageless = self.db.execute(
            """SELECT count(*), coalesce(sum(number NOT IN (SELECT number FROM matches)), 0) FROM reports
               WHERE image IS NOT NULL"""
        ).fetchone()
        (nobody,) = self.db.execute("SELECT count(*) FROM samples WHERE NOT named").fetchone()
        said = self._counts | {
            "{} rows of the tables name an image that was not given": imageless,
            "{} samples name no patient: each study, or sample, counts as a patient of its own": nobody,
        }
        lost = "not one row of the tables found its image: name the folder as source that their paths begin in"
        return [lost] * (0 < named == imageless) + [text.format(count) for text, count in said.items() if count]

    def fingerprint(self) -> str:
        """A hash of the samples."""
        digest = hashlib.sha256()
        for row in self.samples():
            digest.update(
                "\0".join(str(row[name]) for name in ("sample", "patient", "split", "content", "text")).encode()
            )
        return digest.hexdigest()[:32]

    def _weigh(self) -> None:
        """Fill `worth`: what became of every input, by the best of its frames."""
        self.db.executescript(
            """
            CREATE TABLE worth AS SELECT o.place, CASE
                    WHEN o.place IN (SELECT place FROM samples) THEN 'used'
                    WHEN o.place IN (SELECT place FROM used) THEN 'duplicate'
                    WHEN h.status = 'used' THEN 'rejected' ELSE h.status END AS status, h.frame AS first
                FROM owners o JOIN headers h USING (place);
            CREATE INDEX worth_place ON worth (place);
            """
        )

    def _near(self) -> list[tuple[int, int, int]]:
        """Pairs of samples, by their rows in `samples`, that look nearly the same, with their distance."""
        if self._near_pairs is None:
            rows = self.db.execute(
                "SELECT rowid, perceptual_hash FROM samples WHERE perceptual_hash IS NOT NULL ORDER BY sample, frame"
            )
            self._near_pairs = near_duplicates(rows)
        return self._near_pairs

    def _named(self, row: int, name: str) -> Row:
        values = self.db.execute(
            f"SELECT {name.format('i')} AS name, s.patient, s.split FROM samples s JOIN inputs i USING (place) "
            "WHERE s.rowid = ?",
            (row,),
        ).fetchone()
        return dict(zip(("name", "patient", "split"), values, strict=True))


_TEXT_ONLY = {name: "" for name, kind in INDEX_COLUMNS.items() if kind == "string"} | {
    "has_image": False, "has_text": True, "shard": -1, "row": -1, "height": 0, "width": 0, "bits": 0,
    "pixel_spacing": 0.0, "frame": -1, "source": None,
}  # fmt: skip


def _sample_column(name: str) -> str:
    """Where a column of the index comes from, for a sample with an image."""
    of_owner = {"patient": "o.patient", "study": "o.study", "source": "i.source", "has_image": "1"}
    of_text = {"text": "coalesce(s.text, '')", "has_text": "s.text IS NOT NULL"}
    return (of_owner | of_text).get(name) or f'f."{name}"'


def _from_json(row: Row, *names: str) -> Row:
    return row | {name: json.loads(row[name]) if row[name] else None for name in names}
