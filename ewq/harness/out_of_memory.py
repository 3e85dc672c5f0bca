"""Too little memory is an ordinary failure of one variant, with the figures that explain it."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ewq.errors import MeasurementError
from ewq.instruments.gpu import gpus_of

_REQUEST = re.compile(r"tried to allocate (?P<amount>[\d.]+ ?\w*)", re.IGNORECASE)


@contextmanager
def reported(
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
        "close other programs, or measure a smaller variant"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that led to it: a retry with less memory may have failed before."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _ran_out(error: MemoryError | RuntimeError) -> bool:
    """Python's own error, CUDA's error class, or the CPU allocator's plain one."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError):
        return True
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return "not enough memory" in str(error)


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
