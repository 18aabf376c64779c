"""Measures error, size and speed of exported model parts, with torch, with ONNX Runtime and in int8.

    python tests/benchmarks/export.py RUN... [--dataset DIR] [--rounds 5] [--skip-int8]      some minutes per model

`RUN` is a run folder or a checkpoint. Every part is exported as by `cyclic export`, and checked on the dataset or,
without one, on synthetic radiographs. An int8 part that fails its check is measured too, and marked. The speed is that
of the part alone on real inputs in batches of 16. Torch and the two files take turns. The result is the median of
`--rounds`, in samples/s.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cyclic_cli.errors import CyclicError
from cyclic_cli.export.examples import examples_of
from cyclic_cli.export.parts import part_names, part_of
from cyclic_cli.export.task import export
from cyclic_cli.inference.load import load_checkpoint
from cyclic_cli.inference.onnx_model import session
from cyclic_cli.inference.torch_model import TorchModel

BATCH = 16


def exported(model: TorchModel, folder: Path, part: str, dataset: Path | None, precision: str) -> tuple[Path, str]:
    """Export a part. Returns its file, and the result of its check as text."""
    file = folder / f"{part}-{precision}.onnx"
    try:
        figures = export(model, file, part, dataset, precision=precision).parts[part]
    except CyclicError as error:
        return file.with_name(f"{file.stem}.failed.onnx"), f"fails: {error.message.partition('its check: ')[2]}"
    if precision == "float32":
        return file, f"{figures['max_abs_error']:.1e}"
    results = [
        f"{figures['psnr_change']:+.2f} dB" if "psnr_change" in figures else "",
        f"overlap {figures['top10_overlap']:.3f}" if "top10_overlap" in figures else "",
        f"{figures['in_float32']} of {figures['operations']} operations in float32",
    ]
    return file, ", ".join(filter(None, results))


def speeds(methods: dict[str, Callable[[], object]], count: int, rounds: int) -> dict[str, float]:
    """Samples/s of each method. Methods take turns, and the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            begin = time.perf_counter()
            method()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return {name: count / statistics.median(found) for name, found in seconds.items()}


def rows(run: Path, dataset: Path | None, rounds: int, precisions: list[str]) -> list[list[str]]:
    model = load_checkpoint(run, "cpu")
    examples, calibration = examples_of(model, dataset, lambda _: None)
    found = []
    for name in part_names(model):
        part = part_of(name, model, examples, calibration)
        batches = list(zip(*(torch.split(one, BATCH) for one in part.examples), strict=True))[:8]
        given = [{key: one.numpy() for key, one in zip(part.inputs, batch, strict=True)} for batch in batches]

        def by_torch(module: torch.nn.Module = part.module, batches: list[tuple[torch.Tensor, ...]] = batches) -> None:
            with torch.inference_mode():
                for batch in batches:
                    module(*batch)

        def by_runtime(file: Path, given: list[dict[str, np.ndarray]] = given) -> Callable[[], object]:
            running = session(file)
            return lambda: [running.run(None, one) for one in given]

        with tempfile.TemporaryDirectory() as folder:
            files = {one: exported(model, Path(folder), name, dataset, one) for one in precisions}
            methods = {"torch": by_torch, **{one: by_runtime(file) for one, (file, _) in files.items()}}
            rate = speeds(methods, sum(len(batch[0]) for batch in batches), rounds)
            sizes = {one: f"{file.stat().st_size / 1e6:.2f}" for one, (file, _) in files.items()}
        found.append([
            model.architecture, name, files["float32"][1], *(sizes[one] for one in precisions), f"{rate['torch']:.0f}",
            *(f"{rate[one]:.0f} (× {rate[one] / rate['torch']:.2f})" for one in precisions),
            *(files[one][1] for one in precisions[1:]),
        ])  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-int8", action="store_true")
    options = parser.parse_args()
    precisions = ["float32"] if options.skip_int8 else ["float32", "int8"]
    table = Table(
        "architecture", "part", "largest error", *(f"MB {one}" for one in precisions), "torch /s",
        *(f"ONNX Runtime {one} /s" for one in precisions), *(f"{one} check" for one in precisions[1:]),
    )  # fmt: skip
    for run in options.runs:
        for row in rows(run, options.dataset, options.rounds, precisions):
            table.add_row(*row)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
