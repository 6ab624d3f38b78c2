#!/bin/sh
# Installs the peers, each in a virtual environment of its own, into the folder that is named: OpenVINO GenAI as it is
# published, and llama.cpp's server built here from the sources that the sdist of llama-cpp-python holds.
set -eu
folder=$(mkdir -p "$1" && cd "$1" && pwd)
python=${2:-python3}

test -x "$folder/openvino/bin/python" || "$python" -m venv "$folder/openvino"
# torch comes first: on its own it is the CPU's build where the index has one, and nothing after it asks for another.
"$folder/openvino/bin/pip" install --quiet "$(sed -n 's/^torch==/torch==/p' "$(dirname "$0")/../../constraints.txt")"
"$folder/openvino/bin/pip" install --quiet openvino-genai openvino-tokenizers 'optimum-intel[openvino]'

test -x "$folder/llama/bin/python" || "$python" -m venv "$folder/llama"
"$folder/llama/bin/pip" install --quiet numpy safetensors pyyaml tqdm requests
if ! test -x "$folder/llama/build/bin/llama-server"; then
    "$folder/llama/bin/pip" download --quiet --no-deps --no-binary llama-cpp-python -d "$folder/sdist" llama-cpp-python
    mkdir -p "$folder/src"
    tar xzf "$folder"/sdist/llama_cpp_python-*.tar.gz -C "$folder/src" --strip-components=1
    cmake -S "$folder/src/vendor/llama.cpp" -B "$folder/llama/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
        -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DBUILD_SHARED_LIBS=OFF
    cmake --build "$folder/llama/build" --target llama-server -j "$(nproc)"
fi
