#!/usr/bin/env bash
# Live scheduling policies on real workers, in one run:
#   ops/measure-policies.sh [MODEL]          MODEL: a Hugging Face folder or a GGUF file; default the bundled model
#   ops/measure-policies.sh 0.5b             the 0.5B shape in Q8_0 with random weights (ops/bench-models.sh)
# Mean, P95 and P99 of JCT, TTFT and normalised latency on one seeded workload of mixed lengths, in rounds; two tenants
# 1:1 overloaded; a light tenant beside a flood; preempt and resume against the unpreempted run; the time of the core
# over one event at 1,000 live jobs. The method is told at the top of ops/measure_policies.py. The table and its JSON
# are kept under ops/results/ after every part (RESULTS= names another place, RESULTS=none keeps nothing).
#
# Settings: POLICIES FAIR (those of the tests of fairness) TESTS ROUNDS JOBS LOAD SEED SCALE OVERLOAD BATCH FLAGS.
# POLICIES=all takes every live policy. QUICK=1 takes a tenth of the time and says less. Needs `make release`.
# On two cores: the bundled model about 9 minutes, 0.5b about 10; with POLICIES=all about 13 and 16.
set -euo pipefail
cd "$(dirname "$0")/.."

model=${1:-cluster/models/tandem-stories-5m}
tandem=.build/release/tandem
jobs=600 rounds=3 seconds=60 light=10 decision=12 live=1000 calibration=480 warm=60 scale=1 batch=8
tests="overload isolation preempted decisions" fair="vtc fair fair-mlfq fair-gittins"
if [ "$model" = 0.5b ]; then
    model=$(FORMATS=q8_0 ops/bench-models.sh 0.5b | tail -1)/0.5b-q8_0.gguf
    # A job takes a tenth of a second of both cores: shorter lengths and fewer jobs, no test of the coordinator alone.
    jobs=90 rounds=2 calibration=90 warm=12 scale=0.5 light=12
    tests="overload isolation preempted" fair="fair-mlfq"
fi
if [ -n "${QUICK:-}" ]; then
    jobs=$((jobs / 6)) rounds=1 calibration=$((calibration / 5)) seconds=8 light=5 decision=3 live=300
fi
state=$(mktemp -d)
trap '"$tandem" down --state "$state/c" >/dev/null 2>&1 || true; rm -rf "$state"' EXIT

name=$(basename "$model" .gguf)
results=${RESULTS:-ops/results/policies-$name}
if [ "$results" = none ]; then results=; else mkdir -p "$(dirname "$results")"; fi
policies=${POLICIES-fcfs sjf mlfq gittins vtc fair fair-mlfq fair-gittins}
if [ "$policies" = all ]; then
    policies=$("$tandem" up --help | tr '\n' ' ' | tr -s ' ' \
        | sed 's/.*Scheduling policy: \([^.]*\)\..*/\1/; s/,//g')
    # Twice as many rows: fewer jobs in each, so that all of it takes less than 14 minutes (18 for 0.5b).
    jobs=$((jobs * 3 / 4))
fi
machine="$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg)"

options=$(python3 - "$policies" "${FAIR-$fair}" "${TESTS-$tests}" <<PY
import json, sys
words = [w.split() for w in sys.argv[1:4]]
print(json.dumps({
    "tandem": "$tandem", "state": "$state/c", "model": "$name", "machine": "$machine",
    "flags": ["--model", "$model", "--prefill", "1", "--decode", "1", "--threads", "1", "--batch-jobs",
              "${BATCH:-$batch}", "--local-prefill-tokens", "0"] + "${FLAGS:-}".split(),
    "policies": words[0], "fair_policies": words[1], "tests": words[2], "results": "$results",
    "jobs": ${JOBS:-$jobs}, "load": ${LOAD:-0.9}, "seed": ${SEED:-20261121}, "vocabulary": ${VOCABULARY:-1000},
    "scale": ${SCALE:-$scale}, "calibration": ${CALIBRATION:-$calibration}, "overload_s": ${OVERLOAD:-$seconds},
    "light_s": $light, "decision_s": $decision, "live": $live, "rounds": ${ROUNDS:-$rounds}, "warm_up": ${WARM:-$warm},
}))
PY
)
python3 ops/measure_policies.py "$options"
