"""Time and memory of loading a model, and the baselines its later peaks are read against."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from types import TracebackType

from ewq.errors import MeasurementError
from ewq.instruments.gpu import SeveralGpus, gpus_of, open_gpus
from ewq.instruments.memory import (
    MemoryInstrument,
    PeakWatch,
    ProcessMemory,
    release_free_memory,
)

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
    """Peak resident memory while loading, above the baseline."""
    ram_baseline_bytes: int
    """Resident memory before loading, freed memory given back."""
    device_baseline_bytes: int
    """Bytes in use before loading by the instrument of the model's device."""


class LoadWatch:
    """``with LoadWatch(device) as watch: model = load()`` and then ``watch.reading``.

    Args:
        device: where the model goes, ``cpu``, ``cuda:N`` or ``cuda:all``. A CUDA context is created
            before the baseline is read.
        libraries: modules imported before the clock starts.
    """

    def __init__(self, device: str, libraries: tuple[str, ...] = _LIBRARIES) -> None:
        self._device = device
        self._libraries = libraries
        self._reading: LoadReading | None = None
        self._ram_watch: PeakWatch
        self._ram_baseline = self._device_baseline = 0
        self._started_s = 0.0

    @property
    def reading(self) -> LoadReading:
        """What loading cost.

        Raises:
            MeasurementError: loading has not ended, or failed.
        """
        if self._reading is None:
            raise MeasurementError("the model was not loaded inside its LoadWatch")
        return self._reading

    def __enter__(self) -> LoadWatch:
        for library in self._libraries:
            importlib.import_module(library)
        memory = ProcessMemory()
        release_free_memory()
        if gpus_of(self._device):
            import torch

            # What was computed before would hide what is loaded now.
            torch.cuda.empty_cache()
        self._device_baseline = instrument_for(self._device).used_bytes()
        self._ram_baseline = memory.used_bytes()
        self._ram_watch = memory.watch()
        self._ram_watch.__enter__()
        self._started_s = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            _synchronize(self._device)
        load_s = time.perf_counter() - self._started_s
        self._ram_watch.__exit__(kind, error, trace)
        if error is None:
            self._reading = LoadReading(
                load_s=load_s,
                load_peak_ram_bytes=max(0, self._ram_watch.peak_bytes - self._ram_baseline),
                ram_baseline_bytes=self._ram_baseline,
                device_baseline_bytes=self._device_baseline,
            )


def instrument_for(device: str) -> MemoryInstrument:
    """The one instrument of a kind of device, the same for every engine.

    Raises:
        MeasurementError: a device without an instrument.
    """
    if device == "cpu":
        return ProcessMemory()
    if gpus := open_gpus(device):
        return gpus[0] if len(gpus) == 1 else SeveralGpus(gpus)
    raise MeasurementError(f"no instrument reads the memory of device {device!r}; use cpu or cuda")


def _synchronize(device: str) -> None:
    for gpu in gpus_of(device):
        import torch

        torch.cuda.synchronize(gpu)
