"""Too little memory is an ordinary failure of one variant, with the figures that explain it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ewq.errors import MeasurementError


@contextmanager
def reported(what: str, device: str, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn running out of memory into one line that names needed and available bytes.

    Args:
        what: the variant and what it was doing.
        device: ``cpu`` or ``cuda:0``.
        needed_bytes: what the weights will take, where that is known beforehand.

    Raises:
        MeasurementError: memory ran out inside the block.
    """
    try:
        yield
    except MemoryError as error:
        raise _explained(what, device, needed_bytes, error) from error
    except RuntimeError as error:
        if not _ran_out(error):
            raise
        raise _explained(what, device, needed_bytes, error) from error


def _ran_out(error: RuntimeError) -> bool:
    """CUDA's own error class, or the CPU allocator's plain one."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return "not enough memory" in str(error)


def _explained(
    what: str, device: str, needed_bytes: int | None, error: BaseException
) -> MeasurementError:
    needed = f"its weights take {needed_bytes:,} bytes" if needed_bytes else str(error)
    first = needed.splitlines()[0] if needed else "allocation refused"
    return MeasurementError(
        f"{what}: out of memory on {device}: {first}; {_available_bytes(device):,} bytes are free; "
        "close other programs, or measure a smaller variant"
    )


def _available_bytes(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
