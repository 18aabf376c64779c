"""Measures how much cycle consistency helps when few images and reports are paired, as a table and a plot of many runs.

`few_pairs.sh` calls this script. Every run is one `cyclic train` and one `cyclic evaluate` on one core. As many runs as
there are cores run at the same time. Finished runs are not repeated. All methods have the same encoders, steps and
seeds. The choice of paired patients depends on the patients alone, so seeds differ in initial weights and batches.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cyclic_cli.config import JOINT_RECIPE, PRESETS, TrainConfig, train_settings
from cyclic_cli.environment import available_cpus
from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training.alignment import filled_in

CYCLE_TERMS = (
    "walk",
    "neighbour_cycle",
    "latent_cycle",
    "half_latent_cycle",
    "data_cycle",
    "half_data_cycle",
    "code_cycle",
)
QUANTILES = {
    2: 12.71,
    3: 4.30,
    4: 3.18,
    5: 2.78,
    6: 2.57,
    7: 2.45,
    8: 2.36,
    9: 2.31,
    10: 2.26,
}  # Student's t, 97.5 %, by number of seeds
SETTINGS = ("model.width=8", "precision=32")  # half the channels of the default; float32 on every machine
AUTOENCODERS = "autoencoders"  # runs from which `contrastive` may be initialised
WITHOUT_CYCLES = "cyclic without cycle terms"
BASELINES = ("cca", "ridge")
CHANCE = "random_r10"  # key for the R@10 of a random ranking
HITS = ("strict", "same_text", "same_study", "same_patient", "same_labels")


@dataclass(frozen=True)
class Run:
    """One training run of the table."""

    method: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method.replace(' ', '-')}-{self.fraction:g}-seed{self.seed}"


def preset_of(method: str) -> str:
    """The preset on which a method of the table is based."""
    return "contrastive" if method == AUTOENCODERS else method.partition(" ")[0]


def mixture(method: str) -> dict[str, Any]:
    """The objectives of a method, by its name in the table."""
    without = method.partition(" without ")[2]
    terms = PRESETS[preset_of(method)] if method != AUTOENCODERS else {"reconstruction": 1.0}
    left_out = CYCLE_TERMS if without == "cycle terms" else (without,)
    return {name: weight for name, weight in terms.items() if name not in left_out}


def methods() -> list[str]:
    """The trained rows of the table, without duplicates.

    If the preset has a single cycle term, leaving it out equals leaving out all cycle terms.
    """
    first = ["contrastive", f"contrastive from {AUTOENCODERS}", "cyclip", "cyclic", WITHOUT_CYCLES]
    without = [f"cyclic without {name}" for name in PRESETS["cyclic"]]
    return [*first, *(name for name in without if mixture(name) != mixture(first[-1]))]


def trained_as(run: Run, options: argparse.Namespace) -> Run:
    """The run that has the same result as `run`, which is mostly `run` itself.

    With all pairs, terms that are weighted by scarcity have no effect, so runs without them equal `cyclic`.
    """
    kept = mixture(run.method)
    left_out = [value for name, value in PRESETS["cyclic"].items() if name not in kept]
    scarce = all(isinstance(value, dict) and value.get("scarce") for value in left_out)
    same = run.method.startswith("cyclic without") and scarce and run.fraction == 1 and options.is_complete
    return Run("cyclic", run.fraction, run.seed) if same else run


def experiment_of(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Everything on which the results of a run depend."""
    return {
        "data": [StoredDataset(folder).facts.fingerprint for folder in (options.dataset, options.test)],
        "split": options.split, "epochs": options.epochs, "settings": list(options.set),
        "objectives": mixture(run.method), "version": version("cyclic-cli"),
        "recipe": JOINT_RECIPE | {"paired_share": TrainConfig.paired_share},
    }  # fmt: skip


def train_and_evaluate(run: Run, options: argparse.Namespace) -> None:
    """Do a run, unless it is finished. Its results are kept in one JSON file."""
    folder, results = options.work / "runs-of-table" / run.name, options.work / f"{run.name}.json"
    if results.exists():
        if json.loads(results.read_text()).get("asked") != experiment_of(run, options):
            raise SystemExit(f"{results} belongs to another experiment: choose another --work.")
        return
    init = []
    if run.method.endswith(AUTOENCODERS) and run.method != AUTOENCODERS:
        init = ["--init-from", options.work / "runs-of-table" / Run(AUTOENCODERS, 1, run.seed).name]
    settings = [word for assignment in options.set for word in ("--set", assignment)]
    summary = cyclic(
        "train", options.dataset, "--objective", preset_of(run.method),
        "--set", f"objectives={json.dumps(mixture(run.method))}", "--paired-fraction", run.fraction,
        "--seed", run.seed, "--epochs", options.epochs, *settings, *init, "--out", folder, "--resume", "auto",
    )  # fmt: skip
    found = {}
    if run.method != AUTOENCODERS:
        train = ["--train", options.dataset] if options.test != options.dataset else []
        baselines = ["--baselines"] if run.method == "contrastive" and run.seed == 0 else []
        found = cyclic("evaluate", options.test, "--split", options.split, "--model", folder, *train, *baselines)
    draft = results.with_suffix(".tmp")
    draft.write_text(json.dumps({"asked": experiment_of(run, options), "summary": summary, "evaluation": found}))
    os.replace(draft, results)
    print(f"{run.name}: {summary['seconds']:.0f} s", file=sys.stderr, flush=True)


