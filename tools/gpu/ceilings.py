"""What the device can do at best: copy bandwidth, and weights counted and analysed per second."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ewq.entropy.statistics import count_patterns, measure_patterns

ROUNDS = 20
BYTES = {"cuda": 4 * 1024**3, "cpu": 64 * 1024**2}
PART_BYTES = 64 * 1024**2
"""Of a checkpoint, at a time."""


def median_s(work: Callable[[], object], device: str) -> float:
    """Median seconds of ``work``, device synchronised, after three rounds to warm up."""
    times = []
    for _ in range(3 + ROUNDS):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times[3:])[ROUNDS // 2]


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def copy_bytes_per_s(device: str) -> float:
    """Bytes read plus bytes written per second by a large device-to-device copy."""
    source = torch.randint(0, 255, (BYTES[device.split(":")[0]],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / median_s(lambda: target.copy_(source), device)


def random_bits(device: str, numel: int) -> torch.Tensor:
    """Patterns of bfloat16 weights as models have them, in the device's memory."""
    values = torch.empty(numel, dtype=torch.bfloat16, device=device).normal_(0, 0.02)
    return values.view(torch.int16)


def weights_per_s(device: str) -> dict[str, float]:
    """16-bit weights per second: counted in the device's memory, and analysed from the host's.

    The latter is the planner's whole pass over a checkpoint that lies in the page cache: copying
    to the device, counting, and all statistics from the counts.
    """
    bits = random_bits(device, BYTES[device.split(":")[0]] // 8)
    host = bits.cpu().numpy().view(np.uint16)
    parts = np.array_split(host, max(1, host.nbytes // PART_BYTES))
    whole_s = median_s(lambda: measure_patterns(parts, "BF16", device), device)
    return {
        "weights_counted_per_s": bits.numel() / median_s(lambda: count_patterns(bits), device),
        "weights_analysed_per_s": bits.numel() / whole_s,
    }


def main() -> None:
    """Measure and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    figures = {
        "device": arguments.device,
        "copy_bytes_per_s": copy_bytes_per_s(arguments.device),
        **weights_per_s(arguments.device),
    }
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(arguments.output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
