"""Randomly damaged files never end or hang a job, and each is either used or listed with a reason."""

import io
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.makers import make_dicom, smooth_image
from PIL import Image
from pydicom.data import get_testdata_file

SMALL = (  # files that are installed with pydicom, one for each pixel encoding
    "CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "JPEG-lossy.dcm", "SC_rgb_jpeg_dcmtk.dcm",
    "examples_palette.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "J2K_pixelrep_mismatch.dcm", "SC_rgb_jls_lossy_line.dcm", "image_dfl.dcm",
    "MR_small_bigendian.dcm", "SC_rgb_small_odd_jpeg.dcm", "liver_1frame.dcm", "test-SR.dcm", "no_meta.dcm",
)  # fmt: skip


def undamaged_files(folder: Path) -> list[bytes]:
    contents = [Path(get_testdata_file(name)).read_bytes() for name in SMALL]
    frames = np.stack([smooth_image(number, 24, 20) for number in range(3)])
    contents.append(make_dicom(folder / "frames.dcm", frames, bits=8, PatientID="P").read_bytes())
    for kind, mode in (("PNG", "L"), ("PNG", "I;16"), ("JPEG", "L"), ("JPEG", "RGB"), ("TIFF", "L"), ("PNG", "P")):
        image = Image.fromarray(smooth_image(len(contents)))
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, kind)
        contents.append(buffer.getvalue())
    return [content for content in contents if len(content) < 200_000]


def mutated(contents: list[bytes], chance: random.Random) -> bytes:
    """A damaged copy of one file: truncated, with flipped bits, with bytes of another file, or with a wrong length."""
    content = bytearray(chance.choice(contents))
    kind = chance.randrange(4)
    # Most damage is placed in the header, where it has the most effect.
    at = chance.randrange(min(len(content), 3000) if chance.random() < 0.7 else len(content))
    if kind == 0:
        return bytes(content[:at])
    if kind == 1:
        for _ in range(chance.choice((1, 3, 30))):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == 2:
        other = chance.choice(contents)
        start = chance.randrange(len(other))
        content[at : at + chance.randrange(2000)] = other[start : start + chance.randrange(2000)]
    else:
        content[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xfe\xff\0\xe0"))
    return bytes(content)


@pytest.mark.parametrize("files", [600, pytest.param(5000, marks=pytest.mark.slow)])
def test_every_damaged_file_is_used_or_rejected(files: int, tmp_path: Path) -> None:
    contents, chance = undamaged_files(tmp_path), random.Random(7)
    assert len(contents) >= 20
    for number in range(files):
        path = Path(f"files/{number // 500}/{number:04}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutated(contents, chance))
    command = [
        sys.executable,
        "-m",
        "cyclic_cli",
        "prepare",
        "files",
        "--already-deidentified",
        "--size",
        "16",
        "--json",
    ]
    start = time.monotonic()
    ran = subprocess.run([*command, "--time-limit", "20"], capture_output=True, text=True, timeout=400, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    result = json.loads(ran.stdout)
    assert result["inputs"] == files
    assert result["used"] + result["duplicates"] + result["skipped"] + result["rejected"] == files
    assert result["used"] > files // 10
    assert result["rejected"] > files // 10
    assert "timeout" not in result["rejected_by_reason"]
    assert "unexpected" not in result["rejected_by_reason"]  # every failure has a specific reason
    named = [json.loads(line) for line in Path("dataset/rejected.jsonl").read_text().splitlines()]
    assert len({line["source"] for line in named}) == len(named) == result["skipped"] + result["rejected"]
    assert all(line["reason"] and line["detail"] for line in named)
    assert time.monotonic() - start < 300
