"""Out of memory on the device as an error with figures, holding on to nothing."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ewq.errors import MeasurementError

_REQUEST = re.compile(r"[Tt]ried to allocate (?P<bytes>[\d.]+ ?\w*)")


@contextmanager
def memory_failures_named(doing: str) -> Iterator[None]:
    """Turn torch's out-of-memory error into one line with needed and available bytes.

    The frames of the original error are cleared: they would keep its tensors alive.

    Raises:
        MeasurementError: the device's memory ran out while ``doing``.
    """
    import torch

    try:
        yield
        return
    except torch.OutOfMemoryError as error:
        reason = str(error)
        # The interpreter chains this error to the one below, and with it all its frames.
        traceback.clear_frames(error.__traceback__)
    request = _REQUEST.search(reason)
    needed = request["bytes"] if request else "an unknown amount"
    raise MeasurementError(f"out of memory while {doing}: {needed} more needed, {_available()}")


def _available() -> str:
    import torch

    if not torch.cuda.is_available():
        return "available memory unknown"
    free, total = torch.cuda.mem_get_info()
    return f"{free} of {total} bytes available"
