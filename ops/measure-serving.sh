#!/usr/bin/env bash
# TTFT, TPOT and throughput of a local cluster, disaggregated against mixed, in one run:
#   ops/measure-serving.sh [MODEL_FOLDER] [ROUNDS]
# Shapes are measured in turn (A B C, A B C, …) so that a noisy minute hits all of them; the table shows the
# median of the rounds with the smallest and the largest. Needs `make release`.
set -euo pipefail
cd "$(dirname "$0")/.."

model=${1:-cluster/models/tandem-stories-5m}
rounds=${2:-3}
prompts=${PROMPTS:-32}
input=${INPUT:-256}
output=${OUTPUT:-64}
clients=${CLIENTS:-8}
tandem=.build/release/tandem
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

shapes=(
    "1-prefill+1-decode --prefill 1 --decode 1 --threads 1 --local-prefill-tokens 0"
    "1-mixed,2-threads --prefill 0 --decode 0 --mixed 1 --threads 2"
    "2-mixed,1-thread --prefill 0 --decode 0 --mixed 2 --threads 1"
)

measure() { # name, flags…
    local name=$1 state
    shift
    state=$(mktemp -d)
    "$tandem" up --detach --state "$state" --port 0 --model "$model" "$@" >/dev/null
    "$tandem" bench --state "$state" --num-prompts "$prompts" --max-concurrency "$clients" --input-len "$input" \
        --output-len "$output" --json "$results/$name.$round.json" >/dev/null
    "$tandem" status --state "$state" --json >"$results/$name.$round.status"
    "$tandem" down --state "$state" >/dev/null
    rm -rf "$state"
}

for round in $(seq "$rounds"); do
    for shape in "${shapes[@]}"; do
        # shellcheck disable=SC2086
        measure $shape
        echo "round $round: ${shape%% *} done" >&2
    done
done

echo "machine: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg)"
echo "model: $model; $prompts requests of $input + $output tokens, $clients at once, $rounds rounds; median (min-max)"
python3 - "$results" "$rounds" <<'PY'
import json, pathlib, statistics, sys

folder, rounds = pathlib.Path(sys.argv[1]), int(sys.argv[2])
names = list(dict.fromkeys(p.name.rsplit(".", 2)[0] for p in sorted(folder.glob("*.json"))))
fields = ["request_throughput", "output_throughput", "median_ttft_ms", "p99_ttft_ms",
          "median_tpot_ms", "p99_tpot_ms", "mean_e2el_ms", "failed"]
print(f"{'':34}" + "".join(f"{name:>28}" for name in names))
for field in fields:
    cells = []
    for name in names:
        values = [json.loads((folder / f"{name}.{r}.json").read_text()).get(field, 0) for r in range(1, rounds + 1)]
        cells.append(f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})")
    print(f"{field:34}" + "".join(f"{cell:>28}" for cell in cells))
moved = []
for name in names:
    status = json.loads((folder / f"{name}.1.status").read_text())
    moved.append(f"{status['counters']['kv_bytes_moved'] / 1e6:.1f} MB")
print(f"{'pages moved in one round':34}" + "".join(f"{cell:>28}" for cell in moved))
PY
