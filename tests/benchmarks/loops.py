"""Runs the loops that `cyclic prepare` is compared with, over files named on stdin, in a pool of processes.

    python loops.py plain|monai|bare|DCMTK_PROGRAM WORKERS < LIST     prints {"start_up": seconds, "seconds": seconds}

    plain   the obvious loop: pydicom, modality LUT, VOI LUT and Pillow's resize; for PNG and JPEG, Pillow alone
    monai   MONAI's LoadImage and Resize, with its PydicomReader or its PILReader
    bare    reading and full decoding with the decoder of `cyclic`, and nothing else
    dcm2pnm, dcmj2pnm, dcml2pnm   one process per file, scaled by DCMTK; the time of such a process for a tiny image
                                  (DCMTK reads its dictionary each time) is counted as start-up

The clock runs only while every worker is busy. Before that, each worker processes one file, which covers imports and
decoder tables; this time is counted as start-up. Unlike `cyclic prepare`, the loops do not write their results to disk.
Packages are imported inside the functions, so that each loop runs where only its own packages are installed.
"""

import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

SIZE = 224
DICOM = ".dcm"


def plain(path: str) -> np.ndarray:
    """Load and resize a file to (SIZE, SIZE) uint8."""
    from PIL import Image

    if not path.endswith(DICOM):
        return np.asarray(Image.open(path).convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    import pydicom
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    header = pydicom.dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(header.pixel_array, header), header)
    low, high = shown.min(), shown.max()
    levels = ((shown - low) / (high - low) * 255).astype(np.uint8)
    if header.PhotometricInterpretation == "MONOCHROME1":
        levels = 255 - levels
    return np.asarray(Image.fromarray(levels).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def monai(path: str) -> np.ndarray:
    """Load and resize a file to (1, SIZE, SIZE) float32. MONAI applies no window."""
    return np.asarray(_monai_transform(path.endswith(DICOM))(path))


def _monai_transform(dicom: bool) -> Callable[[str], np.ndarray]:
    if dicom not in _transforms:
        from monai.data import PILReader, PydicomReader
        from monai.transforms import Compose, LoadImage, Resize

        reader = PydicomReader() if dicom else PILReader(converter=lambda image: image.convert("L"))
        load = LoadImage(reader=reader, image_only=True, ensure_channel_first=True)
        _transforms[dicom] = Compose([load, Resize((SIZE, SIZE))])
    return _transforms[dicom]


_transforms: dict[bool, Callable[[str], np.ndarray]] = {}


def bare(path: str) -> None:
    """Decode a file in full and discard the result."""
    if not path.endswith(DICOM):
        from PIL import Image

        with Image.open(path) as image:
            image.load()
        return
    import pydicom

    from cyclic_cli.imaging.dicom.decoding import decode

    decode(pydicom.dcmread(path), 0)


def dcmtk(program: str, path: str) -> None:
    """Show the first window with DCMTK, scaled to a width of `SIZE` pixels, and discard the 8-bit result."""
    subprocess.run([program, "+Wi", "1", "+Sxv", str(SIZE), path, "/dev/null"], check=True, capture_output=True)


def _begin(loop: Callable[[str], object], first: str, ready: Barrier) -> None:
    global _loop
    _loop = loop
    loop(first)
    ready.wait()


def _next(path: str) -> object:
    return _loop(path)


def measure(loop: Callable[[str], object], paths: list[str], workers: int) -> dict[str, float]:
    """Seconds of start-up, and seconds to process all `paths`."""
    context = multiprocessing.get_context("spawn")
    begin = time.perf_counter()
    ready = context.Barrier(workers + 1)
    with context.Pool(workers, _begin, (loop, paths[0], ready)) as pool:
        ready.wait()
        start = time.perf_counter()
        for _ in pool.imap_unordered(_next, paths):
            pass
        end = time.perf_counter()
        pool.close()
        pool.join()
    return {"start_up": start - begin, "seconds": end - start}


def _dcmtk_start_up(program: str) -> float:
    """Median seconds of a DCMTK process for an image of 16 × 16 pixels, nearly all spent on its dictionary."""
    import radiographs

    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.dcm"
        path.write_bytes(radiographs.small(16))
        for _ in range(15):
            start = time.perf_counter()
            dcmtk(program, str(path))
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    name, workers = sys.argv[1], int(sys.argv[2])
    paths = sys.stdin.read().splitlines()
    loops: dict[str, Callable[[str], object]] = {"plain": plain, "monai": monai, "bare": bare}
    if name in loops:
        measured = measure(loops[name], paths, workers)
    else:
        measured = measure(partial(dcmtk, name), paths, workers)
        measured["start_up"] = _dcmtk_start_up(name)
        measured["seconds"] -= measured["start_up"] * len(paths) / workers
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
