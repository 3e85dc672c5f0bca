"""Child process: load one checkpoint one way and report its own peak of memory as JSON.

Run by ``measure.py``; a process of its own because a peak is never given back.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from ewq.instruments.memory import weights_bytes
from ewq.planning.plan import read_plan
from ewq.quantizer import EwqConfig
from ewq.quantizer.config import StorageOptions
from ewq.quantizer.modules import replacement
from ewq.variants import Precision


class AnonymousPeak:
    """Most private memory seen, in bytes; pages of the mapped checkpoint are not private."""

    def __init__(self) -> None:
        self.most_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> AnonymousPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.most_bytes = max(self.most_bytes, private_bytes())


def private_bytes() -> int:
    """``RssAnon``: resident memory that no file backs."""
    return status_bytes("RssAnon")


def status_bytes(field: str) -> int:
    """A field of ``/proc/self/status``."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status)[1]) * 1024


def streamed(folder: str, plan_path: str) -> torch.nn.Module:
    """ewq's way: each tensor is quantized as it arrives."""
    config = EwqConfig(plan=plan_path)
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", quantization_config=config)


def reopened(folder: str, plan_path: str) -> torch.nn.Module:
    """A folder that was saved quantized."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def swapped(folder: str, plan_path: str) -> torch.nn.Module:
    """The proof of concept's way: the whole model in 16 bits, then module by module."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    for name, precision in read_plan(plan_path).weights.items():
        path = name.removesuffix(".weight")
        if precision is not Precision.RAW:
            old = model.get_submodule(path)
            new = replacement(old, precision, StorageOptions(), model.dtype, stored=False)
            new.weight = type(new.weight)(
                old.weight.data, requires_grad=False, **new.weight.__dict__
            ).to("cpu")
            model.set_submodule(path, new)
    return model


WAYS = {"streamed": streamed, "swapped": swapped, "reopened": reopened}


def main(way: str, folder: str, plan_path: str) -> None:
    """Load, and print what it took."""
    before, before_resident = private_bytes(), status_bytes("VmRSS")
    with AnonymousPeak() as peak:
        start = time.perf_counter()
        model = WAYS[way](folder, plan_path)
        load_s = time.perf_counter() - start
    report = {
        "way": way,
        "load_s": load_s,
        "weights_bytes": weights_bytes(model),
        "before_bytes": before,
        "peak_private_bytes": peak.most_bytes,
        "before_resident_bytes": before_resident,
        "peak_resident_bytes": status_bytes("VmHWM"),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
