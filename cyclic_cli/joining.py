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
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from cyclic_cli.errors import REASONS, CyclicError
from cyclic_cli.identity import SPLITS, place, split_of
from cyclic_cli.offer import BESIDE, ENDING, LONGEST_ENDING, NAME, OF_STUDY, RELATIVE, STEM, STRUCTURED, TABLE, Offer
from cyclic_cli.scrub import scrub
from cyclic_cli.similar import near_duplicates
from cyclic_cli.storage import FRAME_COLUMNS, INDEX_COLUMNS, INPUT_COLUMNS, REPORT_COLUMNS
from cyclic_cli.text import Report, merge

Row = dict[str, Any]

_SAMPLE = [name for name in INDEX_COLUMNS if name not in ("split", "position")]
_SCHEMA = f"""
CREATE TABLE headers AS SELECT place, min(frame) AS frame, status, patient, study,
    accession, instance, sample, words FROM frames GROUP BY place;
CREATE UNIQUE INDEX headers_place ON headers (place);
CREATE INDEX headers_instance ON headers (instance);
CREATE INDEX headers_accession ON headers (accession);
CREATE TABLE matches (place, number INTEGER, PRIMARY KEY (place, number)) WITHOUT ROWID;
CREATE TABLE owners (place, number INTEGER, patient, study, named, split, line, labels, conflict);
CREATE TABLE said (place PRIMARY KEY, text) WITHOUT ROWID;
CREATE TABLE tellers (number INTEGER, patient);
CREATE TABLE words (patient, word, PRIMARY KEY (patient, word)) WITHOUT ROWID;
CREATE TABLE samples ({", ".join(f'"{name}"' for name in INDEX_COLUMNS)}, place, named, line, labels, look);
"""


