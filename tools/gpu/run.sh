#!/usr/bin/env bash
# From a bare machine with Python, torch and a CUDA card to a report, without a network and in
# calls of under ten minutes.
#
#   tools/gpu/run.sh WHEELS OUT [STEP...]
#
# WHEELS  folder that collect.sh filled; parts of cut files (NAME.part-0-of-3, ...) are joined
# OUT     folder for logs, stored runs, reports, figures and the summary; OUT/work keeps the rest
# STEP    only these, in order; default: all (see STEPS below)
#
# Every call does what is left, ends with reports of what there is, and packs all of it into
# OUT/results.tar.gz. Call again, with the same OUT, until it says "finished": two calls where
# nothing goes wrong. A step is done when its product is there and says so itself: a stored run
# that is complete, a library that runs. An interrupted run or build goes on where it stopped, also
# when the machine was cut off. What failed by itself is tried again after everything else.
#
# Environment
#   LIMIT_S   540: seconds that this call may take, reports included; set it below what there is
#   PYTHON    python3: has torch; packages go to OUT/work, nothing of its own is changed
#   DEVICE    cuda; cpu exercises every step without a card
#   TIER      quick: of the embedded model and the shape; smoke takes seconds
#   CONFIG    fixtures/configs/qwen3-8b.json: the shape
#   EWQ_CACHE OUT/work/cache: 57 GB for the shape of 8 billion weights; GGUF files go to /dev/shm
#             where the disk has less and the memory has enough
set -euo pipefail

wheels=$(realpath "${1:?usage: run.sh WHEELS OUT [STEP...]}")
out=$(realpath -m "${2:?usage: run.sh WHEELS OUT [STEP...]}")
shift 2
# First what the rest stands on; then each shorter and surer measurement before a longer one.
STEPS=(install build ceilings smoke shape eager gguf embedded agreement fit compile)
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
tier=${TIER:-quick}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
config=$(realpath "${CONFIG:-$root/fixtures/configs/qwen3-8b.json}")
work=$out/work
site=$work/site
converter=$work/llama/vendor/llama.cpp/convert_hf_to_gguf.py
mkdir -p "$work"
cd "$root"

# Held by every process of a call, so that none of an earlier one is still at work.
exec 9> "$work/lock"
flock --timeout 3 9 || { echo "an earlier call is still at work in $out" >&2 && exit 1; }

# Packages lie in a folder of their own: it goes before what Python has, and nothing is resolved,
# since the folder of wheels is the whole truth where there is no network.
export PYTHONPATH=$root:$site${PYTHONPATH:+:$PYTHONPATH} PATH=$site/bin:$PATH PYTHONUNBUFFERED=1
export PIP_NO_INDEX=1 PIP_FIND_LINKS=$wheels PIP_DISABLE_PIP_VERSION_CHECK=1
export EWQ_CACHE=${EWQ_CACHE:-$work/cache} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# What was compiled before a call was cut off is not compiled again.
export TMPDIR=$work/scratch TORCHINDUCTOR_CACHE_DIR=$work/inductor

SHM=${SHM:-/dev/shm}
FINISH_S=${FINISH_S:-60} # for reports and packing
LEAST_S=${LEAST_S:-20}   # with less, nothing is begun
deadline=$((SECONDS + ${LIMIT_S:-540} - FINISH_S))
say() { printf '\n== %s (%s)\n' "$*" "$(date +%T)"; }
is_over() { [ $((deadline - SECONDS)) -lt $LEAST_S ]; }
limited() { # COMMAND...: interrupted in order when this call's time is over
    if is_over; then return 124; fi
    timeout --signal INT --kill-after 10 $((deadline - SECONDS)) "$@"
}
ask() { "$python" "$here/environment.py" "$@"; }

