#!/usr/bin/env bash
# Measures image–text models with 5, 10, 20 and 100 % of the pairs by folds over patients: few_pairs.sh IMAGES TABLE …
# Without arguments, it does so on synthetic radiographs. An interrupted run goes on when the script is started again.
#
#   few_pairs.sh IMAGES TABLE --text-column findings --image-encoder ENCODER --text-encoder ENCODER
set -euo pipefail
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # folds are measured in several processes
here="$(cd "$(dirname "$0")" && pwd)"
if [ $# -gt 0 ]; then
  exec python3 "$here/few_pairs.py" "$@"
fi
work="${FEW_PAIRS:-few_pairs}"
mkdir -p "$work"
demo="$work/demo"
[ -d "$demo" ] || cyclic demo --out "$demo" --count "${COUNT:-2000}" --seed 0
labels=()
for name in cardiomegaly pleural_effusion consolidation nodule pneumothorax pacemaker fracture; do
  labels+=(--label-column "$name")
done
exec python3 "$here/few_pairs.py" "$demo" "$demo/reports.csv" "$demo/findings.csv" --image-column path --work "$work" \
  --size 64 --hit same_labels "${labels[@]}" --fold-seeds 3 --draws 200 201 202
