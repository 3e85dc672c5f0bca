"""Peak memory of loading a checkpoint of half a billion parameters, each way in a child process.

``python tools/loading/measure.py`` prints the table of docs/results/loading.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ewq.checkpoint.layout import find_layout
from ewq.checkpoint.opening import open_checkpoint
from ewq.planning.plan import QuantizationPlan, write_plan
from ewq.planning.sizes import footprint_of, format_of
from ewq.variants import Precision

WORKER = Path(__file__).with_name("load_worker.py")
PRECISIONS = (Precision.FOUR_BIT, Precision.EIGHT_BIT, Precision.RAW)
SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
MB = 1e6


def make_checkpoint(folder: Path) -> None:
    """0.55 billion random bfloat16 weights in shards of 300 MB."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="300MB")


def make_plan(folder: Path, name: str) -> QuantizationPlan:
    """Blocks in thirds (``mixed``), or all alike."""
    checkpoint = open_checkpoint(folder)
    layout = find_layout(checkpoint)
    weights = {
        weight: PRECISIONS[block.index % 3] if name == "mixed" else Precision(name)
        for block in layout.blocks
        for weight in block.weights
    }
    footprint = footprint_of(checkpoint, layout)
    size = footprint.nbytes(weights, format_of("nf4"))
    return QuantizationPlan(
        model=folder.name,
        fingerprint=checkpoint.fingerprint,
        architecture=checkpoint.architecture,
        scorer="none",
        granularity="block",
        rule={"kind": name},
        mean=0.0,
        std=0.0,
        thresholds={},
        blocks=(),
        weights=weights,
        bits_per_weight=8 * size / footprint.numel,
        size_bytes=size,
    )


def measure(way: str, folder: Path, plan: Path) -> dict[str, float]:
    """One way in a process of its own."""
    command = [sys.executable, str(WORKER), way, str(folder), str(plan)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(plan: str, report: dict[str, float], largest_bytes: int) -> str:
    """One line of the table; sizes in MB of 10**6 bytes."""
    size = report["weights_bytes"]
    peak = report["peak_private_bytes"] - report["before_bytes"]
    limit = 1.15 * size + 2 * largest_bytes
    resident = report["peak_resident_bytes"] - report["before_resident_bytes"]
    cells = [size / MB, limit / MB, peak / MB, resident / MB]
    shown = " | ".join(f"{value:,.0f}" for value in cells)
    verdict = "yes" if max(peak, resident) <= limit else "no"
    return f"| {plan} | {report['way']} | {shown} | {verdict} | {report['load_s']:.1f} |"


HEADER = """\
| plan | way | model MB | limit MB | peak private MB | peak resident MB | within | load s |
| --- | --- | ---: | ---: | ---: | ---: | --- | ---: |
"""


def main(*plans: str) -> None:
    """Measure some plans, each way."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        make_checkpoint(folder)
        tensors = open_checkpoint(folder).tensors.values()
        largest = max(info.nbytes for info in tensors)
        parameters = sum(info.numel for info in tensors)
        sys.stdout.write(f"{parameters:,} parameters, largest tensor {largest / MB:.0f} MB\n\n")
        sys.stdout.write(HEADER)
        for name in plans or ("mixed", "4bit", "8bit"):
            plan = write_plan(make_plan(folder, name), Path(scratch) / f"{name}.json")
            for way in ("streamed", "swapped"):
                sys.stdout.write(row(name, measure(way, folder, plan), largest) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
