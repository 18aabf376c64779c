"""How much cycles help where few images and reports are known to belong together: many short runs, a table, a plot.

`few_pairs.sh` calls this. Every run is one `cyclic train` and one `cyclic evaluate` on one core, as many at a time as
there are cores; a run that is done is not done again. All methods have the same encoders, steps and seeds; which
patients are paired depends on the patients alone, so the seeds differ in initial weights and batches.
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

from cyclic_cli.config import JOINT_RECIPE, PRESETS, TrainConfig, available_cpus, train_settings
from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training.alignment import filled_in

RETURNING = (
    "walk",
    "neighbour_cycle",
    "latent_cycle",
    "half_latent_cycle",
    "data_cycle",
    "half_data_cycle",
    "code_cycle",
)
QUANTILES = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # Student's t, 97.5 %
SETTINGS = ("model.width=8", "precision=32")  # half the maps of the default; float32 on every machine
AUTOENCODERS = "autoencoders"  # what `contrastive` may start from
WITHOUT_RETURN = "cyclic without returning terms"
CONTROLS = ("cca", "ridge")
CHANCE = "random_r10"  # of a random ranking, under each rule
HITS = ("strict", "same_text", "same_study", "same_patient", "same_labels")


@dataclass(frozen=True)
class Run:
    """One training of the table."""

    method: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method.replace(' ', '-')}-{self.fraction:g}-seed{self.seed}"


def preset_of(method: str) -> str:
    """The preset that a method of the table is made from."""
    return "contrastive" if method == AUTOENCODERS else method.partition(" ")[0]


def mixture(method: str) -> dict[str, Any]:
    """The objectives of a method by its name in the table."""
    without = method.partition(" without ")[2]
    terms = PRESETS[preset_of(method)] if method != AUTOENCODERS else {"reconstruction": 1.0}
    left_out = RETURNING if without == "returning terms" else (without,)
    return {name: weight for name, weight in terms.items() if name not in left_out}


def methods() -> list[str]:
    """The rows of the table that are trained, none twice: where one term alone returns, it is all of the returning."""
    first = ["contrastive", f"contrastive from {AUTOENCODERS}", "cyclip", "cyclic", WITHOUT_RETURN]
    without = [f"cyclic without {name}" for name in PRESETS["cyclic"]]
    return [*first, *(name for name in without if mixture(name) != mixture(first[-1]))]


def trained_as(run: Run, options: argparse.Namespace) -> Run:
    """The run that a run is the same as: where nothing is scarce, leaving out what scarcity weighs changes nothing."""
    kept = mixture(run.method)
    left_out = [value for name, value in PRESETS["cyclic"].items() if name not in kept]
    scarce = all(isinstance(value, dict) and value.get("scarce") for value in left_out)
    same = run.method.startswith("cyclic without") and scarce and run.fraction == 1 and options.is_complete
    return Run("cyclic", run.fraction, run.seed) if same else run


def asked(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """What a run's figures depend on."""
    return {
        "data": [StoredDataset(folder).facts.fingerprint for folder in (options.dataset, options.test)],
        "split": options.split, "epochs": options.epochs, "settings": list(options.set),
        "objectives": mixture(run.method), "version": version("cyclic-cli"),
        "recipe": JOINT_RECIPE | {"paired_share": TrainConfig.paired_share},
    }  # fmt: skip


