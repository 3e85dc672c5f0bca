#!/usr/bin/env bash
# Fetch what run.sh installs, on a machine with a network.
#
#   tools/gpu/collect.sh WHEELS [NAME...]
#
# WHEELS  folder to fill: wheels, and the sdist of llama-cpp-python without what no build needs
# NAME    packages that the GPU machine lacks (default: all of constraints.txt but torch, which
#         such a machine has, and the tools of development)
#
# Environment
#   PYTHON      python3: the one that downloads
#   FOR_PYTHON  of the GPU machine, such as 3.12 (default: as PYTHON)
#   FOR_CUDA    of the GPU machine, such as 130: of bitsandbytes' libraries only this one is kept
#   PIECE_MB    lay the folder out as subfolders 1, 2, ... of at most so many megabytes, larger
#               files cut into parts, for where one transfer cannot carry it all. There, copy the
#               content of every subfolder into one folder; run.sh joins the parts.
set -euo pipefail

wheels=${1:?usage: collect.sh WHEELS [NAME...]}
shift
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
constraints=$here/../../constraints.txt
not_needed='^(torch|llama_cpp_python|mypy.*|ruff|peft|hypothesis|scipy-stubs|librt'
not_needed+='|optype|numpy-typing-compat|types-PyYAML|ast_serialize|editables|hatchling)==|^#'
mkdir -p "$wheels"

version_of() { grep -i "^${1//[-_]/[-_]}==" "$constraints" || echo "$1"; }

if [ $# -gt 0 ]; then
    wanted=()
    for name in "$@"; do wanted+=("$(version_of "$name")"); done
else
    mapfile -t wanted < <(grep -Ev "$not_needed" "$constraints")
fi
target=()
if [ -n "${FOR_PYTHON:-}" ]; then
    target=(--only-binary :all: --implementation cp --python-version "$FOR_PYTHON")
    for platform in manylinux_2_{28,27,24,17,12,5} manylinux2014 manylinux1; do
        target+=(--platform "${platform}_x86_64")
    done
fi
get() { "$python" -m pip download --quiet --no-deps --dest "$wheels" "$@"; }
get --prefer-binary "${target[@]}" "${wanted[@]}"
# Its build dependencies are only looked at; the GPU machine needs them in fact. Two versions of one
# package could not be installed together.
needed=()
for name in scikit-build-core pathspec packaging ninja cmake; do needed+=("$(version_of "$name")"); done
get "${target[@]}" "${needed[@]}"
get --no-binary llama-cpp-python "$(version_of llama_cpp_python)"
"$python" "$here/slim.py" "$wheels" "${FOR_CUDA:-}"

[ -n "${PIECE_MB:-}" ] || exit 0
limit=$((PIECE_MB * 1000 * 1000))
find "$wheels" -maxdepth 1 -type f -size "+${limit}c" ! -name '*.part-*' | while read -r file; do
    count=$((($(stat -c %s "$file") + limit - 1) / limit))
    split --bytes "$limit" --numeric-suffixes --suffix-length 1 --additional-suffix "-of-$count" \
        "$file" "$file.part-"
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
