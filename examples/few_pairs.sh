#!/usr/bin/env bash
# Measures each mixture of objectives with 5, 10, 20, 50 and 100 % of the pairs, over five seeds.
# Without arguments, it runs on synthetic radiographs, else: few_pairs.sh DATASET [options of few_pairs.py].
# An interrupted run resumes when the script is started again.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
if [ $# -gt 0 ]; then
  exec python3 "$here/few_pairs.py" "$@"
fi
work="${FEW_PAIRS:-few_pairs}"
mkdir -p "$work"
for seed in 0 2; do  # seed 2 generates other patients for the test (seed 1 served to evaluate an earlier recipe)
  count=$((seed ? 1250 : ${COUNT:-5000}))
  split=$((seed ? 0 : 80))
  [ -d "$work/demo$seed" ] || cyclic demo --out "$work/demo$seed" --count $count --seed $seed
  cyclic prepare "$work/demo$seed" --out "$work/dataset$seed" --size 64 --already-deidentified \
    --split "$split/$((seed ? 0 : 10))/$((seed ? 100 : 10))"
done
exec python3 "$here/few_pairs.py" "$work/dataset0" --test "$work/dataset2" --hit same_labels --work "$work"
