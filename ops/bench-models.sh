#!/usr/bin/env bash
# Makes the models of the engine and serving benchmarks: random weights in the shapes of Qwen2.5-0.5B and
# Llama-3.2-1B, as Hugging Face folders and as GGUF files, into a folder outside the tree (about 9 GB for all).
#   ops/bench-models.sh [SHAPE…]        SHAPE: 0.5b 1b; default both
# TANDEM_BENCH_MODELS names the folder. What is there already is left alone. Prints the folder.
set -euo pipefail
cd "$(dirname "$0")/.."

models=${TANDEM_BENCH_MODELS:-${TMPDIR:-/tmp}/tandem-bench-models}
tandem=.build/release/tandem
formats=${FORMATS:-q8_0 q4_0 bf16}
shapes=("$@")
[ ${#shapes[@]} -gt 0 ] || shapes=(0.5b 1b)
mkdir -p "$models"

for shape in "${shapes[@]}"; do
    case $shape in
        0.5b) published=qwen2.5-0.5b ;;
        1b) published=llama-3.2-1b ;;
        *) echo "bench-models: $shape is not 0.5b or 1b" >&2; exit 2 ;;
    esac
    folder=$models/$published
    [ -f "$folder/model.safetensors" ] || "$tandem" random-model --shape "$published" --out "$folder" >&2
    for format in $formats; do
        file=$models/$shape-$format.gguf
        [ -f "$file" ] || "$tandem" quantize "$folder" "$file" --type "$format" >&2
    done
done
echo "$models"
