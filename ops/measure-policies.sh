#!/usr/bin/env bash
# Every live scheduling policy on real workers, in one run:
#   ops/measure-policies.sh [MODEL_FOLDER]
# Mean, P95 and P99 of JCT, TTFT and normalised latency on one seeded workload of mixed lengths; two tenants 1:1
# overloaded; a light tenant beside a flood; preempt and resume against the unpreempted run; the time of the core over
# one event at 1,000 live jobs. The table and its JSON are kept under ops/results/ (RESULTS= names another place,
# RESULTS=none keeps nothing). QUICK=1 takes a tenth of the time and says less. Needs `make release`.
set -euo pipefail
cd "$(dirname "$0")/.."

model=${1:-cluster/models/tandem-stories-5m}
tandem=.build/release/tandem
state=$(mktemp -d)
trap '"$tandem" down --state "$state/c" >/dev/null 2>&1 || true; rm -rf "$state"' EXIT

if [ -n "${QUICK:-}" ]; then
    default_jobs=80 seconds=8 light=5 decision=3 live=300 calibration=40
else
    default_jobs=1000 seconds=60 light=20 decision=15 live=1000 calibration=400
fi
results=${RESULTS:-ops/results/policies-$(basename "$model")}
if [ "$results" = none ]; then results=; else mkdir -p "$(dirname "$results")"; fi
# rpm-queue keeps a request for minutes where its tenant has sent more than its limit: no latency worth a row.
policies=${POLICIES:-$("$tandem" up --help | tr '\n' ' ' | tr -s ' ' | sed 's/.*Scheduling policy: \([^.]*\)\..*/\1/; s/,//g; s/rpm-queue//')}
fair=${FAIR:-vtc fair fair-mlfq fair-gittins}
tests=${TESTS:-overload isolation preempted decisions}
machine="$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg)"
batch=${BATCH:-8}

options=$(python3 - "$policies" "$fair" "$tests" <<PY
import json, sys
words = [w.split() for w in sys.argv[1:4]]
print(json.dumps({
    "tandem": "$tandem", "state": "$state/c", "model": "$(basename "$model")", "machine": "$machine",
    "flags": ["--model", "$model", "--prefill", "1", "--decode", "1", "--threads", "1", "--batch-jobs", "$batch",
              "--local-prefill-tokens", "0"] + "${FLAGS:-}".split(),
    "policies": words[0], "fair_policies": words[1], "tests": words[2], "results": "$results",
    "jobs": ${JOBS:-$default_jobs}, "load": ${LOAD:-0.9}, "seed": ${SEED:-20261121}, "vocabulary": ${VOCABULARY:-1000},
    "scale": ${SCALE:-1}, "calibration": ${CALIBRATION:-$calibration}, "overload_s": ${OVERLOAD:-$seconds},
    "light_s": $light, "decision_s": $decision, "live": $live,
}))
PY
)
python3 ops/measure_policies.py "$options"
