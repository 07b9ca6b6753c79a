#!/usr/bin/env bash
# Installs the system packages that a build needs. Idempotent: a machine that has them is left alone.
set -euo pipefail

packages=(libnghttp2-dev libprotobuf-c-dev protobuf-c-compiler libsqlite3-dev pkg-config curl nghttp2-client python3 python3-pip)

missing=()
for package in "${packages[@]}"; do
    if ! dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
        missing+=("$package")
    fi
done

if [ ${#missing[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "setup: this machine has no apt-get; install these by hand: ${missing[*]}" >&2
        exit 1
    fi
    if [ "$(id -u)" -eq 0 ]; then
        as_root=()
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root=(sudo -n)
    elif command -v sudo >/dev/null && [ -t 0 ]; then
        as_root=(sudo)
    else
        echo "setup: neither root nor sudo here; have an administrator run:" >&2
        echo "    apt-get install ${missing[*]}" >&2
        exit 1
    fi
    echo "setup: installing ${missing[*]}"
    if ! { "${as_root[@]}" apt-get update -qq \
        && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }; then
        echo "setup: apt-get failed (see above); install these by hand, then run this again: ${missing[*]}" >&2
        exit 1
    fi
fi

if ! command -v swift >/dev/null; then
    echo "setup: no swift in PATH; install the Swift 6.3 toolchain from swift.org first" >&2
    exit 1
fi
