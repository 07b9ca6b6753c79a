#!/usr/bin/env bash
# Builds the packed kernels with AddressSanitizer and UndefinedBehaviorSanitizer and checks every table
# against the plain one with random shapes.
# usage: ops/asan-kernels.sh [first seed] [seeds]
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"${CC:-clang}" -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -fuse-ld=lld \
    -ISources/CKernels/include ops/kernel-check.c Sources/CKernels/{packed_*,common,dequant,kernels_*,attention_*}.c \
    -lm -o "$out/kernel-check"
"$out/kernel-check" "$@"
