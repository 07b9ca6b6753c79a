#!/bin/sh
# Runs every fuzzer. usage: Fuzz/run.sh [SECONDS]   (default: 60 for each)
# A finding is written to Fuzz/findings/ and makes the exit status 1.
set -eu
cd "$(dirname "$0")"
seconds=${1:-60}
export SWIFT_BACKTRACE=enable=no
swift build -c release > /dev/null || swift build -c release
for fuzzer in FrameFuzzer GGUFFuzzer; do
    mkdir -p findings "corpus/$fuzzer"
    ".build/release/$fuzzer" seeds "corpus/$fuzzer"
    ".build/release/$fuzzer" -max_total_time="$seconds" -max_len=4096 -rss_limit_mb=2048 -timeout=10 \
        -print_final_stats=1 -artifact_prefix=findings/ "corpus/$fuzzer"
done