clean() { # what a call that was cut off left half done: up to 16 GB
    rm -rf "$TMPDIR"
    mkdir -p "$TMPDIR" "$EWQ_CACHE"
    find -H "$EWQ_CACHE"/* -mindepth 1 -maxdepth 1 -name '.*' -exec rm -rf {} + 2> /dev/null || true
}

roomy() { # GGUF files of the shape need 36 GB beside its checkpoint
    local disk memory shared=$SHM/ewq-gguf
    if [ -L "$EWQ_CACHE/gguf" ]; then mkdir -p "$shared"; fi # a restart empties the memory
    if [ "$device" = cpu ] || [ -L "$EWQ_CACHE/gguf" ]; then return 0; fi
    disk=$(df --output=avail -B 1000000000 "$EWQ_CACHE" | tail -1)
    memory=$(df --output=avail -B 1000000000 "$SHM" | tail -1)
    if [ "$disk" -ge 60 ]; then return 0; fi
    if [ "$memory" -lt 40 ]; then
        echo "$disk GB free on the disk and $memory GB in $SHM: too little for all GGUF files"
        return 0
    fi
    mkdir -p "$shared"
    if [ -d "$EWQ_CACHE/gguf" ]; then
        cp -r "$EWQ_CACHE/gguf/." "$shared"
        rm -rf "$EWQ_CACHE/gguf"
    fi
    ln -s "$shared" "$EWQ_CACHE/gguf"
    echo "$disk GB free on the disk: GGUF files go to memory"
}

join() { # the parts of cut files, where all of them have arrived
    local part whole count
    for part in "$wheels"/*.part-0-of-*; do
        [ -f "$part" ] || continue
        whole=${part%.part-*} count=${part##*-of-}
        [ ! -f "$whole" ] || continue
        set -- "$whole".part-*-of-"$count"
        if [ $# -ne "$count" ]; then
            echo "${whole##*/}: $# of $count parts are here; copy the others to $wheels"
            return 1
        fi
        for ((part = 0; part < count; part++)); do cat "$whole.part-$part-of-$count"; done \
            > "$work/joined"
        mv "$work/joined" "$whole"
    done
}

unpack() { # llama.cpp's sources: for its converter, and to build it
    local sdist
    sdist=$(find "$wheels" -maxdepth 1 -name 'llama_cpp_python-*.tar.gz' | head -1)
    if [ -z "$sdist" ] || [ -d "$work/llama" ]; then return 0; fi
    rm -rf "$work/llama.new"
    mkdir "$work/llama.new"
    tar -xzf "$sdist" --strip-components 1 -C "$work/llama.new"
    mv "$work/llama.new" "$work/llama"
}

install() {
    local listing
    join
    unpack
    listing=$(find "$wheels" -maxdepth 1 -name '*.whl' | sort)
    if [ "$(cat "$work/installed" 2> /dev/null)" != "$listing" ]; then
        xargs -r "$python" -m pip install --quiet --no-deps --no-compile --upgrade \
            --target "$site" <<< "$listing"
        echo "$listing" > "$work/installed"
    fi
    ask "$device"
}

compile_llama() { # for the card at hand, in a folder that a later call goes on with
    local options="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF"
    if [ "$device" != cpu ]; then
        options+=" -DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=$(ask "$device" --capability)-real"
        eval "$(ask "$device" --toolkit "$work/toolkit")"
    fi
    CMAKE_ARGS=$options CMAKE_BUILD_PARALLEL_LEVEL=$(($(nproc) * 3 / 4 + 1)) \
        limited "$python" -m pip wheel --no-deps --no-build-isolation --verbose \
        --config-settings build-dir="$work/llama-build" --wheel-dir "$work/built" "$work/llama" &&
        "$python" -m pip install --quiet --no-deps --upgrade --target "$site" \
            "$work"/built/llama_cpp*.whl
}

build() { # begun here, beside what needs no quiet processor; awaited by built
    if ask "$device" --llama > "$out/build.txt"; then return 0; fi
    [ -d "$work/llama" ] || { echo "no llama-cpp-python in $wheels: no GGUF variant" && return 1; }
    # Held as long as anything of the build runs: a process id stays after its end where nobody
    # waits for it, as in containers.
    exec 8> "$work/build.lock"
    flock 8
    compile_llama > "$out/build.log" 2>&1 &
}

build_ended() { flock "$work/build.lock" true; }

built() { # whether llama.cpp runs, once the build has ended
    build_ended
    ask "$device" --llama > "$out/build.txt" || { tail -3 "$out/build.log"; return 1; }
}

state() { ask "$device" --run "$out/$1.json"; } # complete, failed or missing

# pytest-benchmark empties its file when it starts: what an earlier call brought stays until then.
collect() { if [ -s "$work/$1.json" ]; then mv "$work/$1.json" "$out/$1.json"; fi; }

measure() { # NAME ARGUMENTS...
    local name=$1 status=0
    shift
    limited "$python" -m pytest benchmarks/ --benchmark-quiet --benchmark-json="$work/$name.json" \
        --benchmark-storage="file://$work/runs/$name" --ewq-device "$device" "$@" \
        > >(tee -a "$out/$name.log") 2>&1 || status=$?
    collect "$name"
    return $status
}

