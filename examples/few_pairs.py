"""Measures image–text models with few pairs, by folds over patients: `few_pairs.sh IMAGES TABLE… [options]`.

Each fold of a fold seed is prepared as a dataset of its own, so nothing that is learned sees a patient of the fold. In
each fold, every draw names other patients whose images and texts are known pairs (`paired_seed`). The score is the mean
R@10 of both directions among the samples of the fold.

    aligned           the closed form of the known pairs
    cyclic, always    completed by the unpaired samples
    cyclic            the same where it ranks folds of the known pairs better, else the closed form
    contrastive, cyclip, each from the closed form and (without encoders) from scratch: of the first --trained draws

With --views, an encoder of each fold's own training images is trained without labels, and used beside the others.

Everything is written below --work: the lists of folds, their datasets, one file of results per fold, and table.md. An
interrupted run goes on when it is started again.
"""

import argparse
import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cyclic_cli import distributed
from cyclic_cli.alignment.choice import MANY_PAIRS
from cyclic_cli.alignment.maps import MODALITIES, Blocks, embed
from cyclic_cli.codes.cached_codes import projected
from cyclic_cli.config import assign, train_settings, with_encoders
from cyclic_cli.data.mixture import Pool, present_samples, read_index
from cyclic_cli.environment import available_cpus
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import silent
from cyclic_cli.metrics.retrieval import first_hits
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.files import write_text
from cyclic_cli.training.closed_form import Aligned, ClosedFormAlignment, Named
from cyclic_cli.training.fixed_codes import CandidatePart
from cyclic_cli.training.setup import complete_settings

FOLDS = 5
RULE = "cyclic"
ALWAYS = "cyclic, always"
CLOSED = "aligned"
FROM_CLOSED_FORM = ("contrastive", "cyclip")
FROM_SCRATCH = tuple(f"{name}, from scratch" for name in FROM_CLOSED_FORM)
SCRATCH_SETTINGS = ("start=data", "model.width=8", "precision=32")
HITS = ("same_text", "same_labels")
NORMAL = 1.96  # 97.5 % quantile, for 50 scores


@dataclass(frozen=True)
class Task:
    """One fold of one fold seed."""

    options: argparse.Namespace
    seed: int
    fold: int

    @property
    def name(self) -> str:
        return f"seed-{self.seed}-fold-{self.fold}"

    @property
    def folder(self) -> Path:
        return self.options.work / self.name

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    @property
    def encoders(self) -> dict[str, list[Path]]:
        """The encoders by modality."""
        own = [self.folder / "views"] if self.options.views else []
        return {"image": [*self.options.image_encoder, *own], "text": self.options.text_encoder}

    @property
    def results(self) -> Path:
        return self.folder / "results.jsonl"

    @property
    def draws(self) -> list[int]:
        """The draws that are measured with this fold seed: the draws are divided over the fold seeds."""
        seeds = self.options.fold_seeds
        return np.array_split(self.options.draws, len(seeds))[seeds.index(self.seed)].tolist()

    def done(self) -> list[dict[str, Any]]:
        """The results of the draws and shares that were asked for."""
        if not self.results.exists():
            return []
        rows = [json.loads(line) for line in self.results.read_text().splitlines()]
        return [row for row in rows if row["draw"] in self.draws and row["share"] in self.options.shares]

    def add(self, *results: dict[str, Any]) -> None:
        """Add results, all of them or none."""
        before = self.results.read_text() if self.results.exists() else ""
        lines = [json.dumps({"fold_seed": self.seed, "fold": self.fold} | result) + "\n" for result in results]
        write_text(self.results, before + "".join(lines))


# --------------------------------------------------------------------------------------------------------- folds


def rows_of(options: argparse.Namespace) -> list[dict[str, str]]:
    """The rows of the first table that are used, with the columns of the other tables, and one text."""
    by_image: dict[str, dict[str, str]] = {}
    for number, path in enumerate(options.tables):
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            needed = [options.image_column, *(() if number else (options.patient_column, *options.text_column))]
            if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
                there = ", ".join(reader.fieldnames or ())
                raise CyclicError(f"{path} has no column {missing[0]!r}.", f"Name one of its columns: {there}.")
            for row in reader:
                image = row[options.image_column]
                if number == 0 or image in by_image:
                    by_image[image] = row | by_image.get(image, {})
    column, _, value = (options.rows or "=").partition("=")
    rows = [row for row in by_image.values() if not column or row.get(column) == value]
    if not rows:
        raise CyclicError(f"No row of {options.tables[0]} has {options.rows}.", "Name another value with --rows.")
    if missing := [name for name in options.label_column if any(name not in row for row in rows)]:
        raise CyclicError(f"Some rows have no label {missing[0]!r}.", "Leave this label out.")
    if absent := [row for row in rows if not (options.images / row[options.image_column]).is_file()]:
        raise CyclicError(
            f"{len(absent)} of {len(rows)} images of the table are not below {options.images}.",
            "Name the folder to which the paths of the table are relative.",
        )
    for row in rows:
        row["joined"] = ". ".join(row[name].strip() for name in options.text_column if row[name].strip())
    return rows


