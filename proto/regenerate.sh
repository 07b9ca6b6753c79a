#!/bin/sh
# Regenerates the committed protobuf-c code of Sources/CWire from proto/tandem.proto.
# usage: proto/regenerate.sh [TARGET_FOLDER]   (default: Sources/CWire; the header goes to include/)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=${1:-"$here/../Sources/CWire"}
if ! command -v protoc-c > /dev/null; then
    echo "protoc-c is missing: run 'make setup' (Debian package protobuf-c-compiler)" >&2
    exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$here"
protoc-c --c_out="$work" tandem.proto
mkdir -p "$target/include"
mv "$work/tandem.pb-c.c" "$target/tandem.pb-c.c"
mv "$work/tandem.pb-c.h" "$target/include/tandem.pb-c.h"
