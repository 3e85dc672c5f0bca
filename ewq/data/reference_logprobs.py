"""The reference's log-probabilities on disk: exact float32, read a few rows at a time.

llama.cpp keeps them in 16 bits, which alone makes a model diverge from itself by 5e-4 nats. Here a
token costs ``4 * vocabulary`` bytes of disk, of a file without a name: whatever ends the process,
the operating system takes its space back.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from ewq.errors import InputError, MeasurementError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ewq.measurement import Json

_ITEM_BYTES = 4
# Room left on the disk beside the file itself.
_SPARE_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Reference:
    """Stored log-probabilities of one model on one text set; to be closed."""

    file: IO[bytes]
    tokens: int
    vocab_size: int
    settings: Mapping[str, Json]
    """Definition, window and digest of the texts: what a variant must share."""

    def read_into(self, rows: NDArray[np.float32], begin: int) -> None:
        """Fill ``rows`` from row ``begin`` on."""
        # Mapped for the copy only, so that pages never pile up in the process.
        offset = begin * self.vocab_size * _ITEM_BYTES
        rows[...] = np.memmap(self.file, np.float32, "r", offset, rows.shape)

    def close(self) -> None:
        """Give the disk space back; doing so twice is harmless."""
        self.file.close()


def write_reference(
    folder: Path,
    tokens: int,
    vocab_size: int,
    settings: Mapping[str, Json],
    blocks: Iterable[NDArray[np.float32]],
) -> Reference:
    """Store ``blocks`` of rows, together ``[tokens, vocab_size]``.

    ``folder`` lies on a disk (``/tmp`` is memory on many systems) and is made where absent.

    Raises:
        InputError: the folder cannot be written, or has no room for all rows.
        MeasurementError: rows of another width or number, or a disk that filled up meanwhile.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_disk_space(folder, tokens, vocab_size)
        # Unbuffered: a block is large, and nothing is left to be flushed to a full disk.
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - kept open
    except OSError as error:
        raise InputError(
            f"cannot write reference log-probabilities to {folder}: {error.strerror}; "
            "set EWQ_CACHE to a folder with space"
        ) from error
    written = 0
    with ExitStack() as on_failure:
        on_failure.callback(file.close)
        for rows in blocks:
            if rows.shape[1:] != (vocab_size,):
                raise MeasurementError(
                    f"rows are {rows.shape[1:]} wide, the vocabulary has {vocab_size}"
                )
            left = np.ascontiguousarray(rows, dtype=np.float32).data.cast("B")
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError as error:
                raise MeasurementError(
                    f"reference log-probabilities stop at {written} of {tokens} tokens, {folder}: "
                    f"{error.strerror}; set EWQ_CACHE to a folder with space"
                ) from error
            written += len(rows)
        if written != tokens:
            raise MeasurementError(f"reference has {written} rows instead of {tokens}")
        on_failure.pop_all()
    return Reference(file, tokens, vocab_size, settings)


def require_disk_space(folder: Path, tokens: int, vocab_size: int) -> None:
    """Raise an InputError, with what would fit, where ``folder`` cannot take the reference."""
    needed = tokens * vocab_size * _ITEM_BYTES
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        fitting = max(0, free - _SPARE_BYTES) // (vocab_size * _ITEM_BYTES)
        raise InputError(
            f"reference log-probabilities of {tokens} tokens need {needed / 1e9:.1f} GB, "
            f"{folder} has {free / 1e9:.1f} GB free: score at most {fitting} tokens "
            "or set EWQ_CACHE to a folder with more"
        )
