"""What a model costs in bytes and in time to load.

One instrument per kind of device serves every engine: the driver's device-level reading on a GPU,
the process's resident memory on a CPU, both above a baseline taken before loading.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ewq.errors import MeasurementError
from ewq.instruments.gpu import gpus_of
from ewq.instruments.load_watch import LoadReading, MemoryInstrument, instrument_for
from ewq.instruments.memory import release_free_memory
from ewq.measurement import Json, Metric, TaskResult
from ewq.model import LanguageModel
from ewq.tasks.table import Inputs
from ewq.tasks.throughput import random_prompts

TASK = "memory"


def measure(inputs: Inputs) -> TaskResult:
    """One round of the tier's lengths, after what earlier tasks left behind is given back."""
    release_free_memory()
    sizes = inputs.sizes
    return run(inputs.model(), inputs.load_reading(), sizes.prompt_tokens, sizes.new_tokens)


def run(
    model: LanguageModel,
    load: LoadReading,
    prompt_tokens: int,
    new_tokens: int,
    instrument: MemoryInstrument | None = None,
) -> TaskResult:
    """The peak of one prefill and decode round of a model, and what loading it cost.

    A MeasurementError where the round does not fit the context, or nothing is seen to be in use.
    """
    instrument = instrument or instrument_for(model.info.device)
    what = f"{prompt_tokens} prompt and {new_tokens} new tokens"
    model.info.require_context(prompt_tokens + new_tokens, what)
    prompts = random_prompts(model.info.vocab_size, 1, prompt_tokens)
    with _torch_peaks(model) as torch_peaks, instrument.watch() as watch:
        model.generate(prompts, new_tokens)
        model.synchronize()
    cache_bytes = getattr(model, "cache_bytes", None)
    cache = {}
    if cache_bytes is not None:
        # Between two lengths, so that what a sequence takes by itself is not counted.
        one, two = (
            cache_bytes(prompts[0][:count]) for count in (prompt_tokens // 2, prompt_tokens)
        )
        per_token = (two - one) / (prompt_tokens - prompt_tokens // 2)
        cache = {"cache_bytes_per_1000_tokens": _bytes(round(1000 * per_token))}
    peak, before = watch.peak_bytes, load.device_baseline_bytes
    if peak <= before:
        read = f"{instrument.name} reads {peak} bytes at the peak and {before} before loading"
        raise MeasurementError(f"{read}: something freed memory; measure on an idle machine")
    peak_key = "vram_peak_bytes" if model.info.device.startswith("cuda") else "ram_peak_bytes"
    others = instrument.shared_with()
    shared = f"{others} other processes use the GPU: its memory readings include theirs"
    return TaskResult(
        task=TASK,
        settings={
            "instrument": instrument.name,
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "batch_size": 1,
        },
        metrics={
            "weights_bytes": _bytes(model.info.weights_bytes),
            "bits_per_weight": Metric(model.info.bits_per_weight, "bits", False, 1),
            peak_key: _bytes(peak - before),
            "load_peak_ram_bytes": _bytes(load.load_peak_ram_bytes),
            "load_s": Metric(load.load_s, "s", False, 1),
            **cache,
        },
        notes=(shared,) if others else (),
        side={"baseline_bytes": before, **torch_peaks},
    )


@contextmanager
def _torch_peaks(model: LanguageModel) -> Iterator[dict[str, Json]]:
    """torch's own peaks, to see how much of the device's is its allocator's reserve."""
    peaks: dict[str, Json] = {}
    gpus = gpus_of(model.info.device) if model.info.engine == "transformers" else []
    if not gpus:
        yield peaks
        return
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    yield peaks
    peaks["torch_allocated_peak_bytes"] = sum(map(torch.cuda.max_memory_allocated, gpus))
    peaks["torch_reserved_peak_bytes"] = sum(map(torch.cuda.max_memory_reserved, gpus))


def _bytes(count: int) -> Metric:
    return Metric(float(count), "bytes", False, 1)
