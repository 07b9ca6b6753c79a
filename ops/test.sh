#!/usr/bin/env bash
# Every test, in one debug build: Swift Testing suites, the tests with real processes among them.
# Arguments go to `swift test` (say, --filter ClusterTests).
set -euo pipefail
cd "$(dirname "$0")/.."

# The official OpenAI client, for the test that it works unchanged. Into the build folder, not the system.
client=.build/openai-client
if [ ! -d "$client/openai" ] && command -v python3 >/dev/null; then
    python3 -m pip install --quiet --disable-pip-version-check --target "$client" openai 2>/dev/null \
        || echo "test: PyPI's openai package cannot be had here; its test will say that it was skipped" >&2
fi

echo "building the tests (a first build takes several minutes)"
swift build --build-tests 2>&1 | { grep -E '(error|warning): |^Build complete|Compiling|Linking' || true; } \
    | awk '/Compiling|Linking/ { if (++n % 100 == 0) { print "  " $1; fflush() } ; next } { print; fflush() }'
if [ $# -gt 0 ]; then
    exec swift test --skip-build "$@"
fi
# The tests with real processes run by themselves: beside a thousand others they would starve on two cores.
swift test --skip-build --skip ClusterTests
swift test --skip-build --filter ClusterTests
