"""Compares the error of the autoencoders with the optimal linear code of the same size, and with MONAI.

The error is the pixel MSE on [0, 1] on test patients, over several seeds.

    python tests/benchmarks/autoencoders.py IMAGES --work DIR [--table TABLE] [--monai PYTHON] [--pairs]

IMAGES is a folder of de-identified images, and TABLE a CSV that names their patients. They are prepared once. Every row
of the table is a run of `cyclic train`. Results in DIR are reused, so a stopped benchmark resumes; to measure changed
code, choose a new DIR. The script writes `results-SIZE.json`, `contact-SIZE.png` (six test patients with their
reconstructions by every row) and, with the row `vae-100`, `prior-SIZE.png` (16 images sampled from the prior). The
table is printed as Markdown.

The error of a model is that of its clamped reconstructions over whole images. It is measured once on the test split,
after all choices. A further column has the error over the image area without letterbox. The limits are fitted to the
same training images: principal components for a code that is a vector, and the best linear code of square blocks for a
code of feature maps. They are not clamped; the next column has their error with clamping.

Rows whose code MONAI supports too get equal time, `--minutes` each, on equal threads. `cyclic train` counts epochs; a
trial epoch determines how many fit. The time includes its initialisation from the data, validation and checkpoints.
MONAI's time includes training steps only. MONAI is trained with two losses, each for the full time, and the better by
validation is measured (see `monai_autoencoder.py`). `--pairs` runs two such rows at the same time, on one core each, so
that a temporary slowdown of the machine affects both. An interrupted timed run starts again from the beginning. Rows
are named after their codes at 224 pixels. `--monai` is a Python with MONAI and torch; without it, its rows are left
out.
"""

import argparse
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from autoencoder_rows import ROWS, Row
from linear_codes import block_code, clamped_too, error, principal_components, projection
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from cyclic_cli import registry
from cyclic_cli.config import build
from cyclic_cli.data.samples import Samples
from cyclic_cli.storage.checkpoint import read_checkpoint
from cyclic_cli.storage.dataset import StoredDataset, is_dataset
from cyclic_cli.storage.files import write_array, write_text
from cyclic_cli.storage.run import RunFolder

COMMAND = (sys.executable, "-m", "cyclic_cli")
MONAI = Path(__file__).with_name("monai_autoencoder.py")
LOSSES = ("L1", "MSE")
BATCH = 16
PATIENTS = 6  # patients on the contact sheet
USED = 0.01  # a dimension of a variational code counts as used above this mean KL divergence, in nats


class Images:
    """The prepared images."""

    def __init__(self, folder: Path) -> None:
        self.stored = StoredDataset(folder)
        self.size = self.stored.facts.preprocessing.size

    def samples(self, split: str, fraction: float = 1.0) -> Samples:
        return Samples.of(self.stored, split, fraction)

    def floats(self, split: str, fraction: float = 1.0) -> Tensor:
        """(N, 1, H, W) float32 in [0, 1]."""
        samples = self.samples(split, fraction)
        return samples.images(np.arange(len(samples)))

    @cached_property
    def test(self) -> Tensor:
        return self.floats("test")

    def errors(self, reconstruction: Tensor) -> dict[str, float]:
        """Mean squared errors of the test images, over the whole image and over the area without letterbox."""
        squares, samples = (reconstruction - self.test).square(), self.samples("test")
        areas = [squares[number, :, *samples.area(number)].mean().item() for number in range(len(samples))]
        return {"mse": squares.mean().item(), "area_mse": statistics.fmean(areas)}

    @cached_property
    def shown(self) -> list[int]:
        """The first test image of each of the first patients."""
        _, first = np.unique(self.samples("test").records["patient"], return_index=True)
        return first[:PATIENTS].tolist()


# ---------------------------------------------------------------------------------------------------- limits


def limits(images: Images, fraction: float, rows: list[Row]) -> dict[str, dict[str, float]]:
    """Training and test errors of the best linear codes of the rows and of the mean image, by name."""
    train, test = images.floats("train", fraction), images.test
    mean = train.mean(0)
    codes: dict[str, Callable[[Tensor], Tensor]] = {"mean image": lambda batch: mean.expand_as(batch)}
    most = max((row.numbers for row in rows if row.block is None), default=0)
    components = principal_components(train, mean, most)
    for row in rows:
        if row.block is None:
            codes[row.limit] = projection(mean, components[: row.numbers])
        else:
            codes[row.limit] = block_code(train, row.block, row.numbers)
    return {name: {"train": error(code, train), **clamped_too(code, test)} for name, code in codes.items()}


# -------------------------------------------------------------------------------------------------- training


