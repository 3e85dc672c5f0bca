"""From the values of one weight to its statistics.

Values come as parts, flat arrays in stored order, so that memory follows the size of a part and
not of the weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ewq.entropy import kernels
from ewq.entropy.statistics import (
    HISTOGRAM_BINS,
    UnmeasurableError,
    WeightStatistics,
    bin_edges,
    from_counts,
    from_sums,
)

if TYPE_CHECKING:
    import torch

Values = NDArray[np.generic]
"""Flat: uint16 bit patterns of 16-bit floats, else float32 or float64."""
FULL = 2**31
"""Values that 32-bit counts take for certain before they are moved on."""
CHUNK_VALUES = 32 * 1024
"""Fit the processor's cache."""
NF4_BLOCK = 64
NF4_CHUNK = 2**20
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The NF4 code (QLoRA, arXiv 2305.14314, appendix E), as bitsandbytes stores it."""


class NotFiniteError(UnmeasurableError):
    """The weight holds NaN or infinity."""


@cache
def values_of_patterns(dtype: str) -> NDArray[np.float32]:
    """The value of each 16-bit pattern, ``[65536]`` float32, for ``BF16`` or ``F16``."""
    bits = np.arange(kernels.PATTERNS, dtype=np.uint16)
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def measure_patterns(
    parts: Iterable[Values], dtype: str, device: str | None = None
) -> WeightStatistics:
    """Statistics of a 16-bit weight (``BF16`` or ``F16``), given as bit patterns, in one pass.

    There are only 65,536 values: how often each occurs tells everything exactly. A NotFiniteError
    of NaN or infinity.
    """
    counts = _counted(parts) if device is None else _counted_on(device, parts)
    values = values_of_patterns(dtype)
    if counts[~np.isfinite(values)].any():
        raise NotFiniteError
    return from_counts(values, counts)


def _counted(parts: Iterable[Values]) -> NDArray[np.int64]:
    """How often each pattern occurs, ``[65536]``."""
    counts = np.zeros((kernels.TABLES, kernels.PATTERNS), np.uint32)
    total = np.zeros(kernels.PATTERNS, np.int64)
    counted = 0
    for part in parts:
        if counted + part.size >= FULL:
            total += counts.sum(0, dtype=np.int64)
            counts[:] = 0
            counted = 0
        kernels.count_patterns(part, counts)
        counted += part.size
    total += counts.sum(0, dtype=np.int64)
    return total


def _counted_on(device: str, parts: Iterable[Values]) -> NDArray[np.int64]:
    import torch

    total = torch.zeros(kernels.PATTERNS, dtype=torch.int64, device=device)
    for part in parts:
        total += count_patterns(torch.from_numpy(part.view(np.int16)).to(device))
    return np.asarray(total.cpu().numpy())


def count_patterns(bits: torch.Tensor) -> torch.Tensor:
    """How often each pattern occurs in ``bits`` (int16, flat), ``[65536]`` int64 on its device."""
    import torch

    return torch.bincount(bits.int() & (kernels.PATTERNS - 1), minlength=kernels.PATTERNS)


def measure_floats(parts: Callable[[], Iterable[Values]], in_features: int) -> WeightStatistics:
    """Statistics of a float32 or float64 weight in two passes over ``parts()``.

    A NotFiniteError of NaN or infinity, an UnmeasurableError of a float64 value beyond float32 or
    of no 256 bins between the values.
    """
    # About CHUNK_VALUES in whole rows: sums, rounded chunk by chunk, then repeat exactly.
    step = math.lcm(in_features, NF4_BLOCK)
    length = step * max(1, CHUNK_VALUES // step)
    extents = [kernels.extent(chunk) for chunk in _chunks(parts(), length)]
    if not all(extent[4] for extent in extents):
        raise NotFiniteError
    numel = sum(part.size for part in parts())
    minimum = min(extent[0] for extent in extents)
    maximum = max(extent[1] for extent in extents)
    if max(-float(minimum), float(maximum)) > float(np.finfo(np.float32).max):
        raise UnmeasurableError("has values beyond float32, which no quantized format can hold")
    mean = math.fsum(extent[2] for extent in extents) / numel
    edges = bin_edges(minimum, maximum, next(iter(parts())).dtype)
    histogram = np.zeros(HISTOGRAM_BINS, np.int64)
    sums: list[Sequence[float]] = []
    for chunk in _chunks(parts(), length):
        kernels.count_bins(chunk, edges, histogram)
        sums.append(kernels.moments(chunk, mean, float(maximum)))
    second, fourth, mass, weighted = (math.fsum(column) for column in zip(*sums, strict=True))
    return from_sums(
        numel=numel,
        minimum=float(minimum),
        maximum=float(maximum),
        mean=mean,
        second=second,
        fourth=fourth,
        zeros=sum(int(extent[3]) for extent in extents),
        histogram=histogram,
        mass=mass,
        weighted=weighted,
    )


def _chunks(parts: Iterable[Values], length: int) -> Iterator[Values]:
    for part in parts:
        for start in range(0, part.size, length):
            yield part[start : start + length]


def nf4_square_error(parts: Iterable[Values], dtype: str) -> float:
    """``sum (w - NF4(w))**2`` of parts of a stored dtype, with a scale for each 64 values.

    All parts but the last hold whole blocks of 64.
    """
    return math.fsum(_nf4_square_error(chunk, dtype) for chunk in _chunks(parts, NF4_CHUNK))


def _nf4_square_error(chunk: Values, dtype: str) -> float:
    import torch

    values = torch.from_numpy(chunk.view(np.int16) if dtype in ("BF16", "F16") else chunk)
    if dtype in ("BF16", "F16"):
        values = values.view(torch.bfloat16 if dtype == "BF16" else torch.float16)
    levels = torch.tensor(NF4_LEVELS)
    padding = -values.numel() % NF4_BLOCK
    blocks = torch.nn.functional.pad(values.float(), (0, padding)).view(-1, NF4_BLOCK)
    top = blocks.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    nearest = levels[torch.bucketize(blocks / top, (levels[1:] + levels[:-1]) / 2)]
    return float(((nearest * top - blocks).double() ** 2).sum())
