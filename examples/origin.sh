#!/usr/bin/env bash
# Trains the three autoencoders of the original project with the present recipes: linear on 3 % and 40 % of the training
# patients (one epoch), and conv on 15 % (three epochs). Prints their errors on the test patients, and draws a contact
# sheet of their reconstructions.
# Usage: examples/origin.sh [FOLDER] [TABLE] [WORK]
#   FOLDER  de-identified images (they are hashed without a secret) of at least 200 patients, since 3 % of them are used
#           for training; without FOLDER, 400 synthetic radiographs are generated
#   TABLE   a CSV that names the patient of each image, if the images do not
#   WORK    folder for all results (default: ./origin); finished parts are reused when the script is started again
set -euo pipefail
images=${1:+$(realpath "$1")}
table=${2:+$(realpath "$2")}
work=${3:-origin}
python=$(dirname "$(command -v cyclic)")/python  # the Python environment of cyclic
mkdir -p "$work"
cd "$work"

if [ -z "$images" ]; then
    images=phantoms
    [ -e phantoms/findings.csv ] || { rm -rf phantoms; cyclic demo --out phantoms -n 400 >&2; }
fi
cyclic prepare "$images" ${table:+--reports "$table"} --already-deidentified --out dataset >&2

cyclic train dataset --arch linear --fraction 0.03 --epochs 1 --out linear-3 --resume auto >&2
cyclic train dataset --arch linear --fraction 0.4 --epochs 1 --out linear-40 --resume auto >&2
cyclic train dataset --arch conv --fraction 0.15 --epochs 3 --out conv-15 --resume auto >&2

test_images() {
    "$python" - "$images" <<'PYTHON'
import sys
from pathlib import Path
from pyarrow.parquet import read_table

test = read_table("dataset/index.parquet", filters=[("split", "=", "test"), ("has_image", "=", True)])
print(*(Path(sys.argv[1], source) for source in test["source"].to_pylist()), sep="\n")
PYTHON
}
[ -e figures.json ] || test_images | cyclic reconstruct - --model linear-3 --model linear-40 --model conv-15 \
    --out pictures --sheet sheet.png --summary figures.json --overwrite --json > scans.jsonl

"$python" - <<'PYTHON'
import json

ORIGIN = {"linear-3": 0.068, "linear-40": 0.039, "conv-15": 0.041}
print(f"{'':12}{'MSE':>9}{'PSNR dB':>9}{'SSIM':>7}{'origin MSE':>12}")
for name, figures in json.load(open("figures.json"))["models"].items():
    print(f"{name:12}{figures['mse']:9.5f}{figures['psnr']:9.1f}{figures['ssim']:7.3f}{ORIGIN[name]:12.3f}")
PYTHON
echo "Means over the test images, without letterbox. The errors of the original project are for orientation only: they were"
echo "published for a different, larger set of radiographs."
echo "Reconstructions of the same patients: $PWD/sheet.png"