class Bench:
    """Trains and measures the rows. All results are kept in a folder."""

    def __init__(self, work: Path, images: Images, minutes: float, monai: Path | None) -> None:
        self.images, self.seconds, self.monai = images, 60 * minutes, monai
        self.runs = work / f"runs-{images.size}"
        self.arrays = work / f"arrays-{images.size}"

    def measure(self, name: str, seeds: list[int], core: int | None = None) -> dict:
        """The results of a row, one value per seed. `core` is the only core to use, if given."""
        row = ROWS[name]
        found = [(self._monai if row.is_monai else self._cyclic)(name, row, seed, core) for seed in seeds]
        return {key: [result[key] for result in found] for key in found[0]}

    def folder(self, name: str, part: str | int, core: int | None) -> Path:
        """The folder of a row's run with one seed, or of its trial."""
        time = "" if ROWS[name].epochs else f"-{self.seconds:g}s" + ("" if core is None else "-1core")
        return self.runs / f"{name}{time}-{part}"

    def _cyclic(self, name: str, row: Row, seed: int, core: int | None) -> dict:
        folder = self.folder(name, f"seed{seed}", core)
        epochs = row.epochs or self._epochs(name, row, core)
        summary = self._train(row, folder, epochs, seed, core)
        facts = {"run": folder.name, "seconds": summary["seconds"], "epochs": epochs}
        return facts | self._once(folder, lambda: self._tested(folder))

    def _epochs(self, name: str, row: Row, core: int | None) -> int:
        """The number of epochs that fit into the time."""
        trial = self._train(row, self.folder(name, "trial", core), 1, 0, core)
        images = trial["train_samples"] + len(self.images.samples("val")) / 2  # validation has no backward pass
        left = self.seconds - trial["seconds"]
        if left < 0:
            raise SystemExit(f"An epoch of {name} takes {trial['seconds']:.0f} seconds here: increase --minutes.")
        return 1 + int(left * trial["images_per_second"] / images)

    def _train(self, row: Row, folder: Path, epochs: int, seed: int, core: int | None) -> dict:
        """The summary of a finished `cyclic train`."""
        if row.epochs is None and not RunFolder(folder).summary.exists():
            shutil.rmtree(folder, ignore_errors=True)  # the total time of a resumed run would be unknown
        words = [*row.words.split(), "--fraction", f"{row.fraction:g}", "--epochs", str(epochs), "--seed", str(seed)]
        words += ["--out", str(folder), "--resume", "auto", "--json", "--quiet"]
        return json.loads(ran([*COMMAND, "train", str(self.images.stored.folder), *words], core))

    def _tested(self, folder: Path) -> dict:
        model = load(RunFolder(folder).best)
        output = torch.cat([model(batch)["reconstruction"].clamp(0, 1) for batch in self.images.test.split(BATCH)])
        np.save(folder / "shown.npy", output[self.images.shown].numpy())
        return self.images.errors(output)

    def _monai(self, name: str, row: Row, seed: int, core: int | None) -> dict:
        folder = self.folder(name, f"seed{seed}", core)
        losses = {loss: self._monai_loss(name, row, loss, seed, core) for loss in LOSSES}
        best = min(LOSSES, key=lambda loss: losses[loss]["val"])

        def tested() -> dict:
            output = torch.from_numpy(np.load(folder / best / "test.npy"))
            np.save(folder / "shown.npy", output[self.images.shown].numpy())
            return self.images.errors(output)

        return losses[best] | {"run": folder.name, "loss": best} | self._once(folder, tested)

    def _monai_loss(self, name: str, row: Row, loss: str, seed: int, core: int | None) -> dict:
        """The result of the MONAI script with one loss. Trials of the first seed choose the settings for all seeds."""
        folder = self.folder(name, f"seed{seed}", core) / loss
        folder.mkdir(parents=True, exist_ok=True)
        choices = self.folder(name, f"trial-{loss}.json", core)
        chosen = json.loads(choices.read_text()) if choices.exists() else None
        channels, side = row.shape(self.images.size)
        request = {"folder": str(folder.resolve()), "channels": channels, "side": side, "seconds": self.seconds}
        request |= {"seed": seed, "loss": loss, "chosen": chosen}

        def trained() -> dict:
            return json.loads(
                ran([str(self.monai), str(MONAI.resolve())], core, json.dumps(request), self._handed_over())
            )

        result = self._once(folder, trained)
        keep(choices, {key: result[key] for key in ("layout", "width", "batch_size", "rate")})
        return result

    def _handed_over(self) -> Path:
        """The folder with the splits as arrays for MONAI."""
        for split in ("train", "val", "test"):
            path = self.arrays / f"{split}.npy"
            if not path.exists():
                samples = self.images.samples(split)
                shards, rows = samples.records["shard"], samples.records["row"]
                write_array(path, self.images.stored.images(shards, rows))
        return self.arrays

    def _once(self, folder: Path, make: Callable[[], dict]) -> dict:
        """The result of `make`, which is stored in the folder and computed only once."""
        path = folder / "measured.json"
        if not path.exists():
            with torch.inference_mode():
                keep(path, make())
        return json.loads(path.read_text())


