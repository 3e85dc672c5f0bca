"""The reference's log-probabilities on disk: exact float32, read a few rows at a time.

llama.cpp keeps them in 16 bits, which alone makes a model diverge from itself
by 5e-4 nats. Here a token costs ``4 * vocabulary`` bytes of disk and nothing
of memory: 100,000 tokens of a 152k vocabulary are 61 GB on disk, and never
more than one block of rows in memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

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
    """Stored log-probabilities of one model on one text set."""

    path: Path
    tokens: int
    vocab_size: int
    settings: Mapping[str, Json]
    """Definition, window and digest of the texts: what a variant must share."""

    def rows(self, begin: int, end: int) -> NDArray[np.float32]:
        """A copy of rows ``begin:end``, ``[end - begin, vocab_size]``."""
        rows = np.empty((end - begin, self.vocab_size), dtype=np.float32)
        self.read_into(rows, begin)
        return rows

    def read_into(self, rows: NDArray[np.float32], begin: int) -> None:
        """Fill ``rows`` from row ``begin`` on.

        The file is mapped for the copy only, so its pages never pile up in the process.
        """
        rows[...] = np.memmap(
            self.path,
            dtype=np.float32,
            mode="r",
            offset=begin * self.vocab_size * _ITEM_BYTES,
            shape=rows.shape,
        )

    def delete(self) -> None:
        """Remove the files; doing so twice is harmless."""
        for path in (self.path, _sidecar(self.path)):
            path.unlink(missing_ok=True)


class ReferenceWriter:
    """Writes rows one block after another; the reference exists once all rows are there."""

    def __init__(
        self, path: Path, tokens: int, vocab_size: int, settings: Mapping[str, Json]
    ) -> None:
        require_disk_space(path.parent, tokens, vocab_size)
        self.reference = Reference(path, tokens, vocab_size, dict(settings))
        self._written = 0
        _sidecar(path).unlink(missing_ok=True)
        self._file = path.open("wb")

    def append(self, rows: NDArray[np.float32]) -> None:
        """Add rows ``[n, vocab_size]``.

        Raises:
            MeasurementError: another width than the vocabulary's.
        """
        if rows.shape[1:] != (self.reference.vocab_size,):
            raise MeasurementError(
                f"rows are {rows.shape[1:]} wide, the vocabulary has {self.reference.vocab_size}"
            )
        self._file.write(np.ascontiguousarray(rows, dtype=np.float32).data)
        self._written += len(rows)

    def __enter__(self) -> ReferenceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if error is not None:
            self.reference.delete()
            return
        if self._written != self.reference.tokens:
            self.reference.delete()
            raise MeasurementError(
                f"reference has {self._written} rows instead of {self.reference.tokens}"
            )
        _write_sidecar(self.reference)


def require_disk_space(folder: Path, tokens: int, vocab_size: int) -> None:
    """Check that ``folder`` can take the reference.

    Raises:
        InputError: it cannot; the message says how many tokens would fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = tokens * vocab_size * _ITEM_BYTES
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        fitting = max(0, free - _SPARE_BYTES) // (vocab_size * _ITEM_BYTES)
        raise InputError(
            f"reference log-probabilities of {tokens} tokens need {needed / 1e9:.1f} GB, "
            f"{folder} has {free / 1e9:.1f} GB free: score at most {fitting} tokens "
            "or choose another folder"
        )


def open_reference(path: Path) -> Reference:
    """A reference written earlier.

    Raises:
        InputError: there is none, or its writing was interrupted.
    """
    try:
        data = json.loads(_sidecar(path).read_text())
        reference = Reference(path, data["tokens"], data["vocab_size"], data["settings"])
        complete = path.stat().st_size == reference.tokens * reference.vocab_size * _ITEM_BYTES
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"no complete reference log-probabilities at {path}") from error
    if not complete:
        raise InputError(f"reference log-probabilities at {path} are incomplete; delete them")
    return reference


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _write_sidecar(reference: Reference) -> None:
    data = {
        "tokens": reference.tokens,
        "vocab_size": reference.vocab_size,
        "settings": dict(reference.settings),
    }
    _sidecar(reference.path).write_text(json.dumps(data))