def claim(options: argparse.Namespace) -> None:
    """Keep what the results of a work folder depend on, and refuse another experiment there."""
    fixed = ("images", "tables", "image_column", "patient_column", "text_column", "label_column", "rows", "hit", "size")
    kept = {
        name: getattr(options, name) for name in (*fixed, "image_encoder", "text_encoder", "views", "set", "epochs")
    }
    asked = json.loads(json.dumps(kept | {"draws": options.draws, "fold_seeds": options.fold_seeds}, default=str))
    path = options.work / "experiment.json"
    if path.exists() and json.loads(path.read_text()) != asked:
        raise CyclicError(f"{options.work} holds another experiment.", "Name another folder with --work.")
    options.work.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asked, indent=1))


def prepare(task: Task) -> None:
    """Prepare the dataset of a fold, and train the encoder of its images where that was asked for."""
    if not task.dataset.exists():
        prepare_dataset(task)
    if views := task.options.views:
        cyclic(
            "train", task.dataset, "--objective", "views", "--arch", "conv", "--set", "model.embedding=128",
            "--epochs", views, "--out", task.folder / "views", "--resume", "auto",
        )  # fmt: skip


def prepare_dataset(task: Task) -> None:
    """Write the list of a fold and prepare its dataset: the patients of the fold are the split `test`."""
    options = task.options
    rows = rows_of(options)
    patients = sorted({row[options.patient_column] for row in rows})
    order = np.random.default_rng(task.seed).permutation(len(patients))
    held = {patients[patient] for place, patient in enumerate(order) if place % FOLDS == task.fold}
    task.folder.mkdir(parents=True, exist_ok=True)
    table = task.folder / "fold.csv"
    with table.open("w", newline="") as file:
        labels = options.label_column
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "split", "text", *labels])
        for row in rows:
            patient = row[options.patient_column]
            split = "test" if patient in held else "train"
            writer.writerow([row[options.image_column], patient, split, row["joined"], *(row[name] for name in labels)])
    files = "\n".join(str(options.images / row[options.image_column]) for row in rows)
    words = ["prepare", "-", "--reports", table, "--text-column", "text", "--out", task.dataset, "--size", options.size]
    cyclic(*words, "--already-deidentified", *(f"--label-column={name}" for name in labels), stdin=files)


