#!/usr/bin/env bash
# The main workflow on synthetic radiographs, in a few minutes: demo → prepare → train → reconstruct, then an image–text
# model → embed → search.
# Usage: examples/quickstart.sh [FOLDER]     (default: ./quickstart; it is deleted and written again)
set -euo pipefail
folder=${1:-quickstart}
rm -rf "$folder"
mkdir -p "$folder"
cd "$folder"

cyclic demo --out demo -n 400
cyclic prepare demo --already-deidentified --out dataset
cyclic train dataset --arch conv --fraction 0.4 --epochs 3 --out runs/autoencoder
find demo -name '1.dcm' | sort | head -n 3 | cyclic reconstruct - --model runs/autoencoder --out pictures

cyclic train dataset --objective aligned --out runs/aligned
cyclic embed dataset --model runs/aligned --out embeddings.parquet --with-text
cyclic search "Large left pleural effusion." --in embeddings.parquet --model runs/aligned -k 5
cyclic search "$(find demo -name '1.dcm' | sort | head -n 1)" --in embeddings.parquet --model runs/aligned \
    --dataset dataset --page cases.html

echo
echo "Original, reconstruction and difference: $PWD/pictures/*.png"
echo "A case, and similar cases with different reports: $PWD/cases.html"
