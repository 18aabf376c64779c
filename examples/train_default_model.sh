#!/usr/bin/env bash
# Trains the packaged model on the chest radiographs of FOLDER together with synthetic radiographs: first its embedding
# network, so that views of an image agree, then its encoder and decoder, which share nothing with that network.
# Usage: examples/train_default_model.sh FOLDER [TABLE] [WORK]
#   FOLDER  de-identified images (they are hashed without a secret, so that everyone gets the same split)
#   TABLE   a CSV that names the patient of each image, if the images do not
#   WORK    folder for dataset and runs (default: ./default-model); finished parts are reused at the next start
# Afterwards: cp WORK/run/model.safetensors cyclic_cli/assets/default.safetensors; cp WORK/default.onnx cyclic_cli/assets;
# and measure the figures of the model card (those of the labels: tests/benchmarks/packaged_model.py) and the golden
# embeddings in the tests again.
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
model=(--arch conv --set model.embedding=64)
cyclic train dataset --objective views "${model[@]}" --epochs 24 --out views --resume auto
cyclic train dataset "${model[@]}" --epochs 3 --init-from views --out run --resume auto
cyclic export --model run --dataset dataset --licence MIT --out default.onnx --overwrite
cyclic info run