def cyclic(*words: object) -> dict[str, Any]:
    """Run a command of `cyclic`, and return its JSON output."""
    command = [sys.executable, "-m", "cyclic_cli", *map(str, words), "--json", "--quiet"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"`cyclic {words[0]}` ended with {done.returncode}, see above. Start again to resume.")
    return json.loads(done.stdout)


def score(retrieval: dict[str, Any], options: argparse.Namespace, metric: str = "r10") -> float:
    """The mean of R@10, or of another metric, over both directions in per cent, for the chosen definition of a hit."""
    directions = (retrieval[direction][options.hit] for direction in ("image_to_text", "text_to_image"))
    return 100 * float(np.mean([direction[metric] for direction in directions]))


def read(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """The results of a finished run."""
    return json.loads((options.work / f"{trained_as(run, options).name}.json").read_text())


def scores(method: str, share: float, options: argparse.Namespace) -> list[float]:
    """The scores of all seeds."""
    found = [read(Run(method, share, seed), options) for seed in range(options.seeds)]
    return [score(one["evaluation"]["retrieval"], options) for one in found]


def baseline(name: str, share: float, options: argparse.Namespace) -> float:
    """The score of a closed-form baseline with the same pairs; NaN where it could not be fitted."""
    found = read(Run("contrastive", share, 0), options)["evaluation"]["baselines"].get(name)
    return score(found, options) if found else math.nan


def ratio(scores: list[float], others: list[float]) -> str:
    """The ratio of scores, paired over seeds, with its 95 % interval (Student's t on the logarithm)."""
    logs = np.log(np.array(scores) / np.array(others))
    if len(logs) < 2:
        return f"{math.exp(logs.mean()):.3f}"
    half = QUANTILES[len(logs)] * logs.std(ddof=1) / math.sqrt(len(logs))
    return f"{math.exp(logs.mean()):.3f} ({math.exp(logs.mean() - half):.3f}–{math.exp(logs.mean() + half):.3f})"


def table(options: argparse.Namespace) -> str:
    """The table in Markdown: score ± standard deviation over the seeds, and ratio to `contrastive`."""
    lines = [
        "| method | " + " | ".join(f"{100 * share:g} % of pairs" for share in options.fractions) + " | s per run |"
    ]
    lines.append("|---" * (len(options.fractions) + 2) + "|")
    for method in methods():
        cells, seconds = [], []
        for share in options.fractions:
            runs = [Run(method, share, seed) for seed in range(options.seeds)]
            seconds += [read(run, options)["summary"]["seconds"] for run in runs]
            found, reference = scores(method, share, options), scores("contrastive", share, options)
            spread = f" ± {np.std(found, ddof=1):.1f}" if len(found) > 1 else ""
            compared = f", × {ratio(found, reference)}" if method != "contrastive" else ""
            same = trained_as(runs[0], options) != runs[0]
            cells.append("as cyclic" if same else f"{np.mean(found):.1f}{spread}{compared}")
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {np.mean(seconds):.0f} |")
    for name in BASELINES:
        cells = [f"{baseline(name, share, options):.1f}".replace("nan", "–") for share in options.fractions]
        lines.append(f"| {name}, closed form | " + " | ".join(cells) + " | |")
    cells = []
    for share in options.fractions:
        first = Run(WITHOUT_CYCLES, share, 0)
        with_cycles, without = (scores(method, share, options) for method in ("cyclic", WITHOUT_CYCLES))
        same = trained_as(first, options) != first
        cells.append("the same runs" if same else f"× {ratio(with_cycles, without)}")
    lines.append(f"| effect of the cycle terms: cyclic / {WITHOUT_CYCLES} | " + " | ".join(cells) + " | |")
    return "\n".join(lines) + f"\n\n{caption(options)}\n"


def caption(options: argparse.Namespace) -> str:
    """The caption of the table."""
    first = Run("contrastive", options.fractions[0], 0)
    found = read(first, options)
    chance = score(found["evaluation"]["retrieval"], options, CHANCE)
    pool = found["evaluation"]["retrieval"]["image_to_text"][options.hit]["pool"]
    trained = yaml.safe_load((options.work / "runs-of-table" / first.name / "config.yaml").read_text())
    return (
        f"Mean R@10 of both directions in %, {options.hit.replace('_', ' ')}, split {options.split}, pool {pool}, "
        f"chance {chance:.1f}. × is the ratio to contrastive with its 95 % interval over {options.seeds} seeds. Every "
        f"run has {found['summary']['steps']} steps of up to {trained['batch_size']} images and as many texts. "
        "Unpaired samples are left out where no objective uses them. With all pairs, terms that are weighted by "
        "scarcity have no effect, so runs with and without them are the same."
    )


def plot(options: argparse.Namespace) -> None:
    """Plot the scores over the fraction of pairs, with the standard deviation over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    shares = [100 * share for share in options.fractions]
    for place, method in enumerate(methods()[:5]):  # shifted, so that points do not overlap
        found = np.array([scores(method, share, options) for share in options.fractions])
        spread = found.std(1, ddof=1) if options.seeds > 1 else None
        shifted = np.array(shares) * 1.02 ** (place - 2)
        axes.errorbar(shifted, found.mean(1), spread, marker="o", markersize=4, capsize=3, label=method)
    for name, style in zip(BASELINES, ("--", ":"), strict=True):
        reached = [baseline(name, share, options) for share in options.fractions]
        axes.plot(shares, reached, style, color="0.4", label=f"{name}, closed form")
    chance = score(
        read(Run("contrastive", options.fractions[0], 0), options)["evaluation"]["retrieval"], options, CHANCE
    )
    axes.axhline(chance, color="0.7", linewidth=1, label="chance")
    axes.set_xscale("log")
    axes.set_xticks(shares, [f"{share:g} %" for share in shares])
    axes.minorticks_off()
    axes.set_xlabel("fraction of training patients with known pairs")
    axes.set_ylabel("mean R@10 of both directions, %")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(options.work / "few_pairs.png", dpi=150)


def read_options() -> argparse.Namespace:
    """Parse and check the command line, and derive the settings of all runs from it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--test", type=Path, help="dataset to evaluate on (default: DATASET)")
    parser.add_argument("--split", default="test", help="split to evaluate on; val of DATASET selects the best epochs")
    parser.add_argument("--hit", default="same_text", choices=HITS, help="definition of a hit")
    parser.add_argument("--work", type=Path, default=Path("few_pairs"))
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.5, 1.0])
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 11))
    parser.add_argument("--steps", type=int, default=200, help="steps of each run, rounded up to whole epochs")
    parser.add_argument("--set", action="append", help=f"setting of `cyclic train` (default: {', '.join(SETTINGS)})")
    options = parser.parse_args()
    options.test, options.set = options.test or options.dataset, options.set or SETTINGS
    if not all(0 < share <= 1 for share in options.fractions) or options.steps < 1:
        parser.error("--fractions must be above 0 and at most 1, and --steps at least 1.")
    rows = StoredDataset(options.dataset).rows(["has_image", "has_text"], "train")
    if not all(map(np.any, rows.values())):
        parser.error(f"{options.dataset} needs images and reports in its training split.")
    if not StoredDataset(options.test).facts.counts.get("splits", {}).get(options.split):
        parser.error(f"{options.test} has no samples in the split {options.split!r}: see --split and --test.")
    if options.hit == "same_labels" and not StoredDataset(options.test).facts.labels:
        parser.error(f"{options.test} has no labels, which same_labels needs: see --hit.")
    options.is_complete = bool(np.all([np.asarray(present, bool) for present in rows.values()]))
    given = [word.removeprefix("batch_size=") for word in options.set if word.startswith("batch_size=")]
    samples = max(int(np.sum(present)) for present in rows.values())
    usual = filled_in(train_settings({"objective": "cyclic"}), len(rows["has_image"])).batch_size
    options.epochs = math.ceil(options.steps / math.ceil(samples / int([usual, *given][-1])))
    return options


def main() -> None:
    options = read_options()
    options.work.mkdir(parents=True, exist_ok=True)
    seeds = range(options.seeds)
    first = [Run(AUTOENCODERS, 1, seed) for seed in seeds]
    every = [Run(method, share, seed) for seed in seeds for share in options.fractions for method in methods()]
    rest = list(dict.fromkeys(trained_as(run, options) for run in every))
    with ThreadPoolExecutor(available_cpus()) as pool:
        for runs in (first, rest):
            list(pool.map(train_and_evaluate, runs, [options] * len(runs)))
    found = table(options)
    (options.work / "few_pairs.md").write_text(found)
    plot(options)
    print(found)


if __name__ == "__main__":
    try:
        main()
    except CyclicError as error:
        raise SystemExit(f"{error} {error.hint}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # started again, it goes on