def ran(command: list[str], core: int | None, stdin: str = "", folder: Path | None = None) -> str:
    """The standard output of a command, which is pinned to one core if `core` is given."""
    print(" ".join(command), file=sys.stderr, flush=True)
    environment = dict(os.environ)
    if core is not None:
        command, environment = ["taskset", "-c", str(core), *command], environment | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=folder) as process:
        running.add(process)
        out, _ = process.communicate(stdin)
        running.discard(process)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}.")
    return out


running: set[subprocess.Popen] = set()


def stop(*_: object) -> NoReturn:
    """End the running commands, so that `cyclic train` saves its state, and then the benchmark."""
    terminate()
    raise SystemExit(143)


def terminate() -> None:
    for process in tuple(running):
        process.terminate()


def keep(path: Path, values: dict) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def load(path: Path) -> nn.Module:
    """The model of a checkpoint."""
    checkpoint = read_checkpoint(path)
    architecture = registry.load("models", checkpoint.architecture["name"], "architecture")
    config = build(architecture.Config, checkpoint.architecture["config"], str(path))
    model = architecture.Model(config, tuple(checkpoint.architecture["image_shape"]))
    model.load_state_dict({name: torch.from_numpy(value) for name, value in checkpoint.weights.items()})
    return model.eval()


# ---------------------------------------------------------------------------------------------------- output


@torch.inference_mode()
def variational(folder: Path, images: Images, picture: Path) -> dict[str, float | bool]:
    """The number of used dimensions of a variational code, and whether all losses were finite.

    It also draws images sampled from the prior.
    """
    model = load(RunFolder(folder).best)
    divergences = []
    for batch in images.test.split(BATCH):
        outputs = model(batch)
        mean, log_variance = outputs["mean"], outputs["log_variance"]
        divergences.append(0.5 * (mean.square() + log_variance.exp() - log_variance - 1))
    divergence = torch.cat(divergences).mean(0)  # nats per dimension
    rows = [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]
    losses = [loss for row in rows for loss in {**row.get("losses", {}), **row.get("train", {})}.values()]
    drawn = model.decode(torch.randn(16, len(divergence), generator=torch.Generator().manual_seed(0)))
    sheet(picture, [("", line) for line in drawn.clamp(0, 1).numpy().reshape(4, 4, images.size, images.size)])
    return {
        "numbers": len(divergence), "used": int((divergence > USED).sum()), "nats": divergence.sum().item(),
        "finite": all(map(math.isfinite, losses)),
    }  # fmt: skip


