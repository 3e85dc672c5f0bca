"""Rows of different lengths as one rectangle, with positions and masks made explicit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Padding(StrEnum):
    """The side on which short rows are filled."""

    RIGHT = "right"
    LEFT = "left"


@dataclass(frozen=True)
class PaddedRows:
    """One batch, ready for the model."""

    ids: torch.Tensor
    """``[rows, width]`` token ids."""
    positions: torch.Tensor
    """``[rows, width]`` position of each token in its own sequence."""
    mask: torch.Tensor | None
    """``[rows, shared + width]``, 1 where there is a token; ``None`` where nothing is padded."""
    keep: torch.Tensor
    """``[rows, width]`` bool: positions whose logits are needed."""


def pad_rows(
    rows: Sequence[Sequence[int]], kept: Sequence[int], shared: int, side: Padding
) -> PaddedRows:
    """Pad rows to the longest of them.

    Args:
        rows: token ids, at least one each.
        kept: how many of each row's last positions need logits.
        shared: tokens before every row, already in the cache.
        side: where the padding goes.
    """
    import torch

    width = max(len(row) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    real = torch.zeros((len(rows), width), dtype=torch.bool)
    keep = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, (row, count) in enumerate(zip(rows, kept, strict=True)):
        begin = 0 if side is Padding.RIGHT else width - len(row)
        end = begin + len(row)
        ids[index, begin:end] = torch.tensor(row)
        real[index, begin:end] = True
        keep[index, end - count : end] = True
    positions = shared + (real.long().cumsum(dim=1) - 1).clamp(min=0)
    seen = torch.ones((len(rows), shared), dtype=torch.bool)
    mask = None if real.all() else torch.cat([seen, real], dim=1).long()
    return PaddedRows(ids, positions, mask, keep)
