"""Measures how many identities `cyclic prepare` removes from reports, and how much of what must stay it keeps.

    python tests/benchmarks/deidentification.py --work DIR                        a minute
    python tests/benchmarks/deidentification.py --work DIR --presidio PYTHON      beside Presidio's patterns

The reports are those of `synthetic_reports.py`, in eight languages. `cyclic` is given what a header says, the name and
number of the patient; all else must be found by its form or by the words beside it. `--presidio` is a Python with
presidio-analyzer, whose pattern recognisers search the same texts (see `presidio_patterns.py`).

Recall is the share of identities of which no letter or digit is left; `90+` may stand for an age. Precision is the
share of what must stay that is left whole. Both are in per cent, by kind and language. Sentences of all kinds are drawn
equally often. The words around identities, such as `Tel.`, do not count for the precision of all kinds.

DIR receives the failures as tables. Rules should be improved with another seed than that of reported figures.
"""

import argparse
import csv
import json
import re
import subprocess
import time
from collections import Counter
from pathlib import Path

from synthetic_reports import CONTEXT, IDENTITIES, KEPT, LANGUAGES, Report, Slot, reports

from cyclic_cli.prepare.texts import plain
from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.privacy.scrub import CUT, Identifying, fingerprints, scrub

COUNTRIES = {"en": ["us", "uk"], "pt": ["pt", "br"]}
"""Language → the countries of its reports, where they are not those of its code."""
NAMES = {
    "person": "person, by a title, label or signature", "header_name": "patient's name, of the header",
    "header_number": "patient's number, of the header", "date": "date with year", "day": "date without year",
    "phone": "telephone number", "email": "e-mail address", "web": "web address", "street": "street address",
    "national": "national number", "record": "record number", "over_89": "age over 89",
    "long_number": "other long number", "level": "vertebral level", "rib": "ribs", "score": "score", "ratio": "ratio",
    "measure": "size", "decimal": "laboratory value, density", "dose": "dose", "percent": "percentage",
    "image": "series and image number", "time": "time of day", "grade": "BI-RADS, grade", "tnm": "TNM, T1, T2",
    "age": "age under 90", "plain": "sentence without numbers", CONTEXT: "words around identities",
}  # fmt: skip
STRONG = 0.4  # Presidio's score of a telephone number; many patterns of any long number have a lower one
Spans = list[tuple[int, int]]


def by_cyclic(report: Report, keyer: Keyer) -> Spans:
    """The parts that `cyclic` removes from a report."""
    scrubbed = scrub(plain(report.text), fingerprints(Identifying(names=report.header), keyer), keyer)
    kept = re.split(rf"90\+|{CUT}\+?", scrubbed)  # the 90 of a `90+` may be cut as part of a number
    match = re.fullmatch("(.+?)".join(map(re.escape, kept)), report.text, re.DOTALL)
    assert match, "scrub only replaces parts of a plain text"
    return [match.span(number) for number in range(1, len(kept))]


def by_presidio(python: Path, those: list[Report]) -> list[list[tuple[int, int, float]]]:
    """The start, end and score of the parts that Presidio finds in each report."""
    script = Path(__file__).with_name("presidio_patterns.py")
    lines = ""
    for report in those:
        countries = COUNTRIES.get(report.language, [report.language])
        lines += json.dumps({"language": report.language, "countries": countries, "text": report.text}) + "\n"
    done = subprocess.run([python, script], input=lines, stdout=subprocess.PIPE, text=True, check=True)
    return [[(start, end, score) for start, end, _, score in json.loads(line)] for line in done.stdout.splitlines()]


class Result:
    """What one method made of the slots of all reports."""

    def __init__(self) -> None:
        self.slots: Counter[tuple[str, str]] = Counter()  # (kind, language) → slots
        self.right: Counter[tuple[str, str]] = Counter()  # identities removed whole, and the rest left whole
        self.failures: list[tuple[str, str, str, str, str]] = []

    def add(self, report: Report, spans: Spans) -> None:
        removed = {position for span in spans for position in range(*span)}
        for slot in report.slots:
            letters = [position for position in range(slot.start, slot.end) if report.text[position].isalnum()]
            left = [position for position in letters if position not in removed]
            cell = (slot.kind, report.language)
            self.slots[cell] += 1
            if not left if slot.kind in IDENTITIES else len(left) == len(letters):
                self.right[cell] += 1
            else:
                missed = "missed" if len(left) == len(letters) else "partly missed"
                outcome = missed if slot.kind in IDENTITIES else "cut"
                self.failures.append((slot.kind, report.language, outcome, *_in_context(report.text, slot)))

    def share(self, kinds: tuple[str, ...], languages: tuple[str, ...] = LANGUAGES) -> str:
        """The share of right slots, in per cent."""
        cells = [(kind, language) for kind in kinds for language in languages]
        right, slots = (sum(counts[cell] for cell in cells) for counts in (self.right, self.slots))
        return f"{100 * right / slots:.1f}" if slots else "–"

    def count(self, kinds: tuple[str, ...]) -> int:
        return sum(self.slots[kind, language] for kind in kinds for language in LANGUAGES)


def _in_context(text: str, slot: Slot) -> tuple[str, str]:
    around = f"{text[max(0, slot.start - 40) : slot.start]}[{text[slot.start : slot.end]}]{text[slot.end :][:20]}"
    return text[slot.start : slot.end], " ".join(around.split())


def table(result: Result, kinds: tuple[str, ...], others: tuple[str, ...], title: str) -> str:
    """A Markdown table of shares by kind and language, with all `kinds` together, and then `others`."""
    rows = [[title, *LANGUAGES, "all", "number"], ["---", *["---:"] * (len(LANGUAGES) + 2)]]
    groups = [(NAMES[kind], (kind,)) for kind in kinds]
    for name, group in [*groups, ("**all**", kinds), *((NAMES[kind], (kind,)) for kind in others)]:
        shares = [result.share(group, (language,)) for language in LANGUAGES]
        rows.append([name, *shares, result.share(group), f"{result.count(group):,}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def report_on(name: str, those: list[Report], spans: list[Spans], work: Path) -> None:
    """Print the tables of a method, and write its failures."""
    result = Result()
    for report, parts in zip(those, spans, strict=True):
        result.add(report, parts)
    print(f"\n{name}\n\n{table(result, IDENTITIES, (), 'recall')}\n\n{table(result, KEPT, (CONTEXT,), 'precision')}")
    path = work / ("failures-" + re.sub(r"\W+", "-", name.lower()) + ".tsv")
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = [("kind", "language", "outcome", "slot", "text"), *result.failures]
        csv.writer(file, delimiter="\t").writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--reports", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--presidio", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    those = list(reports(options.reports, options.seed))
    print(f"{len(those):,} reports, seed {options.seed}")
    keyer = Keyer(b"benchmark")
    begin = time.perf_counter()
    found = [by_cyclic(report, keyer) for report in those]
    seconds = time.perf_counter() - begin
    print(f"cyclic: {1000 * seconds / len(those):.1f} ms per report")
    report_on("cyclic", those, found, options.work)
    if options.presidio:
        scored = by_presidio(options.presidio, those)
        for name, least in (("Presidio, all scores", 0), (f"Presidio, scores from {STRONG}", STRONG)):
            strong = [[(start, end) for start, end, score in spans if score >= least] for spans in scored]
            report_on(name, those, strong, options.work)


if __name__ == "__main__":
    main()
