#!/usr/bin/env bash
# Builds llama.cpp, the peer of `make bench-engine` and `make bench-serving`, in a folder outside the tree:
#   ops/build-peer.sh FOLDER            about 15 minutes on 2 cores
# The sources are those that PyPI's llama-cpp-python carries. Then: export TANDEM_PEER=FOLDER/build/bin
set -euo pipefail

folder=${1:?name a folder outside the tree}
version=0.3.36
mkdir -p "$folder"
cd "$folder"

for tool in cmake ninja; do
    command -v "$tool" >/dev/null || { echo "build-peer: $tool is missing (python3 -m pip install cmake ninja)" >&2; exit 1; }
done
[ -f llama_cpp_python-$version.tar.gz ] \
    || python3 -m pip download --no-deps --no-binary :all: --no-build-isolation "llama-cpp-python==$version"
[ -d llama_cpp_python-$version ] || tar xf llama_cpp_python-$version.tar.gz
cmake -S llama_cpp_python-$version/vendor/llama.cpp -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_CURL=OFF
cmake --build build --target llama-bench llama-batched-bench llama-quantize llama-server
echo "built; now: export TANDEM_PEER=$PWD/build/bin"
