#!/usr/bin/env bash
# Makes every kept table of this folder anew, but truth.md (truth.sh, wants an idle machine) and scale.txt:
#   ops/simulation/regenerate.sh TRACES [vtc|fastserve|surpass|plan|scale ...]
# TRACES is a folder with vtc_real_trace.jsonl. One core, some ten minutes; `scale` (only where named) ten more and
# some gigabytes. BIN names the folder of the programs.
set -euo pipefail
cd "$(dirname "$0")/../.."

tandem=${BIN:-.build/release}/tandem
traces=$1
shift
parts=${*:-vtc fastserve surpass plan}
for part in $parts; do
    echo "$part" >&2
    case $part in
        vtc) "$tandem" simulate --reproduce vtc --traces "$traces" --out ops/simulation >/dev/null ;;
        fastserve)
            "$tandem" simulate --reproduce fastserve --traces "$traces" --seed 11 --seeds 3 --out ops/simulation >/dev/null ;;
        surpass)
            "$tandem" simulate --surpass --traces "$traces" --seed 11 --seeds 3 --out ops/simulation >/dev/null ;;
        plan)
            "$tandem" simulate --plan --budget 8 --slo-ttft 0.2 --slo-tpot 0.03 --input lognormal:700:1 \
                --output lognormal:200:0.8 > ops/simulation/plan.txt ;;
        scale) "$tandem" simulate --scale | tail -n 6 > ops/simulation/scale.txt ;;
        *) echo "regenerate.sh: $part is none of vtc, fastserve, surpass, plan, scale" >&2; exit 64 ;;
    esac
done
