#!/usr/bin/env bash
# Measures whether more unpaired samples help: the same number of pairs with about 1, 4 and 16 times as many unpaired
# images and texts of synthetic radiographs. Prints the mean R@10 of both directions (same labels) of
#   aligned   the closed form of the pairs
#   cyclic    completed by the unpaired samples, whatever the folds say
#   oracle    the closed form that knows the partners of the unpaired samples too: the room that there is
# The last line adds a second demo by --also. Takes about an hour on two cores without encoders; finished parts are
# reused when the script is started again.
# Usage: examples/more_unpaired.sh [WORK] [OPTION…]
#   WORK    folder for all results (default: ./more_unpaired)
#   OPTION  of `cyclic train`, such as --image-encoder ENCODER --text-encoder ENCODER
# COUNT (5000) is the number of radiographs, DRAWS ("200 201 202") name which patients are paired.
set -euo pipefail
work=${1:-more_unpaired}
shift || true
count=${COUNT:-5000}
read -ra draws <<< "${DRAWS:-200 201 202}"
mkdir -p "$work"

dataset() {  # NAME SEED COUNT SPLIT
    [ -e "$work/$1/dataset.yaml" ] && return
    rm -rf "${work:?}/$1-files"
    cyclic demo --out "$work/$1-files" --count "$3" --seed "$2" >&2
    cyclic prepare "$work/$1-files" --out "$work/$1" --size 128 --split "$4" --already-deidentified >&2
}
dataset train 0 "$count" 80/10/10
dataset test 3 $((count / 4)) 0/0/100
dataset more 5 "$count" 100/0/0

recall() {  # NAME OPTION… : the mean R@10 of a run that is trained and evaluated here
    local run="$work/runs/$1" found="$work/runs/$1.json"
    shift
    if [ ! -e "$found" ]; then
        cyclic train "$work/train" --out "$run" --resume auto -q "$@" >&2
        cyclic evaluate "$work/test" --split test --model "$run" -q --json > "$found.part"
        mv "$found.part" "$found"
    fi
    python3 - "$found" <<'PYTHON'
import json, sys
found = json.load(open(sys.argv[1]))["retrieval"]
print(sum(100 * found[way]["same_labels"]["r10"] for way in ("image_to_text", "text_to_image")) / 2)
PYTHON
}
mkdir -p "$work/runs"
printf 'unpaired\tdraw\taligned\tcyclic\toracle\n'
for draw in "${draws[@]}"; do
    # fraction of the patients, and of these the fraction that is paired: always a twentieth of all
    for part in "1 0.1 0.5" "4 0.25 0.2" "16 0.85 0.0588"; do
        read -r times fraction paired <<< "$part"
        few=(--fraction "$fraction" --paired-fraction "$paired" --set "paired_seed=$draw" "$@")
        aligned=$(recall "aligned-$times-$draw" --objective aligned "${few[@]}")
        completed=$(recall "cyclic-$times-$draw" --objective cyclic --set cycle_rule=always "${few[@]}")
        oracle=$(recall "oracle-$times" --objective aligned --fraction "$fraction" "$@")
        printf '%s ×\t%s\t%.1f\t%.1f\t%.1f\n' "$times" "$draw" "$aligned" "$completed" "$oracle"
    done
    also=$(recall "also-$draw" --objective cyclic --set cycle_rule=always --also "$work/more" "${few[@]}")
    printf '16 × and more\t%s\t%.1f\t%.1f\t\n' "$draw" "$aligned" "$also"
done