def train_and_evaluate(run: Run, options: argparse.Namespace) -> None:
    """Do a run, unless it is done; its figures stand in a file of its own."""
    folder, figures = options.work / "runs-of-table" / run.name, options.work / f"{run.name}.json"
    if figures.exists():
        if json.loads(figures.read_text()).get("asked") != asked(run, options):
            raise SystemExit(f"{figures} is of another experiment: name another --work.")
        return
    start = []
    if run.method.endswith(AUTOENCODERS) and run.method != AUTOENCODERS:
        start = ["--init-from", options.work / "runs-of-table" / Run(AUTOENCODERS, 1, run.seed).name]
    settings = [word for assignment in options.set for word in ("--set", assignment)]
    summary = cyclic(
        "train", options.dataset, "--objective", preset_of(run.method),
        "--set", f"objectives={json.dumps(mixture(run.method))}", "--paired-fraction", run.fraction,
        "--seed", run.seed, "--epochs", options.epochs, *settings, *start, "--out", folder, "--resume", "auto",
    )  # fmt: skip
    found = {}
    if run.method != AUTOENCODERS:
        train = ["--train", options.dataset] if options.test != options.dataset else []
        baselines = ["--baselines"] if run.method == "contrastive" and run.seed == 0 else []
        found = cyclic("evaluate", options.test, "--split", options.split, "--model", folder, *train, *baselines)
    draft = figures.with_suffix(".tmp")
    draft.write_text(json.dumps({"asked": asked(run, options), "summary": summary, "evaluation": found}))
    os.replace(draft, figures)
    print(f"{run.name}: {summary['seconds']:.0f} s", file=sys.stderr, flush=True)


