"""Time and memory of loading a model, and the baselines its later peaks are read against."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from ewq.errors import MeasurementError
from ewq.instruments.gpu import Gpus, gpus_of, open_gpus
from ewq.instruments.memory import ProcessMemory, release_free_memory

T = TypeVar("T")
MemoryInstrument = Gpus | ProcessMemory

# Imported before the clock starts: else the first model loaded would pay for them. What
# ``transformers`` imports at first use (some 150 MB) is named by its modules.
_LIBRARIES = (
    "torch",
    "accelerate",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)


@dataclass(frozen=True)
class LoadReading:
    """What loading cost."""

    load_s: float
    load_peak_ram_bytes: int
    device_baseline_bytes: int
    """Bytes in use before loading by the instrument of the model's device."""


def watch_loading(device: str, load: Callable[[], T]) -> tuple[T, LoadReading]:
    """What ``load`` makes, and what that cost beyond its libraries and a CUDA context."""
    for library in _LIBRARIES:
        importlib.import_module(library)
    memory = ProcessMemory()
    release_free_memory()
    device_baseline = instrument_for(device).used_bytes()
    ram_baseline = memory.used_bytes()
    with memory.watch() as watch:
        started_s = time.perf_counter()
        loaded = load()
        for gpu in gpus_of(device):
            torch.cuda.synchronize(gpu)
        load_s = time.perf_counter() - started_s
    peak = max(0, watch.peak_bytes - ram_baseline)
    return loaded, LoadReading(load_s, peak, device_baseline)


def instrument_for(device: str) -> MemoryInstrument:
    """The one instrument of a kind of device; a MeasurementError where it has none."""
    if device == "cpu":
        return ProcessMemory()
    if gpus := open_gpus(device):
        return gpus
    raise MeasurementError(f"no instrument reads the memory of device {device!r}; use cpu or cuda")
