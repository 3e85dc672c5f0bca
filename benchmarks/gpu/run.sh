#!/usr/bin/env bash
# From a bare machine with Python, torch and a CUDA card to the finished report, without a network.
#
#   benchmarks/gpu/run.sh WHEELS OUT
#
# WHEELS  folder of wheels for everything in constraints.txt except torch, and the sdist of
#         llama-cpp-python, which is compiled here for the card at hand
# OUT     folder for stored runs, reports, figures and the summary
#
# Environment: DEVICE (cuda), TIER (quick), CONFIG (fixtures/configs/qwen3-8b.json),
# SKIP_INSTALL=1 where ewq and llama-cpp-python are installed already. DEVICE=cpu TIER=smoke with a
# small CONFIG exercises every step on a machine without a card.
set -euo pipefail

wheels=${1:?usage: run.sh WHEELS OUT}
out=${2:?usage: run.sh WHEELS OUT}
device=${DEVICE:-cuda}
tier=${TIER:-quick}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
config=$(realpath "${CONFIG:-$root/fixtures/configs/qwen3-8b.json}")
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$root"

# Long builds and runs must not lose what came before: every step writes its own file.
step() { printf '\n== %s (%s)\n' "$1" "$(date +%T)"; }

install() {
    local offline=(--quiet --no-index --find-links "$wheels")
    python -m pip install "${offline[@]}" hatchling scikit-build-core ninja cmake
    local capability
    capability=$(python -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
    CMAKE_ARGS="-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=$capability -DLLAVA_BUILD=OFF" \
        python -m pip install "${offline[@]}" --no-build-isolation --no-binary llama-cpp-python \
        llama-cpp-python
    python -m pip install "${offline[@]}" --no-build-isolation --editable '.[gguf,demo]'
}

bench() { # NAME ARGUMENTS...: one stored run; a failing gate or variant does not stop the rest
    local name=$1
    shift
    step "$name"
    python -m pytest benchmarks/ --benchmark-quiet --benchmark-json="$out/$name.json" \
        --ewq-tier "$tier" "$@" 2>&1 | tee "$out/$name.log" || echo "$name: see $out/$name.log"
}

if [ -z "${SKIP_INSTALL:-}" ]; then
    step install
    install
fi

step "ceilings and entropy speed"
python "$here/ceilings.py" --device "$device" --output "$out/ceilings.json"

bench embedded --ewq-device "$device" -k "fp16 or ewq or gguf"
bench embedded-cpu --ewq-device cpu -k "fp16 or ewq-0.65"
bench shape --ewq-device "$device" --ewq-model "dummy:$config" -k "throughput or memory"

step report
python -m ewq report "$out/embedded.json" -o "$out/embedded.html"
python -m ewq report "$out/shape.json" -o "$out/shape.html" || echo "no report of the shape"
python "$here/summary.py" "$out" | tee "$out/summary.md"
