#!/usr/bin/env bash
# Build the wheel, install it in an empty environment, and use it there, away from the source tree.
# Usage: tests/wheel.sh PYTHON_THAT_BUILDS   (PYTHON in the environment makes the empty one)
set -euo pipefail
builder=$1
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$builder" -m build --wheel --no-isolation --outdir "$work/dist" "$root" >"$work/build.log" || { cat "$work/build.log"; exit 1; }
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --constraint "$root/constraints.txt" "$work"/dist/*.whl
cd "$work"
export CYCLIC_CACHE="$work/cache"
unset CYCLIC_MODEL CYCLIC_DATASET PYTHONPATH
venv/bin/cyclic --help >help.txt
grep -q reconstruct help.txt
venv/bin/cyclic demo --out demo -n 12 --quiet --json >demo.json
scan=$(find demo -name '*.dcm' | sort | head -n 1)
venv/bin/cyclic reconstruct "$scan" --out pictures --quiet --json >result.json # the packaged ONNX file
test -s pictures/*.png
grep -q '"psnr"' result.json

# Scrubbing, with the packaged list of ordinary words: the name goes, the word that is also a name stays.
{
  echo 'path,patient,patient_name,text'
  find demo -name '*.dcm' -printf '%P,%h,Long Quillfeather,Quillfeather was seen. Long lungs. No effusion.\n' | sort
} >named.csv
venv/bin/cyclic prepare demo --reports named.csv --already-deidentified --size 224 --split 100/0/0 --out dataset --quiet --json >prepared.json
venv/bin/cyclic evaluate dataset --split train --quiet --json >evaluated.json # the packaged checkpoint
venv/bin/cyclic embed dataset --out embeddings.parquet --with-text --quiet >embedded.txt
venv/bin/python - <<'PYTHON'
import json
import pyarrow.parquet

used = json.load(open("prepared.json"))["used"]
rows = pyarrow.parquet.read_table("embeddings.parquet").to_pylist()
texts = {row["text"] for row in rows}
assert used == len(rows) == 12, (used, len(rows))
assert texts == {"___ was seen. Long lungs. No effusion."}, texts
assert json.load(open("evaluated.json"))["reconstruction"]["mse"] < 0.01
open("key.txt", "w").write(rows[0]["key"])
PYTHON
venv/bin/cyclic search "$(cat key.txt)" --in embeddings.parquet --dataset dataset --same-patient --page page.html --quiet >found.txt
grep -q '<img' page.html # the packaged template
echo "wheel: reconstruct, prepare, scrubbing, evaluate, embed and a search page work in an empty environment"
