#!/usr/bin/env bash
# Train the model that comes with the package: chest radiographs of FOLDER and drawn phantoms, together.
# Usage: examples/train_default_model.sh FOLDER [TABLE] [WORK]
#   FOLDER  images, de-identified (they are hashed without a secret, so that anyone gets the same split)
#   TABLE   a CSV that names each image's patient, if the images do not
#   WORK    where dataset and run are kept (default: ./default-model); started again, finished parts are kept
# Then: cp WORK/run/model.safetensors cyclic_cli/assets/default.safetensors; cp WORK/default.onnx cyclic_cli/assets; and
# measure anew for the model card and `tests/packaged_embeddings.json`.
set -euo pipefail
images=$(realpath "$1")
table=${2:+$(realpath "$2")}
work=${3:-default-model}
mkdir -p "$work"
cd "$work"

[ -e phantoms/findings.csv ] || { rm -rf phantoms; cyclic demo --out phantoms -n 1000 --seed 1; }
tables=(--reports phantoms/findings.csv)
[ -z "$table" ] || tables+=(--reports "$table")
cyclic prepare "$images" phantoms "${tables[@]}" --already-deidentified --out dataset
cyclic train dataset --arch conv --epochs 10 --out run --resume auto
cyclic export --model run --dataset dataset --licence MIT --out default.onnx --overwrite
cyclic info run
