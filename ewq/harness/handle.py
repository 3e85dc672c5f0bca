"""One variant's model over the life of its tests: loaded on first use, freed for certain.

Too little memory is an ordinary failure of one variant, with the figures that explain it.
"""

from __future__ import annotations

import gc
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from ewq.errors import EwqError, MeasurementError
from ewq.harness.loading import Loaded, get_ready, weights_bytes
from ewq.harness.subject import Placement, Subject
from ewq.instruments.gpu import gpus_of
from ewq.instruments.memory import collect_garbage
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.variants import Variant

if TYPE_CHECKING:
    from ewq.instruments.load_watch import LoadReading
    from ewq.model import LanguageModel
    from ewq.planning.plan import QuantizationPlan

_REQUEST = re.compile(r"tried to allocate (?P<amount>[\d.]+ ?\w*)", re.IGNORECASE)
_ALLOCATION_FAILED = ("not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
LoadVariant = Callable[[Variant, Subject, Placement], Loaded]


class VariantHandle:
    """What a test gets instead of a model.

    pytest keeps fixture values alive beyond their teardown and a failed test's
    traceback keeps its frames, so a bare model would still be in memory while
    the next one loads. Tests hold the handle; ``close`` empties it.

    Args:
        variant: what to load.
        subject: the model it is a variant of.
        placement: device and compute dtype.
        load: how it is loaded.
        progress: told while it loads.
    """

    def __init__(
        self,
        variant: Variant,
        subject: Subject,
        placement: Placement,
        load: LoadVariant,
        progress: Progress = NO_PROGRESS,
    ) -> None:
        self.variant = variant
        self.loads = 0
        self._subject = subject
        self._placement = placement
        self._load = load
        self._progress = progress
        self._loaded: Loaded | None = None
        self._reading: LoadReading | None = None
        self._failure: EwqError | None = None
        self._closed = False

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.variant.name

    @property
    def model(self) -> LanguageModel:
        """The loaded model. Do not keep it in a variable of a test.

        Raises:
            EwqError: loading failed; it is tried once, later uses repeat the reason.
        """
        return self.load().model

    @property
    def plan(self) -> QuantizationPlan | None:
        """The plan the model was made by; ``None`` where the recipe has none."""
        return self.load().plan

    @property
    def load_reading(self) -> LoadReading:
        """Seconds and memory that loading took."""
        self.load()
        assert self._reading is not None
        return self._reading

    def close(self) -> None:
        """Free the model, even where a traceback still refers to it."""
        self._closed = True
        # A failure's traceback holds what had been loaded before it.
        loaded, self._loaded, self._failure = self._loaded, None, None
        if loaded is not None:
            loaded.model.close()
        del loaded
        forget_last_exception()
        collect_garbage()

    def load(self) -> Loaded:
        """Load now unless loaded already."""
        if self._closed:
            raise EwqError(f"variant {self.name} was used after it was closed")
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self._loaded is None:
            self.loads += 1
            try:
                self._loaded = self._load_watched()
            except EwqError as error:
                self._failure = error
                raise
        return self._loaded

    def _load_watched(self) -> Loaded:
        from ewq.instruments.load_watch import watch_loading

        device, needed = self._placement.device, None
        if isinstance(self._subject, Subject):
            get_ready(self.variant, self._subject, self._placement)
            needed = partial(weights_bytes, self.variant, self._subject, self._placement)
        set_libraries_aside()
        with (
            step(self._progress, f"loading {self.name}", 1, "model"),
            report_out_of_memory(f"{self.name}, loading", device, needed),
        ):
            load = partial(self._load, self.variant, self._subject, self._placement)
            loaded, self._reading = watch_loading(device, load)
        return loaded


def forget_last_exception() -> None:
    """Drop the interpreter's memory of the last failure, whose frames keep models alive."""
    for name in ("last_exc", "last_value", "last_type", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)


def set_libraries_aside() -> None:
    """Keep what is imported out of later collections: a million objects that live to the end.

    Only the first call does: what a model leaves behind must stay collectable.
    ``gc.unfreeze`` undoes it.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


@contextmanager
def report_out_of_memory(
    what: str, device: str, needed_bytes: Callable[[], int] | None = None
) -> Iterator[None]:
    """Turn running out of memory into one line that names needed and available bytes.

    The frames of the original error are cleared: they would keep its tensors alive.

    Args:
        what: the variant and what it was doing.
        device: ``cpu``, ``cuda:0`` or ``cuda:all``.
        needed_bytes: asked, on failure only, what the weights take.

    Raises:
        MeasurementError: memory ran out inside the block.
    """
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not _ran_out(error):
            raise
        reason = str(error)
        # The interpreter chains this error to the one below, and with it all its frames.
        for each in _chain(error):
            traceback.clear_frames(each.__traceback__)
    needed = _needed(reason, needed_bytes() if needed_bytes else None)
    raise MeasurementError(
        f"{what}: out of memory on {device}: {needed}; {_available(device)}; "
        "close other programs or measure a smaller variant"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that led to it: a retry with less memory may have failed before."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _ran_out(error: MemoryError | RuntimeError) -> bool:
    """Python's own error, CUDA's error class, or the plain ones of the CPU allocator and cuBLAS."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError):
        return True
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return any(sign in str(error) for sign in _ALLOCATION_FAILED)


def _needed(reason: str, weights_bytes: int | None) -> str:
    request = _REQUEST.search(reason)
    asked = f"{request['amount']} more needed" if request else "an unknown amount more needed"
    return f"{asked} (the weights take {weights_bytes:,} bytes)" if weights_bytes else asked


def _available(device: str) -> str:
    if gpus := gpus_of(device):
        import torch

        torch.cuda.empty_cache()
        free, total = map(sum, zip(*map(torch.cuda.mem_get_info, gpus), strict=True))
    else:
        import psutil

        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
    return f"{free:,} of {total:,} bytes are free"