def cyclic(*words: object, stdin: str | None = None) -> dict[str, Any]:
    """Run a command of `cyclic`, and return its JSON output."""
    command = [sys.executable, "-m", "cyclic_cli", *map(str, words), "--json", "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, input=stdin, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"`cyclic {words[0]}` ended with {done.returncode}, see above. Start again to go on.")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# -------------------------------------------------------------------------------------------------- closed forms


class Fold:
    """The features of a fold, from which closed forms are fitted for many draws."""

    def __init__(self, task: Task) -> None:
        self.task, self.stored = task, StoredDataset(task.dataset)
        values = assign(settings_of(task), ["objective=cyclic", "cycle_rule=always"])
        self.config = complete_settings(train_settings(values), self.stored, None)
        self.ranks = distributed.launch("cpu", "32", None, "auto")
        self._candidates: dict[bool, Named] = {}  # by whether there are many pairs

    def learner(self, share: float, draw: int) -> ClosedFormAlignment:
        config = replace(self.config, paired_fraction=share, paired_seed=draw)
        return ClosedFormAlignment(self.ranks, [self.stored], config)

    def align(self, share: float, draw: int) -> Aligned:
        """Fit and complete a closed form. The parts of codes are computed once for each number of components."""
        learner = self.learner(share, draw)
        many = len(learner.mixture.paired) >= MANY_PAIRS
        if many not in self._candidates:
            self._candidates[many] = learner.candidates()
        return learner.align(self._candidates[many])

    @cached_property
    def test(self) -> tuple[dict[str, Pool], np.ndarray]:
        """The samples of the fold by modality, and numbers that are equal for hits."""
        learner = self.learner(1.0, 0)
        labels = self.stored.facts.labels if self.task.options.hit == "same_labels" else []
        index = read_index(self.stored, learner.data.modalities, "test")
        pools = {}
        for one in learner.data.modalities:
            samples, numbers = present_samples(self.stored, one, index, learner.data.facts[one.name])
            if (numbers < 0).any():
                raise CyclicError("A sample of a fold has no image or no text.", "Leave its row out, see --rows.")
            pools[one.name] = Pool([samples], index["sample"])
        columns = self.stored.rows(labels, "test") if labels else {"text": pools["text"].keys}
        stacked = np.stack([column.astype(str) for column in columns.values()], axis=1)
        return pools, np.unique(stacked, axis=0, return_inverse=True)[1].ravel()

    def score(self, parts: Named, blocks: Blocks) -> dict[str, float]:
        """R@10 and the mean reciprocal rank in per cent, means over both directions."""
        pools, groups = self.test
        image, text = (embed(blocks, name, codes_of(parts[name], pools[name])) for name in MODALITIES)
        ranks = np.stack([first_hits(image, text, groups, groups), first_hits(text, image, groups, groups)])
        return {"r10": 100 * float((ranks <= 10).mean()), "mrr": 100 * float((1 / ranks).mean())}


def codes_of(parts: Sequence[CandidatePart], pool: Pool) -> np.ndarray:
    """The codes (N, code) of all samples of a pool."""
    sources = {part.source.name: part.source for part in parts}
    features = {name: one.features(pool, lambda done, total: None, silent) for name, one in sources.items()}
    projections = [
        (features[part.source.name][part.output], part.components.mean, part.components.matrix) for part in parts
    ]
    return projected(projections, np.arange(len(pool)))


def settings_of(task: Task) -> dict[str, Any]:
    """The settings of a run with the encoders of a fold."""
    values: dict[str, Any] = {}
    for modality, encoders in task.encoders.items():
        values = with_encoders(values, modality, list(map(str, encoders)))
    return assign(values, task.options.set)


# --------------------------------------------------------------------------------------------------------- cells


def measure(task: Task) -> None:
    """Measure all methods in a fold that were not measured yet."""
    prepare(task)
    done = {(row["method"], row["draw"], row["share"]) for row in task.done()}
    fold = cache(lambda: Fold(task))
    for draw in task.draws:
        for share in task.options.shares:
            if (ALWAYS, draw, share) not in done:
                found = fold().align(share, draw)
                closed, completed = (fold().score(found.parts, blocks) for blocks in (found.closed, found.blocks))
                cycle = found.choice["cycle"]
                every = {CLOSED: closed, ALWAYS: completed, RULE: completed if cycle["passes_folds"] else closed}
                cell = {"draw": draw, "share": share, "gain_on_folds": cycle["gain_on_folds"]}
                task.add(*({"method": method, **cell, **scores} for method, scores in every.items()))
        for share in task.options.shares:
            for method in trained_methods(task, draw):
                if (method, draw, share) not in done:
                    task.add({"method": method, "draw": draw, "share": share, **trained(task, method, draw, share)})
    print(f"{task.name} is done", file=sys.stderr, flush=True)


def trained_methods(task: Task, draw: int) -> list[str]:
    """The methods that are trained by gradient in a draw. Without encoders, they are trained from scratch as well."""
    if draw not in task.draws[: task.options.trained]:
        return []
    return [*FROM_CLOSED_FORM, *(() if any(task.encoders.values()) else FROM_SCRATCH)]


def trained(task: Task, method: str, draw: int, share: float) -> dict[str, float]:
    """Train a model with `cyclic train`, and evaluate it."""
    options, run = task.options, task.folder / "run"
    objective, _, scratch = method.partition(", ")
    settings = [*options.set, f"paired_seed={draw}", *(SCRATCH_SETTINGS if scratch else ())]
    words = [word for setting in settings for word in ("--set", setting)]
    words += [
        word for modality, paths in task.encoders.items() for path in paths for word in (f"--{modality}-encoder", path)
    ]
    shutil.rmtree(run, ignore_errors=True)
    cyclic(
        "train", task.dataset, "--objective", objective, "--paired-fraction", share, "--seed", draw,
        "--epochs", options.epochs, "--out", run, *words,
    )  # fmt: skip
    retrieval = cyclic("evaluate", task.dataset, "--split", "test", "--model", run)["retrieval"]
    found = [retrieval[direction][options.hit] for direction in ("image_to_text", "text_to_image")]
    return {figure: 100 * float(np.mean([one[figure] for one in found])) for figure in ("r10", "mrr")}


# --------------------------------------------------------------------------------------------------------- table


def interval(values: np.ndarray, corrected: bool) -> str:
    """A 95 % interval of the ratio exp(values), of scores of overlapping folds.

    Corrected: the variance of the mean is multiplied by 1 / n + 1 / (FOLDS − 1) (Nadeau and Bengio, Machine Learning
    2003) in place of 1 / n.
    """
    share = 1 / len(values) + (1 / (FOLDS - 1) if corrected else 0)
    half = NORMAL * math.sqrt(share * values.var(ddof=1)) if len(values) > 1 else math.inf
    return f"{math.exp(values.mean() - half):.2f}–{math.exp(values.mean() + half):.2f}"


def table(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The results in Markdown: R@10, and its ratio to that of `aligned` in the same folds and draws."""
    by_cell = {(row["method"], row["share"], row["fold_seed"], row["fold"], row["draw"]): row for row in rows}
    lines = ["| method | " + " | ".join(f"{100 * share:g} % of pairs" for share in options.shares) + " |"]
    lines.append("|---" * (len(options.shares) + 1) + "|")
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for share in options.shares:
            keys = [key for key in by_cell if key[:2] == (method, share)]
            if not keys:
                cells.append("")
                continue
            r10 = np.array([by_cell[key]["r10"] for key in keys])
            base = np.array([by_cell[CLOSED, *key[1:]]["r10"] for key in keys])
            logs = np.log(np.maximum(r10, 0.1) / np.maximum(base, 0.1))
            ratio = f", × {math.exp(logs.mean()):.3f} ({interval(logs, False)}; {interval(logs, True)})"
            mrr = f", MRR {np.mean([by_cell[key]['mrr'] for key in keys]):.1f}"
            cells.append(f"{r10.mean():.1f}" + (ratio if method != CLOSED else "") + f"{mrr} [{len(keys)}]")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    said = f"Mean R@10 of both directions in %, {options.hit.replace('_', ' ')}. × is the geometric mean of the ratios"
    said += " to aligned, with the plain and the corrected 95 % interval. [n] folds × draws."
    return "\n".join([*lines, "", said, ""])


def tasks(options: argparse.Namespace) -> Iterator[Task]:
    for seed in options.fold_seeds:
        for fold in range(FOLDS):
            yield Task(options, seed, fold)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="few_pairs.sh IMAGES TABLE… [options]",
    )
    parser.add_argument("images", type=Path, help="folder to which the paths of the table are relative")
    parser.add_argument("tables", type=Path, nargs="+", help="CSV files, the first with images, patients and texts")
    parser.add_argument("--work", type=Path, default=Path("few_pairs"))
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--patient-column", default="patient")
    parser.add_argument("--text-column", action="append", help="may be repeated: the texts are joined in order")
    parser.add_argument("--label-column", action="append", default=[])
    parser.add_argument("--rows", help="COLUMN=VALUE: use these rows alone")
    parser.add_argument("--hit", default="same_text", choices=HITS)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--image-encoder", action="append", default=[])
    parser.add_argument("--text-encoder", action="append", default=[])
    parser.add_argument("--views", type=int, metavar="EPOCHS", help="train an encoder of each fold's own images")
    parser.add_argument("--set", action="append", default=[], help="setting of `cyclic train`")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.2, 1.0])
    parser.add_argument("--fold-seeds", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--draws", type=int, nargs="+", default=list(range(200, 210)))
    parser.add_argument("--trained", type=int, default=1, help="draws of each fold seed with trained methods")
    parser.add_argument("--epochs", type=int, default=50, help="of trained methods")
    parser.add_argument("--jobs", type=int, default=available_cpus())
    options = parser.parse_args()
    options.text_column = options.text_column or ["text"]
    options.images, options.work = options.images.resolve(), options.work.resolve()
    if options.hit == "same_labels" and not options.label_column:
        parser.error("same_labels needs --label-column.")
    return options


def main() -> None:
    options = read_options()
    rows_of(options)  # says what is wrong with the tables before anything is prepared
    claim(options)
    every = list(tasks(options))
    with ProcessPoolExecutor(options.jobs) as pool:
        list(pool.map(measure, every))
    found = table([row for task in every for row in task.done()], options)
    (options.work / "table.md").write_text(found)
    print(found)


if __name__ == "__main__":
    try:
        main()
    except CyclicError as error:
        raise SystemExit(f"{error} {error.hint}") from None
    except OSError as error:
        raise SystemExit(f"{error.filename}: {error.strerror}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # started again, it goes on
