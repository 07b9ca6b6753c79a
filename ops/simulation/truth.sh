#!/usr/bin/env bash
# Does the simulator predict the live cluster? For each mode fits a profile on this machine and, between the rounds of
# the fit, plays workloads of seeds that the fit does not see, at half and at four fifths of what the cluster can take;
# then simulates the same requests:
#   ops/simulation/truth.sh [MODEL] [more options of `tandem profile`]
#   MODES="strict relief mixed" SEEDS=3 TURNS=2 JOBS=40 ROUNDS=2 ops/simulation/truth.sh MODEL
# MODEL is a folder or a GGUF file; `bundled` is the model of this repository; without one, a random model of a 0.5B
# shape is written and quantised to Q8_0. Modes: strict, one prefill and one decode worker that share nothing; relief,
# the same as `tandem up` starts them, where decode workers compute short prompts, and long ones while prefill is behind;
# mixed, one worker that does both, with a thread for each processor.
# Writes ops/simulation/truth.md and truth.json, or truth-NAME.md for the bundled model (OUT names another folder; KEEP
# one for every measured job, to fit again with `tandem profile --refit`). LOADS and BIN (folder of the programs) from
# the environment. Needs `make release` and a machine that is otherwise idle; some three minutes a mode with 0.5B.
set -euo pipefail
cd "$(dirname "$0")/../.."

bin=${BIN:-.build/release}
out=${OUT:-ops/simulation}
work=$(mktemp -d)
keep=${KEEP:-$work}
mkdir -p "$keep" "$out"
model=${1:-}
[[ $# -gt 0 ]] && shift
name=truth jobs=40
lengths=(--context 512 --input lognormal:96:0.8 --output lognormal:32:0.8)
case $model in
    bundled) name=truth-bundled model=cluster/models/tandem-stories-5m jobs=400 ;;
    "")
        "$bin/tandem" random-model --shape qwen2.5-0.5b --out "$work/model" >/dev/null
        "$bin/tandem" quantize "$work/model" "$work/model.gguf" --type q8_0 >/dev/null
        model=$work/model.gguf ;;
esac
running=
finish() {
    [[ -n "$running" ]] && "$bin/tandem" down --state "$running" >/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
processors=$(nproc)
load=$(cut -d' ' -f1 /proc/loadavg)
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
{
    echo "# Simulated against live"
    echo
    echo "- ops/simulation/truth.sh at commit $commit: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs)," \
        "$processors processors, load $load before; model $(basename "$model"), policy fair."
    echo "- The profile is fitted to jobs of other seeds; the workloads it is judged by are played between the rounds of" \
        "its fit. Means and 95th percentiles are over all requests of a load, PER SEED the least and the greatest error" \
        "of single seeds, LIVE AGAIN how far the second time that the same requests were played is from the first." \
        "The aim is 5 %, in the rows that the coordinator's clock gives (client: as the client sees it)."
    echo
} > "$work/$name.md"
separator='['
begun=$SECONDS
for mode in ${MODES:-strict relief mixed}; do
    start=$SECONDS
    running=$work/state-$mode
    case $mode in
        strict)
            up=(--prefill 1 --decode 1 --threads 1 --local-prefill-tokens 0)
            same=(--threads 1) ;;
        relief)
            up=(--prefill 1 --decode 1 --threads 1 --local-prefill-tokens 64 --relief-wait-ms 200 --step-stretch-percent 300)
            same=(--threads 1 --local-prefill-tokens 64 --relief-wait-ms 200 --step-stretch-percent 300) ;;
        mixed)
            up=(--prefill 0 --decode 0 --mixed 1 --threads "$processors")
            same=(--threads "$processors" --local-prefill-tokens 64) ;;
        *) echo "truth.sh: $mode is none of strict, relief, mixed" >&2; exit 64 ;;
    esac
    echo "$mode" >&2
    "$bin/tandem" up --detach --state "$running" --port 0 --model "$model" --policy fair "${up[@]}" >/dev/null
    "$bin/tandem" profile --state "$running" "${lengths[@]}" "${same[@]}" --rounds "${ROUNDS:-2}" \
        --fit "$work/profile.json" --loads "${LOADS:-0.5,0.8}" --seed 11 --seeds "${SEEDS:-3}" --turns "${TURNS:-2}" \
        --jobs "${JOBS:-$jobs}" --samples "$keep/$name-$mode.json" --json "$work/$mode.json" \
        --markdown "$work/table.md" "$@" | tee "$work/fit.txt"
    "$bin/tandem" down --state "$running" >/dev/null
    running=
    {
        sed "1s/^## /## $mode: /" "$work/table.md"
        echo
        echo "The fit:"
        echo
        sed -n '/^an iteration over/q;p' "$work/fit.txt" | sed 's/^/        /'
        grep '^an iteration over' "$work/fit.txt" | sed 's/^/        /'
        echo
    } >> "$work/$name.md"
    { echo "$separator{\"mode\":\"$mode\",\"rows\":"; cat "$work/$mode.json"; echo "}"; } >> "$work/$name.json"
    separator=','
    echo "$mode: $((SECONDS - start)) s" >&2
done
echo "]" >> "$work/$name.json"
cp "$work/$name.md" "$work/$name.json" "$out/"
echo "all: $((SECONDS - begun)) s" >&2
