#!/usr/bin/env bash
# What each format costs in quality: perplexity on held text and KL divergence against f32, for the bundled model:
#   ops/bench-exactness.sh STORIES_TXT [MORE_OPTIONS_OF_tandem-measure_perplexity]
# The text is the one that the model's training read; the last fortieth of each of its books was held out.
# K formats are written by llama.cpp's llama-quantize, where TANDEM_PEER names its folder. The table goes to
# ops/results/exactness.txt too.
set -euo pipefail
cd "$(dirname "$0")/.."

text=${1:?name the text}
shift
model=${MODEL:-cluster/models/tandem-stories-5m}
tandem=.build/release/tandem
files=$(mktemp -d)
trap 'rm -rf "$files"' EXIT

variants=()
for type in f32 f16 bf16 q8_0 q4_0; do
    "$tandem" quantize "$model" "$files/$type.gguf" --type "$type" >"$files/$type.txt"
done
for type in f16 bf16 q8_0 q4_0; do
    variants+=(--variant "$type=$files/$type.gguf")
done
variants+=(--variant "load-q8_0=$model,quantize=q8_0" --variant "load-q4_0=$model,quantize=q4_0")
if [ -x "${TANDEM_PEER:-}/llama-quantize" ]; then
    for type in Q4_K Q5_K Q6_K; do
        # Rows that are no multiple of 256 have no K blocks; Q8_0 is what they get.
        LD_LIBRARY_PATH=$TANDEM_PEER "$TANDEM_PEER/llama-quantize" --pure --tensor-type ffn_down=q8_0 \
            "$files/f32.gguf" "$files/$type.gguf" "$type" 2 >"$files/$type.log" 2>&1 \
            || { tail -3 "$files/$type.log" >&2; exit 1; }
        variants+=(--variant "$type=$files/$type.gguf")
    done
else
    echo "K formats skipped: TANDEM_PEER names no folder that holds llama-quantize (ops/build-peer.sh builds one)"
fi
for type in f16 bf16 int8; do variants+=(--variant "kv-$type=$files/f32.gguf,kv=$type"); done
variants+=(--variant "q8_0+kv-int8=$files/q8_0.gguf,kv=int8")

mkdir -p ops/results
{
    .build/release/tandem-measure perplexity --text "$text" --held-out 40 --reference "f32=$files/f32.gguf" \
        "${variants[@]}" "$@"
    for type in q8_0 q4_0; do
        echo
        echo "$type against the 16-bit weights:"
        grep -v ' of .* tensors$' "$files/$type.txt" | grep -v '^wrote'
    done
} | tee ops/results/exactness.txt
