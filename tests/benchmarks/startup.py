"""Measures the start-up time of `cyclic` relative to that of `import torch`.

    python tests/benchmarks/startup.py [--rounds 15]

Four commands take turns, so that a temporary slowdown of the machine affects all of them: `python -c "import torch"`,
`cyclic --help`, `cyclic info` of the packaged ONNX model, and the whole of `cyclic reconstruct` of one DICOM file with
that model. Each result is the median ratio to the import of the same round, with quartiles. The first round warms the
page cache and is not counted.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pydicom.data import get_testdata_file

from cyclic_cli.inference.load import PACKAGED_EXPORT

CYCLIC = [sys.executable, "-m", "cyclic_cli"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    scan = str(get_testdata_file("CT_small.dcm", download=False))
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "cyclic --help": [*CYCLIC, "--help"],
            "cyclic info": [*CYCLIC, "info", str(PACKAGED_EXPORT)],
            "cyclic reconstruct": [*CYCLIC, "reconstruct", scan, "--out", "pictures", "--overwrite"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(options.rounds + 1):
            for name, command in commands.items():
                begin = time.perf_counter()
                subprocess.run(command, cwd=Path(folder), capture_output=True, check=True)
                if number:
                    seconds[name].append(time.perf_counter() - begin)
    base = np.array(seconds["import torch"])
    for name, found in seconds.items():
        low, middle, high = np.percentile(np.array(found) / base, [25, 50, 75])
        print(f"{name:20} {statistics.median(found):.2f} s, {middle:.2f} ({low:.2f}–{high:.2f}) of import torch")


if __name__ == "__main__":
    main()
