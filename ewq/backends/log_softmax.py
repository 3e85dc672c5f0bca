"""Logarithms of softmax, exact to float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_ROWS = 16
"""Worked on together: few enough for a CPU's caches, which is twice as fast as all at once."""


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """``logits - logsumexp(logits)`` over the last of two dimensions.

    torch's own ``log_softmax`` adds up in float32 on a CPU, one after the other: with 262k tokens
    its results are 3e-5 nats too high, all alike, which is as much as FP16 differs from BF16.
    """
    import torch

    result = torch.empty_like(logits)
    for begin in range(0, len(logits), _ROWS):
        rows, block = logits[begin : begin + _ROWS], result[begin : begin + _ROWS]
        torch.sub(rows, rows.logsumexp(dim=-1, keepdim=True), out=block)
    return result
