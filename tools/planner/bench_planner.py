"""The planner against the proof of concept's way, on one checkpoint, in one run.

Run by its path, never by default: ``pytest tools/planner/bench_planner.py -s``.
It writes a bfloat16 checkpoint of half a billion random weights into a
temporary folder, times each way in processes of its own, and fails where one
of the four targets of speed and memory is missed. ``EWQ_BENCH_LAYERS`` makes it smaller.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from statistics import median

import pytest
import torch
from safetensors.torch import save_file

HIDDEN, INTERMEDIATE, VOCABULARY = 2048, 5632, 4096
LAYERS = int(os.environ.get("EWQ_BENCH_LAYERS", "12"))
"""44 million weights each: 12 layers hold 0.53 billion."""
ROUNDS = int(os.environ.get("EWQ_BENCH_ROUNDS", "3"))
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 4, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 4, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
SPEEDUP_AT_LEAST = 25
COUNTING_AT_LEAST = 0.5
"""Of the speed of copying the same bytes."""
MEMORY_BYTES = 500e6
LINEAR_WITHIN = 1.6
"""Seconds per weight may differ by this factor over a factor of 16 in size."""

CHILD = """
import json, sys, threading, time
{setup}
begin, begin_cpu = time.perf_counter(), time.process_time()
{work}
elapsed_s, cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
# Not getrusage: its maximum is inherited from the parent process.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak_bytes = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({{"s": elapsed_s, "cpu_s": cpu_s, "peak_bytes": peak_bytes}}))
"""

# Both ways have their libraries imported, and ewq its compiled code loaded, before the clock
# starts; the time of the whole process is reported too.
PROOF_OF_CONCEPT = (
    "import numpy as np, torch\nfrom transformers import AutoModelForCausalLM",
    """
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
for layer in model.model.layers:
    for parameter in layer.parameters():
        if parameter.dim() == 2:
            values = parameter.detach().float().numpy().ravel()
            counts, _ = np.histogram(values, bins=256)
            shares = counts[counts > 0] / counts.sum()
            entropy = -(shares * np.log2(shares)).sum()
            facts = entropy, values.std(), np.ptp(values)
