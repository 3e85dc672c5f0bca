"""What a model costs in bytes and in time to load.

One instrument per kind of device serves every engine, so that engines compare:
the driver's device-level reading on a GPU, the process's resident memory on a
CPU, both above a baseline taken before loading. The peak is read over a round
of its own, since reading costs time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ewq.errors import MeasurementError
from ewq.instruments.gpu import gpus_of
from ewq.instruments.load_watch import LoadReading, instrument_for
from ewq.instruments.memory import MemoryInstrument, release_free_memory
from ewq.measurement import Json, Metric, TaskResult
from ewq.tasks.throughput import SEED, random_prompts

if TYPE_CHECKING:
    from ewq.model import LanguageModel
    from ewq.tasks.table import Inputs

TASK = "memory"


@dataclass(frozen=True)
class Round:
    """The work over which the peak is read: prefill, then decoding."""

    prompt_tokens: int
    new_tokens: int
    batch_size: int = 1


def measure(inputs: Inputs) -> TaskResult:
    """One round of the tier's lengths, after what earlier tasks left behind is given back."""
    release_free_memory()
    work = Round(inputs.sizes.prompt_tokens, inputs.sizes.new_tokens)
    return run(inputs.model(), inputs.load_reading(), work)


def run(
    model: LanguageModel,
    load: LoadReading,
    work: Round,
    instrument: MemoryInstrument | None = None,
) -> TaskResult:
    """Measure one loaded model.

    Metrics: ``weights_bytes`` and ``bits_per_weight`` (exact), ``vram_peak_bytes``
    on a GPU or ``ram_peak_bytes`` on a CPU (peak of a prefill and decode round
    above the baseline before loading), ``load_peak_ram_bytes``, ``load_s``.

    Args:
        model: what ``watch_loading`` gave together with ``load``.
        load: its reading, baselines included.
        work: the round to watch.
        instrument: what reads the memory; default: the device's own.

    Raises:
        MeasurementError: the round does not fit the context, or nothing was seen to be in use.
    """
    instrument = instrument or instrument_for(model.info.device)
    peak, torch_peaks = _peak(model, work, instrument)
    above = peak - load.device_baseline_bytes
    if above <= 0:
        raise MeasurementError(
            f"{instrument.name} reads {peak} bytes at the peak and {load.device_baseline_bytes} "
            "before loading: something else freed memory meanwhile; measure on an idle machine"
        )
    return TaskResult(
        task=TASK,
        settings={
            "instrument": instrument.name,
            "prompt_tokens": work.prompt_tokens,
            "new_tokens": work.new_tokens,
            "batch_size": work.batch_size,
        },
        metrics={
            "weights_bytes": _bytes(model.info.weights_bytes),
            "bits_per_weight": Metric(model.info.bits_per_weight, "bits", False, 1),
            _peak_key(model.info.device): _bytes(above),
            "load_peak_ram_bytes": _bytes(load.load_peak_ram_bytes),
            "load_s": Metric(load.load_s, "s", False, 1),
        },
        notes=_notes(instrument),
        side={"baseline_bytes": load.device_baseline_bytes, **torch_peaks},
    )


def _peak(
    model: LanguageModel, work: Round, instrument: MemoryInstrument
) -> tuple[int, dict[str, Json]]:
    if work.prompt_tokens + work.new_tokens > model.info.context_length:
        raise MeasurementError(
            f"{work.prompt_tokens} prompt and {work.new_tokens} new tokens do not fit the "
            f"model's context of {model.info.context_length}; ask for fewer"
        )
    prompts = random_prompts(model.info.vocab_size, work.batch_size, work.prompt_tokens, SEED)
    _reset_torch_peaks(model)
    with instrument.watch() as watch:
        model.generate(prompts, work.new_tokens)
        model.synchronize()
    return watch.peak_bytes, _torch_peaks(model)


def _has_torch_peaks(model: LanguageModel) -> bool:
    """torch counts only its own allocator's bytes: for other engines it would say zero."""
    return model.info.engine == "transformers" and model.info.device.startswith("cuda")


def _reset_torch_peaks(model: LanguageModel) -> None:
    if _has_torch_peaks(model):
        import torch

        for gpu in gpus_of(model.info.device):
            torch.cuda.reset_peak_memory_stats(gpu)


def _torch_peaks(model: LanguageModel) -> dict[str, Json]:
    """torch's own peaks, to see how much of the device's is the allocator's reserve."""
    if not _has_torch_peaks(model):
        return {}
    import torch

    gpus = gpus_of(model.info.device)
    return {
        "torch_allocated_peak_bytes": sum(map(torch.cuda.max_memory_allocated, gpus)),
        "torch_reserved_peak_bytes": sum(map(torch.cuda.max_memory_reserved, gpus)),
    }


def _peak_key(device: str) -> str:
    return "vram_peak_bytes" if device.startswith("cuda") else "ram_peak_bytes"


def _bytes(count: int) -> Metric:
    return Metric(float(count), "bytes", False, 1)


def _notes(instrument: MemoryInstrument) -> tuple[str, ...]:
    others = instrument.shared_with()
    if not others:
        return ()
    return (f"{others} other processes use the GPU: its memory readings include theirs",)
