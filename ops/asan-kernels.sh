#!/usr/bin/env bash
# Builds the packed kernels and attention with AddressSanitizer and UndefinedBehaviorSanitizer and checks every table
# against the plain one with random shapes.
# usage: ops/asan-kernels.sh [first seed] [seeds]
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
sources=(Sources/CKernels/{packed_*,common,dequant,limits,kernels_*,attention_*}.c)
for check in kernel-check attention-check; do
    "${CC:-clang}" -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -fuse-ld=lld \
        -ISources/CKernels/include "ops/$check.c" "${sources[@]}" -lm -o "$out/$check"
    "$out/$check" "$@"
done