""",
)
PLANNER = (
    """
    import numpy as np
    from ewq.planning.analysis import analyze
    from ewq.entropy import statistics, weights
    counts = np.zeros((2, 65536), np.uint32)
    statistics.add_patterns(np.zeros(64, np.uint16), counts)
    """,
    "analyze(sys.argv[1], cache=False).plan(0.65)",
)


def write_checkpoint(folder: Path, layers: int) -> int:
    """A Llama checkpoint of normal weights; returns its quantizable weights."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.{name}.weight": shape for name, shape in LINEAR.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{norm}.weight"] = (HIDDEN,)
    tensors = {
        name: (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return layers * sum(rows * columns for rows, columns in LINEAR.values())


def measure(way: tuple[str, str], folder: Path) -> dict[str, float]:
    """Seconds, processor seconds and peak bytes of one way, in a process of its own."""
    setup, work = (textwrap.dedent(part).strip() for part in way)
    code = CHILD.format(setup=setup, work=work)
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    process_s = time.perf_counter() - begin
    return {**json.loads(done.stdout.splitlines()[-1]), "process_s": process_s}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planner") / "model"
    weights = write_checkpoint(folder, LAYERS)
    measure(PLANNER, folder)  # Compiles the loops and brings the file into the page cache.
    return folder, weights


def test_plans_25_times_faster_than_the_proof_of_concept(checkpoint, capsys):
    folder, weights = checkpoint
    slow, fast = [], []
    # Alternating, so that a busy machine is busy for both.
    for _ in range(ROUNDS):
        slow.append(measure(PROOF_OF_CONCEPT, folder))
        fast.append(measure(PLANNER, folder))
    slow_s, fast_s = column(slow, "s"), column(fast, "s")
    ratio = median(slow_s) / median(fast_s)
    # On a busy machine the clock says little; processor time still tells the work done.
    cpu_ratio = median(column(slow, "cpu_s")) / median(column(fast, "cpu_s"))
    report(
        capsys,
        f"{weights / 1e9:.2f} billion weights: proof of concept {median(slow_s):.2f} s "
        f"{rounded(slow_s)}, ewq {median(fast_s):.2f} s {rounded(fast_s)}, ratio {ratio:.1f}; "
        f"processor seconds {rounded(column(slow, 'cpu_s'))}, {rounded(column(fast, 'cpu_s'))}, "
        f"ratio {cpu_ratio:.1f}; whole processes {rounded(column(slow, 'process_s'))}, "
        f"{rounded(column(fast, 'process_s'))}",
    )
    assert ratio >= SPEEDUP_AT_LEAST


def test_counts_at_half_the_speed_of_copying(checkpoint, capsys):
    folder, _ = checkpoint
    counting, copying = [], []
    for _ in range(ROUNDS):
        copying.append(measure(COPYING, folder))
        counting.append(measure(COUNTING, folder))
    copying_s, counting_s = column(copying, "s"), column(counting, "s")
    ratio = median(copying_s) / median(counting_s)
    cpu_ratio = median(column(copying, "cpu_s")) / median(column(counting, "cpu_s"))
    report(
        capsys,
        f"copying {median(copying_s):.3f} s {rounded(copying_s)}, counting "
        f"{median(counting_s):.3f} s {rounded(counting_s)}, ratio {ratio:.2f}; "
        f"processor seconds ratio {cpu_ratio:.2f}",
    )
    assert ratio >= COUNTING_AT_LEAST


IN_MEMORY = """
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from ewq.entropy import statistics
data = np.fromfile(Path(sys.argv[1]) / "model.safetensors", np.uint16)
parts = np.array_split(data, 64)
target = np.empty_like(data)
targets = np.array_split(target, 64)
target[:] = 0
import os
workers = len(os.sched_getaffinity(0))
local = threading.local()
statistics.add_patterns(parts[0][:64], np.zeros((2, 65536), np.uint32))
def copy(index):
    np.copyto(targets[index], parts[index])
def count(index):
    if not hasattr(local, "counts"):
        local.counts = np.zeros((2, 65536), np.uint32)
    statistics.add_patterns(parts[index], local.counts)
executor = ThreadPoolExecutor(workers)
"""
COPYING = (IN_MEMORY, "list(executor.map(copy, range(64)))")
COUNTING = (IN_MEMORY, "list(executor.map(count, range(64)))")


def test_memory_does_not_follow_the_size_of_the_model(checkpoint, capsys):
    folder, _ = checkpoint
    largest_bytes = 2 * INTERMEDIATE * HIDDEN
    peak_bytes = measure(PLANNER, folder)["peak_bytes"]
    poc_bytes = measure(PROOF_OF_CONCEPT, folder)["peak_bytes"]
    report(
        capsys,
        f"peak memory: ewq {peak_bytes / 1e6:.0f} MB of at most "
        f"{(MEMORY_BYTES + 2 * largest_bytes) / 1e6:.0f} MB, checkpoint "
        f"{(folder / 'model.safetensors').stat().st_size / 1e6:.0f} MB, "
        f"proof of concept {poc_bytes / 1e6:.0f} MB",
    )
    assert peak_bytes < MEMORY_BYTES + 2 * largest_bytes


def test_time_is_linear_in_parameters(tmp_path, capsys):
    per_weight = {}
    for layers in (1, 4, 16):
        weights = write_checkpoint(tmp_path / str(layers), layers)
        seconds = [measure(REPEATED, tmp_path / str(layers))["s"] for _ in range(ROUNDS)]
        per_weight[layers] = median(seconds) / weights
    figures = ", ".join(f"{of} layers {1e9 * s:.2f}" for of, s in per_weight.items())
    report(capsys, f"seconds per billion weights: {figures}")
    assert max(per_weight.values()) / min(per_weight.values()) < LINEAR_WITHIN


REPEATED = (
    # The second time in a process: start-up, which is constant, is not what grows.
    f"{textwrap.dedent(PLANNER[0]).strip()}\n{PLANNER[1]}",
    PLANNER[1],
)


def report(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Show a figure whether or not its test passes."""
    with capsys.disabled():
        sys.stdout.write(f"\n{line}\n")


def column(runs: list[dict[str, float]], key: str) -> list[float]:
    return [run[key] for run in runs]


def rounded(seconds: list[float]) -> list[float]:
    return [round(one, 2) for one in seconds]
