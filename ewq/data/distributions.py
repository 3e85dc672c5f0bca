"""The reference's distributions on disk: last hidden states and its head, once; else in full.

A token costs a hidden state, 2.3 KB of SmolLM2-135M, where log-probabilities cost 4 bytes for each
token of the vocabulary, 197 KB. llama.cpp keeps those in 16 bits, which alone makes a model diverge
from itself by 5e-4 nats; nothing is rounded here. Files have no name: whatever ends the process,
the operating system takes their space back.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import linear

from ewq.data.windows import Window
from ewq.errors import InputError, MeasurementError
from ewq.measurement import Json
from ewq.model import ModelInfo

PART_BYTES = 8 * 1024**2
"""Float32 log-probabilities made at a time; a comparison holds two such parts."""
# Room left on the disk beside the files themselves.
_SPARE_BYTES = 256 * 1024**2
_MORE_SPACE = "set EWQ_CACHE to a folder with space"


class Rows:
    """Rows of one width and type on a disk, appended to and read in slices.

    ``folder`` is made where absent; not ``/tmp``, which is memory on many systems. An InputError
    where it cannot be written, a MeasurementError of a disk that fills up.
    """

    def __init__(self, folder: Path, width: int, dtype: torch.dtype) -> None:
        self.width, self.dtype, self.count = width, dtype, 0
        self._folder = folder
        self._copy: NDArray[np.uint8] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a block is large, and nothing is left to be flushed to a full disk.
            self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - kept open
        except OSError as error:
            what = f"cannot write the reference's distributions to {folder}"
            raise InputError(f"{what}: {error.strerror}; {_MORE_SPACE}") from error

    def append(self, rows: torch.Tensor) -> None:
        """Write ``[n, width]`` rows after those there are."""
        if rows.shape[1] != self.width:
            raise MeasurementError(f"rows are {rows.shape[1]} wide instead of {self.width}")
        stored = rows.to("cpu", self.dtype).contiguous()
        left = stored.view(torch.uint8).numpy().data.cast("B")
        try:
            while left:
                left = left[self.file.write(left) :]
        except OSError as error:
            what = f"the reference's distributions stop at {self.count} rows, {self._folder}"
            raise MeasurementError(f"{what}: {error.strerror}; {_MORE_SPACE}") from error
        self.count += len(rows)

    def __getitem__(self, part: slice) -> torch.Tensor:
        """The rows of a slice, in memory mapped for as long as the result lives."""
        begin, end, _ = part.indices(self.count)
        row_bytes = self.width * self.dtype.itemsize
        if self._copy is not None:
            own = self._copy[begin * row_bytes : end * row_bytes].reshape(-1, row_bytes).copy()
            return torch.from_numpy(own).view(self.dtype)
        mapped = np.memmap(self.file, np.uint8, "c", begin * row_bytes, (end - begin, row_bytes))
        return torch.from_numpy(mapped).view(self.dtype)

    def close(self) -> None:
        """Give the disk space back; doing so twice is harmless."""
        if self._copy is None:
            self.file.close()

    def __getstate__(self) -> dict[str, object]:
        """For another process the bytes without the file; Ray keeps them once a node."""
        whole = np.memmap(self.file, np.uint8, "r") if self._copy is None else self._copy
        return {**vars(self), "file": None, "_copy": np.asarray(whole)}


@dataclass(frozen=True)
class Head:
    """What makes logits of last hidden states ``h``: ``cap * tanh(scale * (W h + b) / cap)``."""

    weight: torch.Tensor | Rows
    """``[vocab_size, width]``."""
    bias: torch.Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: torch.Tensor, columns: slice) -> torch.Tensor:
        """Logits ``[n, columns]`` of ``hidden`` ``[n, width]``, in its type as the model's own."""
        place = hidden.device, hidden.dtype
        bias = None if self.bias is None else self.bias[columns].to(*place)
        logits = linear(hidden, self.weight[columns].to(*place), bias)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        return logits.div_(self.cap).tanh_().mul_(self.cap) if self.cap else logits


