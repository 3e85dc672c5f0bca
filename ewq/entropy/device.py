"""Counting and rounding on a device that torch can use, for 16-bit weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ewq.entropy import kernels
from ewq.entropy.chunks import Piece
from ewq.entropy.measure import statistics_of_counts
from ewq.entropy.pattern_count import count_patterns
from ewq.entropy.statistics import WeightStatistics
from ewq.errors import BackendUnavailable

if TYPE_CHECKING:
    import torch


def check_device(name: str) -> None:
    """Make sure torch can compute on ``name``.

    Raises:
        BackendUnavailable: it cannot.
    """
    import torch

    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise BackendUnavailable(
            f"cannot count on {name!r} ({reason}); leave --device out"
        ) from error


def measure_patterns_on(device: str, pieces: Iterable[Piece], dtype: str) -> WeightStatistics:
    """Statistics of a 16-bit weight (``BF16`` or ``F16``), counted and rounded on ``device``.

    Raises:
        NotFiniteError: a value is NaN or infinite.
    """
    import torch

    total = np.zeros(kernels.PATTERNS, np.int64)
    nf4, int8 = 0.0, 0.0
    for piece in pieces:
        bits = torch.from_numpy(piece.values.view(np.int16)).to(device)
        total += count_patterns(bits).cpu().numpy()
        errors = rounding_errors(bits, dtype, piece.in_features)
        nf4 += errors[0]
        int8 += errors[1]
    return statistics_of_counts(total, dtype, nf4, int8)


def rounding_errors(bits: torch.Tensor, dtype: str, in_features: int) -> tuple[float, float]:
    """Squared errors of NF4 and of int8 rounding, as :func:`ewq.entropy.kernels.square_errors`.

    Args:
        bits: int16 patterns of ``dtype``, flat, whole rows.
        dtype: ``BF16`` or ``F16``.
        in_features: values in a row.
    """
    import torch

    values = bits.view(torch.bfloat16 if dtype == "BF16" else torch.float16).float()
    return _nf4_square_error(values), _int8_square_error(values, in_features)


def _nf4_square_error(values: torch.Tensor) -> float:
    import torch

    levels = torch.tensor(kernels.NF4_LEVELS, device=values.device)
    short = -values.numel() % kernels.NF4_BLOCK
    blocks = torch.nn.functional.pad(values, (0, short)).view(-1, kernels.NF4_BLOCK)
    top = blocks.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    unit = blocks / top
    nearest = levels[torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2)]
    return float((((nearest - unit) * top).double() ** 2).sum())


def _int8_square_error(values: torch.Tensor, in_features: int) -> float:
    import torch

    rows = values.view(-1, in_features)
    step = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    unit = rows / step
    return float((((unit.round() - unit) * step).double() ** 2).sum())
