#!/usr/bin/env bash
# Does the simulator predict the live cluster? Fits a profile on this machine, then plays the same seeded workloads,
# on seeds that the fit has not seen, live and simulated, at half and at four fifths of what the cluster can take:
#   ops/simulation/truth.sh [MODEL] [more options of `tandem profile`]
# MODEL is a folder or a GGUF file; without one, a random model of a 0.5B shape is written and quantised to Q8_0.
# Writes ops/simulation/truth.md and truth.json (OUT names another folder). SEEDS, JOBS, ROUNDS, LOADS from the
# environment; BIN names the folder of the programs. Needs `make release` and a machine that is otherwise idle; some
# three minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."

bin=${BIN:-.build/release}
out=${OUT:-ops/simulation}
work=$(mktemp -d)
model=${1:-}
[[ $# -gt 0 ]] && shift
if [[ -z "$model" ]]; then
    "$bin/tandem" random-model --shape qwen2.5-0.5b --out "$work/model" >/dev/null
    "$bin/tandem" quantize "$work/model" "$work/model.gguf" --type q8_0 >/dev/null
    model=$work/model.gguf
fi
lengths=(--context 512 --input lognormal:96:0.8 --output lognormal:32:0.8)
load=$(cut -d' ' -f1 /proc/loadavg)
"$bin/tandem" up --detach --state "$work/state" --port 0 --model "$model" --policy fair --local-prefill-tokens 0 \
    --prefill 1 --decode 1 --threads 1 >/dev/null
trap '"$bin/tandem" down --state "$work/state" >/dev/null; rm -rf "$work"' EXIT
"$bin/tandem" profile --state "$work/state" "${lengths[@]}" --rounds "${ROUNDS:-2}" --fit "$work/profile.json" \
    --samples "$work/samples.json" "$@" | tee "$work/fit.txt"
"$bin/tandem" profile --state "$work/state" "${lengths[@]}" --compare "$work/profile.json" --loads "${LOADS:-0.5,0.8}" \
    --seed 11 --seeds "${SEEDS:-3}" --jobs "${JOBS:-36}" --json "$work/truth.json" --markdown "$work/table.md" "$@"
{
    echo "# Simulated against live"
    echo
    echo "- ops/simulation/truth.sh: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $(nproc) processors," \
        "load $load before; model $(basename "$model"); one prefill and one decode worker of one thread, policy fair."
    echo "- The profile is fitted to jobs of other seeds; ERROR is that of the means over the seeds, PER SEED the least" \
        "and the greatest of single seeds. The aim is 5 %."
    echo "- client: as the client sees it, with the front door's part. The fit:"
    echo
    sed 's/^/        /' "$work/fit.txt"
    echo
    cat "$work/table.md"
} > "$out/truth.md"
cp "$work/truth.json" "$out/truth.json"
