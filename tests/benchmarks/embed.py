"""Measures the speed of `cyclic embed` relative to the bare forward pass, and to decoding followed by a forward pass.

    python tests/benchmarks/embed.py --work DIR [--model MODEL]...             synthetic images; some minutes per model
    python tests/benchmarks/embed.py --work DIR --memory                       1,000 and 100,000 inputs: memory

Without `--model`, the models are the packaged one, with torch and with ONNX Runtime, and untrained `deep` and `vae` for
224 pixels. The files are `--images` synthetic radiographs as DICOM, and as many random images of 1,500 pixels as JPEG.

Four measurements take turns, `--rounds` times: the encoder alone in a loop over tensors in memory, with the batch size
of embed; `embed` of the prepared dataset into a Parquet file; reading of the files alone, with as many processes; and
`embed` of the files. Start-up and loading of the model are not counted. Each result is the median over the rounds of a
ratio. The dataset is compared with the loop. The files are compared with 1 / (1 / reading + 1 / loop), or with reading
alone for `--device cuda`.

Memory: `embed` reads a list of 1,000 and of 100,000 names of the same files from stdin, each in a separate process. The
result is the peak of that process, without its reader processes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cyclic_cli import registry
from cyclic_cli.config import PrepareConfig, Preprocessing
from cyclic_cli.environment import available_cpus
from cyclic_cli.imaging.readers import as_float
from cyclic_cli.inference.embed import embed_to_file
from cyclic_cli.inference.embed_inputs import CHUNK_SIZE, from_dataset, from_files
from cyclic_cli.inference.embed_summary import EmbedSummary
from cyclic_cli.inference.load import PACKAGED_EXPORT, PACKAGED_MODEL, load_model
from cyclic_cli.phantom import dataset as phantom
from cyclic_cli.prepare.task import Work, prepare
from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.storage.checkpoint import Checkpoint, write_checkpoint
from cyclic_cli.storage.dataset import StoredDataset

SIDE = 1500


def files_of(work: Path, images: int) -> tuple[Path, Path]:
    """Write folders of DICOM and JPEG files, unless they exist, and return both."""
    dicom, jpeg = work / f"dicom-{images}", work / f"jpeg-{images}"
    if not dicom.exists():
        phantom.write_demo(dicom, images, workers=available_cpus())
    if not jpeg.exists():
        draft = work / "jpeg.tmp"
        draft.mkdir()
        generator = np.random.default_rng(0)
        for number in range(images):
            coarse = Image.fromarray(generator.integers(0, 256, (40, 40), np.uint8))
            coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(draft / f"{number:05d}.jpg", quality=92)
        draft.rename(jpeg)
    return dicom, jpeg


def fresh(work: Path, name: str) -> Path:
    """A checkpoint of an architecture with random weights."""
    path = work / f"{name}.safetensors"
    if not path.exists():
        file = registry.load("models", name, "architecture")
        model = file.Model(file.Config(), (1, 224, 224))
        weights = {key: value.numpy() for key, value in model.state_dict().items()}
        architecture = {"name": name, "config": {}, "image_shape": [1, 224, 224]}
        write_checkpoint(path, Checkpoint(
            weights=weights, architecture=architecture, preprocessing=Preprocessing(), provenance={},
        ))  # fmt: skip
    return path


class Nothing:
    """A model that takes no time, to measure reading alone."""

    modalities, fingerprint, architecture, batch = ("image",), "nothing", "nothing", CHUNK_SIZE

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def embed_images(self, fitted: np.ndarray) -> np.ndarray:
        return np.ones((len(fitted), 1), np.float32)


def rate(images: int, work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return images / (time.perf_counter() - begin)


def embedded(offered: Any, model: Any, work: Path) -> int:
    """Embed the inputs into a file, and return the number of images."""
    summary = EmbedSummary()
    embed_to_file(offered, model, work / "e.parquet", summary, overwrite=True)
    return summary.images


def measure(path: Path, device: str, dataset: Path, folders: dict[str, Path], rounds: int, work: Path) -> None:
    model: Any = load_model(path, device)
    stored = StoredDataset(dataset)
    table = stored.index(["shard", "row"])
    fitted = stored.images(table["shard"].to_numpy(), table["row"].to_numpy())
    pieces = np.split(fitted, range(CHUNK_SIZE, len(fitted), CHUNK_SIZE))
    if path.suffix == ".onnx":
        run = model.embed_images
        values: list[Any] = pieces
    else:
        values = [torch.from_numpy(as_float(piece)) for piece in pieces]

        def run(value: torch.Tensor) -> object:
            return model.embed("image", value)

    ratios: dict[str, list[float]] = {kind: [] for kind in ("dataset", *folders)}
    rates: dict[str, list[float]] = {kind: [] for kind in ("loop", *ratios)}
    for _ in range(rounds):
        loop = rate(len(fitted), lambda: [run(value) for value in values])
        found = rate(len(fitted), lambda: embedded(from_dataset(dataset, model, False, print), model, work))
        rates["loop"].append(loop)
        rates["dataset"].append(found)
        ratios["dataset"].append(found / loop)
        for kind, folder in folders.items():
            count = sum(file.suffix in (".dcm", ".jpg") for file in folder.rglob("*"))

            def offered(with_model: Any, number: str, folder: Path = folder) -> Any:
                scratch = work / f"scratch-{number}-{time.monotonic_ns()}"
                files = sorted(file for file in folder.rglob("*") if file.suffix in (".dcm", ".jpg"))
                return from_files(files, work / "e.parquet", with_model, Keyer(b""), scratch, workers=available_cpus())

            nothing = Nothing(model.preprocessing)
            reading = rate(count, lambda: embedded(offered(nothing, "a"), nothing, work))  # noqa: B023
            both = rate(count, lambda: embedded(offered(model, "b"), model, work))
            rates[kind].append(both)
            ratios[kind].append(both * (1 / reading + (1 / loop if device == "cpu" else 0)))
    print(f"{path.name}: loop {statistics.median(rates['loop']):.0f} images/s")
    for kind, those in ratios.items():
        low, middle, high = np.percentile(those, [0, 50, 100])
        print(f"  {kind}: {statistics.median(rates[kind]):.0f} images/s, {middle:.2f} ({low:.2f}–{high:.2f})")


def memory(work: Path, files: list[Path]) -> None:
    command = [sys.executable, "-c", (
        "import resource, sys; from cyclic_cli.__main__ import main\n"
        "sys.argv = ['cyclic', 'embed', '-', '--out', 'm.parquet', '--overwrite', '-q']\n"
        "try: main()\n"
        "except SystemExit: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, 'MB')"
    )]  # fmt: skip
    for count in (1_000, 100_000):
        listed = b"".join(os.fsencode(files[number % len(files)].absolute()) + b"\n" for number in range(count))
        begin = time.perf_counter()
        done = subprocess.run(command, input=listed, stdout=subprocess.PIPE, cwd=work, check=True)
        print(f"{count} inputs: {done.stdout.decode().split(chr(10))[-2]}, {time.perf_counter() - begin:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    dicom, jpeg = files_of(options.work, options.images)
    if options.memory:
        memory(options.work, sorted(dicom.rglob("*.dcm"))[:64])
        return
    dataset = options.work / f"dataset-{options.images}"
    if not dataset.exists():
        config = PrepareConfig(already_deidentified=True)
        prepare([dicom], dataset, config, work=Work(workers=available_cpus()))
    fresh_ones = [] if options.model else [fresh(options.work, name) for name in ("deep", "vae")]
    models = options.model or [PACKAGED_MODEL, PACKAGED_EXPORT, *fresh_ones]
    if options.device == "cuda":
        models = [path for path in models if path.suffix != ".onnx"]
    for path in models:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            measure(path, options.device, dataset, {"DICOM": dicom, "JPEG": jpeg}, options.rounds, Path(folder))


if __name__ == "__main__":
    main()