bench() { # NAME ARGUMENTS...: one stored run, gone on with where an earlier call was stopped
    local name=$1 status=0
    collect "$name" # of a call that was cut off before it could
    if [ "$(state "$name")" = complete ]; then return 0; fi
    if compgen -G "$work/runs/$name/journal.[js]*" > /dev/null; then
        measure "$@" --ewq-resume || status=$?
        # 4: it cannot be resumed, since the code or the machine is another one now.
        if [ $status -ne 4 ]; then set --; fi
    fi
    if [ $# -gt 0 ]; then measure "$@" || status=$?; fi
    [ "$(state "$name")" = complete ] || { echo "$name: status $status, not complete" && return 1; }
}

ceilings() {
    [ ! -f "$out/ceilings.json" ] || return 0
    limited "$python" "$here/ceilings.py" --device "$device" --output "$work/ceilings.json"
    mv "$work/ceilings.json" "$out/"
}

smoke() { # a tiny model, every variant and task once: what does not work at all is seen here
    bench smoke --ewq-tier smoke --ewq-variants fp16,ewq-0.65,bnb-int8,bnb-nf4
}

shape_options=(--ewq-tier "$tier" --ewq-model "dummy:$config" -k "throughput or memory")

shape() {
    cp "$config" "$out/shape.config"
    bench shape "${shape_options[@]}" --ewq-variants fp16,ewq-0.65,bnb-nf4,bnb-int8
}

eager() { # decoding step by step is a matter of the processor, too: not beside a build
    build_ended
    bench shape-eager "${shape_options[@]}" --ewq-decode eager --ewq-variants fp16 -k throughput
}

gguf() {
    built
    roomy
    bench shape-gguf "${shape_options[@]}" --ewq-variants gguf-q8_0,gguf-ewq-0.65
}

embedded() {
    build_ended
    bench embedded --ewq-tier "$tier" --ewq-variants \
        fp16,ewq-0.65,bnb-nf4,gguf-q8_0,gguf-ewq-0.65
}

# The same questions, texts and numbers of tokens on both, and the GPU in the CPU's own float32 too.
agreement() {
    local model options status=0
    model=$("$python" -c 'from ewq.checkpoint.embedded import embedded_model as m; print(m())')
    options=(--ewq-model "$model" --ewq-tier smoke --ewq-mmlu fixtures/mmlu --ewq-texts
        fixtures/texts --ewq-variants
        fp16,ewq-0.65,bnb-int8,bnb-nf4 -k "cloze or perplexity or divergence")
    bench agreement-gpu "${options[@]}" || status=1
    bench agreement-gpu-float32 "${options[@]}" --ewq-dtype float32 || status=1
    bench agreement-cpu "${options[@]}" --ewq-device cpu || status=1
    return $status
}

fit() { # what it rests on is measured first: a backward pass, and what each type costs
    built
    bench embedded-fit --ewq-tier "$tier" --ewq-variants fp16,gguf-fit-q4_k_m
}

compile() { # minutes of compiling, so it comes last
    bench shape-compile "${shape_options[@]}" --ewq-decode compile --ewq-variants fp16 \
        -k throughput
}

finish() { # of whatever there is
    local name
    build_ended
    for name in embedded embedded-fit shape shape-gguf; do
        [ -s "$out/$name.json" ] || continue
        timeout $((FINISH_S / 6)) "$python" -m ewq report "$out/$name.json" -o "$out/$name.html" || true
    done
    timeout $((FINISH_S / 6)) "$python" "$here/summary.py" "$out" > "$work/summary.md" || true
    if [ -s "$work/summary.md" ]; then mv "$work/summary.md" "$out/" && cat "$out/summary.md"; fi
    tar -czf "$work/results.tar.gz" --exclude ./work --exclude ./results.tar.gz -C "$out" .
    mv "$work/results.tar.gz" "$out/"
}

[ $# -gt 0 ] || set -- "${STEPS[@]}"
mkdir -p "$work/failed"
first=() last=() unfinished=()
for step in "$@"; do
    [[ " ${STEPS[*]} " == *" $step "* ]] || { echo "no step $step; ${STEPS[*]}" >&2 && exit 2; }
    if [ -f "$work/failed/$step" ]; then last+=("$step"); else first+=("$step"); fi
done
clean
LD_LIBRARY_PATH=$(ask "$device" --libraries)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
for step in "${first[@]}" "${last[@]}"; do
    if is_over; then unfinished+=("$step") && continue; fi
    say "$step"
    if [ -f "$converter" ]; then export EWQ_GGUF_CONVERTER=$converter; fi
    # Not in a condition, where -e would not hold: what fails ends the step, not the steps after it.
    set +e
    (set -e && "$step")
    status=$?
    set -e
    if [ $status -eq 0 ]; then rm -f "$work/failed/$step" && continue; fi
    unfinished+=("$step")
    if ! is_over; then touch "$work/failed/$step"; fi
done
finish
if [ ${#unfinished[@]} -eq 0 ]; then echo "finished"; exit 0; fi
echo "not finished: ${unfinished[*]}; call again to go on"
exit 1
