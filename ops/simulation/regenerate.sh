#!/usr/bin/env bash
# Makes every kept table of this folder anew, but truth.md (truth.sh, wants an idle machine) and scale.txt:
#   ops/simulation/regenerate.sh TRACES [vtc|fastserve|surpass|plan|scale ...]
# TRACES is a folder with vtc_real_trace.jsonl. One core; `scale` (only where named) takes some minutes and gigabytes
# more. Each table tells its seeds and the commit that it was made with; how long each part took goes to the terminal.
# BIN names the folder of the programs, OUT another one for the tables.
set -euo pipefail
cd "$(dirname "$0")/../.."

tandem=${BIN:-.build/release}/tandem
out=${OUT:-ops/simulation}
traces=$1
shift
parts=${*:-vtc fastserve surpass plan}
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
[[ -z "$(git status --porcelain -- Sources 2>/dev/null)" ]] || commit="$commit, and sources changed since"
note="ops/simulation/regenerate.sh at commit $commit, $(date -u +%Y-%m-%d)."
mkdir -p "$out"
begun=$SECONDS
for part in $parts; do
    start=$SECONDS
    case $part in
        vtc)
            "$tandem" simulate --reproduce vtc --traces "$traces" --seed 1 --seeds 3 --out "$out" --note "$note" \
                >/dev/null ;;
        fastserve)
            "$tandem" simulate --reproduce fastserve --traces "$traces" --seed 11 --seeds 3 --out "$out" \
                --note "$note" >/dev/null ;;
        surpass)
            "$tandem" simulate --surpass --traces "$traces" --seed 11 --seeds 3 --out "$out" --note "$note" >/dev/null ;;
        plan)
            {
                "$tandem" simulate --plan --budget 8 --policy fair --slo-ttft 0.2 --slo-tpot 0.03 --input lognormal:700:1 \
                    --output lognormal:200:0.8
                echo "$note"
            } > "$out/plan.txt" ;;
        scale)
            { GLIBC_TUNABLES=glibc.malloc.hugetlb=1 "$tandem" simulate --scale --policy fair; echo "seed 1; $note"; } > "$out/scale.new"
            mv "$out/scale.new" "$out/scale.txt" ;;
        *) echo "regenerate.sh: $part is none of vtc, fastserve, surpass, plan, scale" >&2; exit 64 ;;
    esac
    echo "$part: $((SECONDS - start)) s" >&2
done
echo "all: $((SECONDS - begun)) s" >&2