class Join:
    """Brings images and reports together; `run` fills the tables that the other methods read.

    Args:
        offer: Inputs, their frames and reports; labels are added to no more.
    """

    def __init__(self, offer: Offer) -> None:
        self.offer, self.db, self.keyer, self.config = offer, offer.db, offer.keyer, offer.config
        self.text_labels: set[str] = set()  # that hold words, not numbers
        self.split_given = False
        self._counts: dict[str, int] = {}  # of what is worth a warning
        self._near_pairs: list[tuple[int, int, int]] | None = None

    def run(self) -> "Join":
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
        self._drop_shared_side_cars()
        self._match_images()
        self.db.executescript(
            f"""
            INSERT OR IGNORE INTO matches SELECT i.place, r.number FROM reports r JOIN images i
                ON i."table" = r."table" AND i.image = r.image WHERE i.place IS NOT NULL;
            INSERT OR IGNORE INTO matches SELECT h.place, r.number FROM reports r JOIN headers h
                ON h.instance = r.instance WHERE r.instance != '';
            INSERT OR IGNORE INTO matches SELECT i.place, r.number FROM reports r JOIN inputs i
                ON i.place = r.place WHERE r.rank = {BESIDE};
            CREATE TABLE studies AS
                SELECT place, study FROM headers WHERE study != ''
                UNION SELECT place, path_study FROM inputs WHERE path_study != ''
                UNION SELECT m.place, r.study FROM matches m JOIN reports r USING (number) WHERE r.study != '';
            CREATE INDEX studies_study ON studies (study);
            INSERT OR IGNORE INTO matches SELECT s.place, r.number FROM reports r JOIN studies s
                ON s.study = r.study WHERE r.rank >= {OF_STUDY} AND r.study != '';
            INSERT OR IGNORE INTO matches SELECT h.place, r.number FROM reports r JOIN headers h
                ON h.accession = r.accession WHERE r.rank >= {OF_STUDY} AND r.accession != '';
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
        # What the strictest rule gave stays given, when a later month brings files of the same names.
        self.db.execute(
            """UPDATE reports SET place = i.place FROM images i
               WHERE i."table" = reports."table" AND i.image = reports.image AND i.place IS NOT NULL"""
        )
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
        by_name += self._give(f"{self._unique('stem', STEM)} AND i.depth = 1")
        self._counts["{} rows of the tables found their image by its file name alone"] = by_name

    def _unique(self, column: str, kind: int) -> str:
        """A join of images with the inputs that alone have such a name."""
        alone = f"SELECT key, min(place) AS place FROM keys WHERE kind = {kind} GROUP BY key HAVING count(*) = 1"
        return f"JOIN ({alone}) u ON u.key = i.{column}"

    def _give(self, join: str) -> int:
        return self._give_found(f'SELECT i.rowid AS row, u.place, i."table" FROM images i {join}')

    def _give_found(self, found: str) -> int:
        """Give images that have none yet the inputs that no stricter rule gave to the same table; how many got one."""
        self.db.execute(
            f"""CREATE TABLE gave AS SELECT f.row, f.place, f."table" FROM ({found}) f JOIN images i ON i.rowid = f.row
                WHERE i.place IS NULL
                  AND NOT EXISTS (SELECT 1 FROM taken t WHERE t."table" = f."table" AND t.place = f.place)"""
        )
        given = self.db.execute("UPDATE images SET place = gave.place FROM gave WHERE images.rowid = gave.row").rowcount
        self.db.execute('INSERT OR IGNORE INTO taken SELECT "table", place FROM gave')
        self.db.execute("DROP TABLE gave")
        return given

    def _drop_shared_side_cars(self) -> None:
        """A folder's one report belongs to its images only where they are of one study, or at least of one patient."""
        shared = self.db.execute(
            """SELECT r.shared FROM reports r JOIN headers h USING (place) JOIN frames f USING (place)
               WHERE r.shared IS NOT NULL AND f.status = 'used'
               GROUP BY r.shared HAVING count(DISTINCT coalesce(nullif(h.study, ''), h.patient)) > 1"""
        ).fetchall()
        self.db.executemany("DELETE FROM reports WHERE shared = ?", shared)
        text = "{} report.txt lie beside images of several patients or studies, and were not used"
        self._counts[text] = len(shared)

    # ------------------------------------------------------------------------------------------------- own

    def _own(self) -> None:
        """Fill `owners`: patient and study of every input, and of every report that speaks of none."""
        said = "r.rank, r.patient, r.study, r.split, r.labels, r.line"
        inputs = self.db.execute(
            f"""SELECT i.place, h.patient, h.study, h.sample, i.path_patient, i.path_study, {said}
                FROM inputs i JOIN headers h USING (place) LEFT JOIN matches m USING (place)
                LEFT JOIN reports r ON r.number = m.number ORDER BY i.place, r.rank, r.number"""
        )
        for (place_key, *header), rows in groupby(inputs, lambda row: row[:6]):
            merged = self._merged([row[6:] for row in rows if row[6] is not None])
            self._add_owner(place_key, None, merged, *header)
        alone = self.db.execute(
            f"""SELECT coalesce(r.image, -r.number), r."table", r.number, r.image, r.text, r.words, {said}
                FROM reports r WHERE r.number NOT IN (SELECT number FROM matches) AND r.rank != {BESIDE}
                ORDER BY r."table", 1, r.number"""
        )
        for _, group in groupby(alone, lambda row: row[:2]):
            told = list(group)
            merged = self._merged([(TABLE, *row[7:]) for row in told])
            texts = {row[4]: row for row in told if row[4]}
            for _, _, number, image, text, words, *_ in texts.values() if len(texts) == 1 else []:
                own = self.keyer.key("text", str(image), scrub(text, json.loads(words or "[]"), self.keyer))
                self._add_owner(None, number, merged, "", "", own, "", "")
        self.db.executescript(
            """
            CREATE UNIQUE INDEX owners_place ON owners (place);
            INSERT INTO tellers SELECT m.number, o.patient FROM matches m JOIN owners o USING (place)
                UNION SELECT number, patient FROM owners WHERE number IS NOT NULL;
            CREATE INDEX tellers_number ON tellers (number);
            """
        )

    def _merged(self, rows: list[tuple[Any, ...]]) -> Report | None:
        """What reports of one image say together, but for the text: of one rank they must agree, the next fill gaps."""
        whole = Report()
        for _, same in groupby(rows, lambda row: row[0]):
            said: Report | None = Report()
            for _, patient, study, split, labels, line in same:
                names = (patient or "", study or "", split or "", line or "")
                new = Report(patient=names[0], study=names[1], split=names[2], line=names[3], labels=json.loads(labels))
                said = said and merge(said, new)
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
        self, place_key: str | None, number: int | None, said: Report | None, patient: str | None, study: str | None,
        sample: str | None, path_patient: str, path_study: str,
    ) -> None:  # fmt: skip
        """Who an input or a text belongs to: by the table, else the header, the path, the study, or nobody else."""
        key, report = self.keyer.key, said or Report()
        alone = sample or key("text", place_key or "")
        study = report.study or study or path_study
        patient = report.patient or patient or path_patient
        named = bool(patient)
        patient = patient or (key("patient of study", study) if study else key("patient of sample", alone))
        self.db.execute(
            "INSERT INTO owners VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (place_key, number, patient, study or key("study of sample", alone), named, report.split, report.line,
             json.dumps(report.labels), said is None),
        )  # fmt: skip

    # ----------------------------------------------------------------------------------------------- scrub

    def _scrub(self) -> None:
        """Cut out of every report what the headers and rows of its patient name."""
        self.db.executescript(
            """
            CREATE TABLE texted AS SELECT DISTINCT t.patient FROM tellers t JOIN reports r USING (number)
                WHERE r.text != '';
            CREATE UNIQUE INDEX texted_patient ON texted (patient);
            INSERT OR IGNORE INTO words SELECT o.patient, j.value FROM owners o JOIN texted USING (patient)
                JOIN headers h USING (place), json_each(h.words) j;
            INSERT OR IGNORE INTO words SELECT t.patient, j.value FROM tellers t JOIN reports r USING (number),
                json_each(r.words) j;
            """
        )
        texts = self.db.execute(
            """SELECT r.number, r.text, (SELECT json_group_array(word) FROM words
                   WHERE patient IN (SELECT patient FROM tellers t WHERE t.number = r.number))
               FROM reports r WHERE r.text != '' ORDER BY r.number"""
        )
        bare = 0
        for number, text, words in texts:
            known = json.loads(words)
            bare += not known
            self.db.execute("UPDATE reports SET text = ? WHERE number = ?", (scrub(text, known, self.keyer), number))
        if not self.config.already_deidentified:
            only = "dates, phones and long numbers were cut out"
            self._counts[f"of {{}} reports no header or column names anybody: only {only}"] = bare

    def _say(self) -> None:
        """Fill `said`: the text of every input. Two texts of one table about one image make a conflict."""
        texts = self.db.execute(
            """SELECT m.place, r.rank, r.text FROM matches m JOIN reports r USING (number) WHERE r.text != ''
               ORDER BY m.place, r.rank, r.text"""
        )
        for place_key, rows in groupby(texts, lambda row: row[0]):
            rank, first = next(groupby(rows, lambda row: row[1]))
            said = list(dict.fromkeys(row[2] for row in first))
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
            CREATE TABLE used AS SELECT f.place, f.frame, f.content, f.look, o.patient, row_number() OVER same AS rank,
                    first_value(f.place) OVER same AS of_place, first_value(o.patient) OVER same AS of_patient
                FROM frames f JOIN owners o USING (place) LEFT JOIN said s USING (place)
                WHERE f.status = 'used' AND NOT o.conflict
                WINDOW same AS (PARTITION BY f.content ORDER BY o.patient, s.text IS NULL, f.sample, f.place, f.frame);
            INSERT INTO samples ({kept}, split, place, named, line, labels, look)
                SELECT {", ".join(map(_sample_column, _SAMPLE))}, o.split, f.place, o.named, o.line, o.labels, f.look
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
                names = ", ".join(f'"{name}"' for name in row)
                self.db.execute(
                    f"INSERT INTO samples ({names}) VALUES ({', '.join('?' * len(row))})", list(row.values())
                )

    # ----------------------------------------------------------------------------------------------- split

    def _split(self) -> None:
        """Give every patient a split, from the table where it gives one."""
        given = self.db.execute(
            "SELECT patient, min(split), max(split) FROM samples WHERE split != '' GROUP BY patient"
        )
        self.db.execute("CREATE TABLE splits (patient PRIMARY KEY, split) WITHOUT ROWID")
        for patient, first, last in given:
            if first != last:
                raise CyclicError(
                    "A table puts one patient into two splits.", f"Patient key {patient}: mend the table."
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
        (imageless,) = self.db.execute(
            "SELECT count(*) FROM reports WHERE image IS NOT NULL AND number NOT IN (SELECT number FROM matches)"
        ).fetchone()
        (nobody,) = self.db.execute("SELECT count(*) FROM samples WHERE NOT named").fetchone()
        said = self._counts | {
            "{} rows of the tables name an image that was not given": imageless,
            "{} samples name no patient: each study, or sample, counts as a patient of its own": nobody,
        }
        return [text.format(count) for text, count in said.items() if count]

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
            rows = self.db.execute("SELECT rowid, look FROM samples WHERE look IS NOT NULL ORDER BY sample, frame")
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
