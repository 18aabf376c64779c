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
venv/bin/cyclic demo --out demo -n 4 --quiet --json >demo.json
scan=$(find demo -name '*.dcm' | sort | head -n 1)
venv/bin/cyclic reconstruct "$scan" --out pictures --quiet --json >result.json
test -s pictures/*.png
grep -q '"psnr"' result.json
echo "wheel: help, demo and reconstruct work in an empty environment"
