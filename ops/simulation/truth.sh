#!/usr/bin/env bash
# Does the simulator predict the live cluster? Fits a profile on this machine, then plays the same seeded workload live
# and simulated, for one prefill and one decode worker and for one mixed worker:
#   ops/simulation/truth.sh [MODEL_FOLDER] [CONTEXT]
# RATES (requests per second), JOBS, ROUNDS and OUT (folder for profiles and tables) are read from the environment.
# Needs `make release`, and a machine that is otherwise idle.
set -euo pipefail
cd "$(dirname "$0")/../.."

model=${1:-cluster/models/tandem-stories-5m}
context=${2:-512}
tandem=.build/release/tandem
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
echo "machine: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg)"

run() { # name, flags…
    local name=$1 state
    shift
    state=$(mktemp -d)
    "$tandem" up --detach --state "$state" --port 0 --model "$model" --policy fair --local-prefill-tokens 0 "$@" >/dev/null
    # shellcheck disable=SC2064
    trap "$tandem down --state $state >/dev/null" EXIT
    "$tandem" profile --state "$state" --context "$context" --rounds "${ROUNDS:-4}" --fit "$out/$name.json" 2>/dev/null
    for rate in ${RATES:-10 20}; do
        "$tandem" profile --state "$state" --context "$context" --compare "$out/$name.json" --rate "$rate" \
            --jobs "${JOBS:-200}" --json "$out/$name-$rate.json" 2>/dev/null
    done
    trap - EXIT
    "$tandem" down --state "$state" >/dev/null
}

run split --prefill 1 --decode 1 --threads 1
run mixed --prefill 0 --decode 0 --mixed 1 --threads 1