def sheet(path: Path, lines: list[tuple[str, np.ndarray]]) -> None:
    """Write an image of lines of images (N, H, W) in [0, 1], with a title at the left of each line."""
    font, gap = ImageFont.load_default(14), 4
    left = max(int(font.getlength(title)) for title, _ in lines) + 2 * gap
    count, height, width = lines[0][1].shape
    canvas = Image.new("L", (left + count * (width + gap), len(lines) * (height + gap)), 255)
    draw = ImageDraw.Draw(canvas)
    for number, (title, pictures) in enumerate(lines):
        top = number * (height + gap)
        draw.text((gap, top + height // 2), title, 0, font, anchor="lm")
        for column, picture in enumerate(pictures):
            canvas.paste(Image.fromarray(np.rint(picture * 255).astype(np.uint8)), (left + column * (width + gap), top))
    canvas.save(path)


def contact_sheet(path: Path, results: dict[str, dict], bench: Bench) -> None:
    """Write the reconstructions of the same patients by the first seed of each row."""
    lines = [("original", bench.images.test[bench.images.shown].numpy())]
    lines += [(name, np.load(bench.runs / result["run"][0] / "shown.npy")) for name, result in results.items()]
    sheet(path, [(title, pictures[:, 0]) for title, pictures in lines])


def table(results: dict[str, dict], found: dict[float, dict[str, dict[str, float]]], size: int) -> list[str]:
    """The lines of two Markdown tables: the rows, and the limits."""
    heads = (
        "row",
        "code",
        "goal",
        "limit",
        "its MSE",
        "clamped",
        "MSE",
        "× limit",
        "× clamped",
        "image area",
        "seconds",
    )
    lines = [heads, ["---"] * len(heads)]
    for name, result in results.items():
        row = ROWS[name]
        limit, mse = found[row.fraction][row.limit], statistics.fmean(result["mse"])
        maps, side = row.shape(size)
        lines.append([
            name, str(maps) if side == 1 else f"{maps}×{side}×{side}", row.goal, f"{row.limit} of {row.fraction:.0%}",
            f"{limit['test']:.6f}", f"{limit['clamped']:.6f}", spread(result["mse"], ".6f"),
            f"{mse / limit['test']:.3f}", f"{mse / limit['clamped']:.3f}", spread(result["area_mse"], ".6f"),
            spread(result["seconds"], ".0f"),
        ])  # fmt: skip
    lines += [[], ("limit", "of train", "train MSE", "test MSE", "test MSE, clamped"), ["---"] * 5]
    for fraction, codes in sorted(found.items()):
        for name, errors in codes.items():
            lines.append([name, f"{fraction:.0%}", *(f"{errors[key]:.6f}" for key in ("train", "test", "clamped"))])
    return ["| " + " | ".join(line) + " |" if line else "" for line in lines]


def spread(values: list[float], form: str) -> str:
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{statistics.fmean(values):{form}} ± {statistics.stdev(values):{form}}"


# ------------------------------------------------------------------------------------------------------ main


def prepared(source: Path, labels: Path | None, work: Path, size: int) -> Images:
    folder = work / f"dataset-{size}"
    if not is_dataset(folder):
        words = [str(source), "--already-deidentified", "--size", str(size), "--out", str(folder)]
        words += ["--reports", str(labels)] if labels else []
        ran([*COMMAND, "prepare", *words, "--quiet"], None)
    return Images(folder)


def measured(bench: Bench, names: list[str], seeds: list[int], pairs: bool) -> dict[str, dict]:
    """The results of the rows by name. With `pairs`, neighbouring rows with equal time run at the same time."""
    timed = [name for name in names if ROWS[name].epochs is None and pairs]
    results = {name: bench.measure(name, seeds) for name in names if name not in timed}
    if timed:
        first, second = sorted(os.sched_getaffinity(0))[:2]
        with ThreadPoolExecutor(2) as pool:
            sides = [
                pool.submit(lambda rows, core: {name: bench.measure(name, seeds, core) for name in rows}, rows, core)
                for core, rows in ((first, timed[::2]), (second, timed[1::2]))
            ]
            if any(side.exception() for side in wait(sides, return_when=FIRST_EXCEPTION).done):
                terminate()
            for side in sides:
                results |= side.result()
    return {name: results[name] for name in names}


def possible(options: argparse.Namespace) -> list[str]:
    """The names of the requested rows that can be trained."""
    names = [*ROWS] if options.rows is None else options.rows.split(",")
    left_out = [name for name in names if not ROWS[name].is_possible(options.size)]
    left_out += [name for name in names if ROWS[name].is_monai and not options.monai]
    if left_out:
        print(
            f"Left out because of the size or the missing --monai: {', '.join(sorted(set(left_out)))}", file=sys.stderr
        )
    return [name for name in names if name not in left_out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", help=",".join(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--monai", type=Path)
    parser.add_argument("--pairs", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    names = possible(options)
    options.work.mkdir(parents=True, exist_ok=True)
    images = prepared(options.images, options.table, options.work, options.size)
    bench = Bench(options.work, images, options.minutes, options.monai and options.monai.absolute())
    results = measured(bench, names, options.seeds, options.pairs)
    fractions = {ROWS[name].fraction for name in names}
    found = {
        fraction: limits(images, fraction, [ROWS[name] for name in names if ROWS[name].fraction == fraction])
        for fraction in sorted(fractions)
    }
    contact_sheet(options.work / f"contact-{options.size}.png", results, bench)
    lines = table(results, found, options.size)
    if "vae-100" in names:
        folder = bench.runs / results["vae-100"]["run"][0]
        code = results["vae-100"]["code"] = variational(folder, images, options.work / f"prior-{options.size}.png")
        finite = "every loss was finite" if code["finite"] else "A LOSS WAS NOT FINITE"
        lines += ["", f"vae-100: {code['used']} of {code['numbers']} dimensions have more than {USED} nats; {finite}."]
    settings = {"size": options.size, "seeds": options.seeds, "minutes": options.minutes, "pairs": options.pairs}
    machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "torch": torch.__version__}
    keep(
        options.work / f"results-{options.size}.json", settings | {"machine": machine, "rows": results, "limits": found}
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