def cyclic(*words: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "cyclic_cli", *map(str, words), "--json", "--quiet"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(
            f"`cyclic {words[0]}` ended with {done.returncode}, see above. Started again, the rest goes on."
        )
    return json.loads(done.stdout)


def score(retrieval: dict[str, Any], options: argparse.Namespace, figure: str = "r10") -> float:
    """The mean over both ways of R@10, in per cent, under the rule of what a hit is; or of another figure."""
    ways = (retrieval[way][options.hit] for way in ("image_to_text", "text_to_image"))
    return 100 * float(np.mean([way[figure] for way in ways]))


def read(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    return json.loads((options.work / f"{trained_as(run, options).name}.json").read_text())


def scores(method: str, share: float, options: argparse.Namespace) -> list[float]:
    """Of every seed."""
    found = [read(Run(method, share, seed), options) for seed in range(options.seeds)]
    return [score(one["evaluation"]["retrieval"], options) for one in found]


def control(name: str, share: float, options: argparse.Namespace) -> float:
    """The score of a closed form with as many pairs; NaN where it could not be fitted."""
    found = read(Run("contrastive", share, 0), options)["evaluation"]["baselines"].get(name)
    return score(found, options) if found else math.nan


def ratio(scores: list[float], others: list[float]) -> str:
    """The ratio of scores to those of the same seeds, and its 95 % interval over the seeds (of its logarithm)."""
    logs = np.log(np.array(scores) / np.array(others))
    if len(logs) < 2:
        return f"{math.exp(logs.mean()):.3f}"
    half = QUANTILES[len(logs)] * logs.std(ddof=1) / math.sqrt(len(logs))
    return f"{math.exp(logs.mean()):.3f} ({math.exp(logs.mean() - half):.3f}–{math.exp(logs.mean() + half):.3f})"


def table(options: argparse.Namespace) -> str:
    """The table in Markdown: score ± standard deviation over the seeds, and the ratio to `contrastive`."""
    lines = ["| method | " + " | ".join(f"{100 * share:g} % of pairs" for share in options.fractions) + " | s a run |"]
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
    for name in CONTROLS:
        cells = [f"{control(name, share, options):.1f}".replace("nan", "–") for share in options.fractions]
        lines.append(f"| {name}, closed form | " + " | ".join(cells) + " | |")
    cells = []
    for share in options.fractions:
        first = Run(WITHOUT_RETURN, share, 0)
        with_cycles, without = (scores(method, share, options) for method in ("cyclic", WITHOUT_RETURN))
        same = trained_as(first, options) != first
        cells.append("the same runs" if same else f"× {ratio(with_cycles, without)}")
    lines.append(f"| what the returning terms bring: cyclic / {WITHOUT_RETURN} | " + " | ".join(cells) + " | |")
    return "\n".join(lines) + f"\n\n{caption(options)}\n"


def caption(options: argparse.Namespace) -> str:
    """What the table says, in words."""
    first = Run("contrastive", options.fractions[0], 0)
    found = read(first, options)
    chance = score(found["evaluation"]["retrieval"], options, CHANCE)
    pool = found["evaluation"]["retrieval"]["image_to_text"][options.hit]["pool"]
    trained = yaml.safe_load((options.work / "runs-of-table" / first.name / "config.yaml").read_text())
    return (
        f"Mean of both ways' R@10 in %, {options.hit.replace('_', ' ')}, split {options.split}, pool {pool}, chance "
        f"{chance:.1f}; × is the ratio to contrastive with its 95 % interval over {options.seeds} seeds. Every run has "
        f"{found['summary']['steps']} steps of up to {trained['batch_size']} values of each modality; those without a "
        "partner are left out where no objective looks at them. Where no pair is unknown, nothing is weighed by its "
        "scarcity, and runs with and without such terms are one."
    )


def plot(options: argparse.Namespace) -> None:
    """Scores over the share of pairs, with the standard deviation over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    shares = [100 * share for share in options.fractions]
    for place, method in enumerate(methods()[:5]):  # side by side, so that none hides another
        found = np.array([scores(method, share, options) for share in options.fractions])
        spread = found.std(1, ddof=1) if options.seeds > 1 else None
        beside = np.array(shares) * 1.02 ** (place - 2)
        axes.errorbar(beside, found.mean(1), spread, marker="o", markersize=4, capsize=3, label=method)
    for name, style in zip(CONTROLS, ("--", ":"), strict=True):
        reached = [control(name, share, options) for share in options.fractions]
        axes.plot(shares, reached, style, color="0.4", label=f"{name}, closed form")
    chance = score(
        read(Run("contrastive", options.fractions[0], 0), options)["evaluation"]["retrieval"], options, CHANCE
    )
    axes.axhline(chance, color="0.7", linewidth=1, label="chance")
    axes.set_xscale("log")
    axes.set_xticks(shares, [f"{share:g} %" for share in shares])
    axes.minorticks_off()
    axes.set_xlabel("share of the training patients whose pairs are known")
    axes.set_ylabel("mean R@10 of both ways, %")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(options.work / "few_pairs.png", dpi=150)


def read_options() -> argparse.Namespace:
    """The command line, checked, and what follows from it for all runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--test", type=Path, help="dataset to measure on (default: the same)")
    parser.add_argument("--split", default="test", help="its split; the dataset's own val chose the best epochs")
    parser.add_argument("--hit", default="same_text", choices=HITS, help="what a hit is")
    parser.add_argument("--work", type=Path, default=Path("few_pairs"))
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.5, 1.0])
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 11))
    parser.add_argument("--steps", type=int, default=200, help="of a training, rounded up to whole epochs")
    parser.add_argument("--set", action="append", help=f"a setting of `cyclic train` (default: {', '.join(SETTINGS)})")
    options = parser.parse_args()
    options.test, options.set = options.test or options.dataset, options.set or SETTINGS
    if not all(0 < share <= 1 for share in options.fractions) or options.steps < 1:
        parser.error("--fractions are above 0 and at most 1, --steps from 1.")
    rows = StoredDataset(options.dataset).rows(["has_image", "has_text"], "train")
    if not all(map(np.any, rows.values())):
        parser.error(f"{options.dataset} needs images and reports to train on.")
    if not StoredDataset(options.test).facts.counts.get("splits", {}).get(options.split):
        parser.error(f"{options.test} has nothing of a split {options.split!r}: see --split and --test.")
    if options.hit == "same_labels" and not StoredDataset(options.test).facts.labels:
        parser.error(f"{options.test} has no labels, so nothing tells the same findings: see --hit.")
    options.is_complete = bool(np.all([np.asarray(there, bool) for there in rows.values()]))
    given = [word.removeprefix("batch_size=") for word in options.set if word.startswith("batch_size=")]
    values = max(int(np.sum(there)) for there in rows.values())
    usual = filled_in(train_settings({"objective": "cyclic"}), len(rows["has_image"])).batch_size
    options.epochs = math.ceil(options.steps / math.ceil(values / int([usual, *given][-1])))
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