@dataclass
class Reference:
    """Stored distributions of one model on one text set; to be closed."""

    rows: Rows
    """Last hidden states where there is a head, else log-probabilities."""
    windows: Sequence[Window]
    source: ModelInfo
    """Of the very model that was recorded."""
    settings: Mapping[str, Json]
    """What says which tokens were scored: definition, window and digest of the texts."""
    head: Head | None
    notes: tuple[str, ...] = ()
    """On the windows, for people."""
    normalisers: list[torch.Tensor] = field(default_factory=list)
    """``ln sum exp`` of the logits, where there is a head."""
    own: list[NDArray[np.float64]] = field(default_factory=list)
    """What comparing the model with its record gave, a window each."""

    def append(self, rows: torch.Tensor, normalisers: torch.Tensor | None) -> None:
        """Add a block: hidden states with the normalisers of their logits, or distributions."""
        self.rows.append(rows)
        if normalisers is not None:
            self.normalisers.append(normalisers.cpu())

    def on(self, device: torch.device) -> "Reference":
        """The same with its head in a GPU's memory; on a CPU it stays on the disk."""
        if self.head is None or device.type == "cpu" or isinstance(self.head.weight, torch.Tensor):
            return self
        return replace(self, head=replace(self.head, weight=self.head.weight[:].to(device)))

    def parts(
        self, begin: int, count: int, device: torch.device
    ) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        """Log-probabilities of ``count`` rows from ``begin`` on, in parts of :data:`PART_BYTES`.

        Each is rows (from 0 on), columns, and float32 values that may be overwritten.
        """
        vocabulary, rows = self.source.vocab_size, self.rows[begin : begin + count]
        if self.head is None:
            for some in _slices(count, vocabulary):
                yield some, slice(0, vocabulary), rows[some].to(device, copy=True)
            return
        rows = rows.to(device)
        norms = torch.cat(self.normalisers)[begin : begin + count, None].to(device)
        if rows.dtype == torch.float32:
            for columns in _slices(vocabulary, count):
                yield slice(0, count), columns, self.head.logits(rows, columns).sub_(norms)
            return
        # 16 bits round the logits, and only the product that the model made rounds them alike.
        logits = self.head.logits(rows, slice(0, vocabulary))
        for some in _slices(count, vocabulary):
            yield some, slice(0, vocabulary), logits[some].float().sub_(norms[some])

    def close(self) -> None:
        """Give the disk space back; doing so twice is harmless."""
        self.rows.close()
        if self.head is not None and isinstance(self.head.weight, Rows):
            self.head.weight.close()


def open_reference(
    folder: Path,
    windows: Sequence[Window],
    source: ModelInfo,
    settings: Mapping[str, Json],
    head: Head | None,
) -> Reference:
    """A reference of windows to be, its head stored; an InputError where room is lacking."""
    tokens = sum(window.scored for window in windows)
    weight = torch.empty(0, source.vocab_size) if head is None else head.weight[:]
    width, dtype, weight = weight.shape[1], weight.dtype, _shortest(weight)
    with ExitStack() as on_failure:
        rows = on_failure.enter_context(closing(Rows(folder, width, dtype)))
        require_disk_space(folder, tokens, width * dtype.itemsize, weight.nbytes)
        if head is not None:
            stored = on_failure.enter_context(closing(Rows(folder, width, weight.dtype)))
            stored.append(weight)
            head = replace(head, weight=stored)
        on_failure.pop_all()
    return Reference(rows, windows, source, settings, head)


def require_disk_space(folder: Path, tokens: int, row_bytes: int, beside: int = 0) -> None:
    """Raise an InputError, with what would fit, where ``folder`` cannot take the reference."""
    needed, free = tokens * row_bytes + beside, shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        fitting = max(0, free - _SPARE_BYTES - beside) // row_bytes
        needs = f"the reference's distributions of {tokens} tokens need {needed / 1e9:.1f} GB"
        has = f"{folder} has {free / 1e9:.1f} GB free"
        raise InputError(f"{needs}, {has}: score at most {fitting} tokens or set EWQ_CACHE")


def _slices(length: int, width: int) -> Iterator[slice]:
    """Consecutive slices of ``length`` rows or columns ``width`` float32 values long."""
    step = max(1, PART_BYTES // (4 * width))
    return (slice(begin, min(begin + step, length)) for begin in range(0, length, step))


def _shortest(weight: torch.Tensor) -> torch.Tensor:
    """The same values in 16 bits where these hold them: a CPU computes in more than is stored."""
    for dtype in (torch.bfloat16, torch.float16):
        short = weight.to(dtype)
        if torch.equal(short.to(weight.dtype), weight):
            return short
    return weight
