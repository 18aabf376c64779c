#!/usr/bin/env bash
# The main workflow on synthetic radiographs, in a few minutes: demo → prepare → train → reconstruct, embed, search.
# Usage: examples/quickstart.sh [FOLDER]     (default: ./quickstart; it is deleted and written again)
set -euo pipefail
folder=${1:-quickstart}
rm -rf "$folder"
mkdir -p "$folder"
cd "$folder"

cyclic demo --out demo -n 400
cyclic prepare demo --already-deidentified --out dataset
cyclic train dataset --arch conv --fraction 0.4 --epochs 3
find demo -name '1.dcm' | sort | head -n 3 | cyclic reconstruct - --out pictures
cyclic embed dataset --out embeddings.parquet --with-text
cyclic search "$(find demo -name '1.dcm' | sort | head -n 1)" --in embeddings.parquet --dataset dataset --page cases.html

echo
echo "Original, reconstruction and difference: $PWD/pictures/*.png"
echo "A case, and similar cases with different reports: $PWD/cases.html"
