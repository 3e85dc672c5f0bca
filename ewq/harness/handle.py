"""One variant's model over the life of its tests: loaded on first use, freed for certain."""

import gc
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from ewq.data.windows import Window
from ewq.errors import EwqError, MeasurementError
from ewq.harness.loading import Loaded, get_ready, weights_bytes
from ewq.harness.subject import Placement, Subject
from ewq.instruments.gpu import free_memory
from ewq.instruments.load_watch import LoadReading, watch_loading
from ewq.instruments.memory import collect_garbage
from ewq.model import LanguageModel
from ewq.planning.plan import QuantizationPlan
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.variants import Variant

_ALLOCATION_FAILED = ("not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


class OutOfMemory(MeasurementError):
    """A device was too small, which another may not be."""


LoadVariant = Callable[[Variant, Subject, Placement], Loaded]


class VariantHandle:
    """What a test gets instead of a model, which pytest would keep alive beyond its teardown."""

    def __init__(
        self,
        variant: Variant,
        subject: Subject,
        placement: Placement,
        load: LoadVariant,
        progress: Progress = NO_PROGRESS,
    ) -> None:
        self.variant = variant
        self.name = variant.name
        self.window_nll: dict[Window, float] = {}
        """See :class:`ewq.tasks.table.Inputs`."""
        self._subject = subject
        self._placement = placement
        self._load = load
        self._progress = progress
        self._loaded: tuple[Loaded, LoadReading] | None = None
        self._failure: EwqError | None = None

    @property
    def model(self) -> LanguageModel:
        """The loaded model; where loading failed, each use raises the reason again."""
        return self._load_once()[0].model

    @property
    def plan(self) -> QuantizationPlan | None:
        """The plan the model was made by, if any."""
        return self._load_once()[0].plan

    @property
    def notes(self) -> tuple[str, ...]:
        """What the engine and the export have to say, such as a decode loop it could not use."""
        loaded, _ = self._load_once()
        return (*getattr(loaded.model, "notes", ()), *loaded.notes)

    @property
    def load_reading(self) -> LoadReading:
        """Seconds and memory that loading took."""
        return self._load_once()[1]

    def close(self) -> None:
        """Free the model, even where a traceback still refers to it."""
        self._failure = EwqError(f"variant {self.name} was used after it was closed")
        if self._loaded is not None:
            self._loaded[0].model.close()
        self._loaded = None
        # The interpreter's memory of the last failure has frames, which keep models alive.
        for name in ("last_exc", "last_value", "last_type", "last_traceback"):
            if hasattr(sys, name):
                delattr(sys, name)
        collect_garbage()

    def _load_once(self) -> tuple[Loaded, LoadReading]:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self._loaded is None:
            try:
                self._loaded = self._load_watched()
            except EwqError as error:
                self._failure = error
                raise
        return self._loaded

    def _load_watched(self) -> tuple[Loaded, LoadReading]:
        device, needed = self._placement.device, None
        if isinstance(self._subject, Subject):
            get_ready(self.variant, self._subject, self._placement)
            needed = partial(weights_bytes, self.variant, self._subject, self._placement)
        set_libraries_aside()
        load = partial(self._load, self.variant, self._subject, self._placement)
        with (
            step(self._progress, f"loading {self.name}", 1, "model"),
            report_out_of_memory(f"{self.name}, loading", device, needed),
        ):
            return watch_loading(device, load)


def set_libraries_aside() -> None:
    """Keep what is imported, a million objects, out of later collections, at the first call."""
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


@contextmanager
def report_out_of_memory(
    what: str, device: str, needed_bytes: Callable[[], int] | None = None
) -> Iterator[None]:
    """Turn running out of memory into an OutOfMemory that names needed and available bytes.

    ``what`` is the variant and what it was doing; ``needed_bytes`` tells what its weights take.
    """
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not _ran_out(error):
            raise
        reason = str(error)
        # The error below is chained to this one, whose frames keep tensors alive.
        each: BaseException | None = error
        while each is not None:
            traceback.clear_frames(each.__traceback__)
            each = each.__cause__ or each.__context__
    request = re.search(r"tried to allocate ([\d.]+ ?\w*)", reason, re.IGNORECASE)
    asked = request[1] if request else "an unknown amount"
    needed = f" (the weights take {needed_bytes():,} bytes)" if needed_bytes else ""
    free, total = free_memory(device)
    asks = f"{what}: out of memory on {device}: {asked} more needed{needed}"
    raise OutOfMemory(f"{asks}; {free:,} of {total:,} bytes are free; close other programs")


def _ran_out(error: MemoryError | RuntimeError) -> bool:
    """Python's own error, CUDA's error class, or the plain ones of the CPU allocator and cuBLAS."""
    own = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return own or any(sign in str(error) for sign in _ALLOCATION_FAILED)
