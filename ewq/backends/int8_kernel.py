"""LLM.int8's product of a few rows in two kernels, outlier columns inline whatever their number.

The matrix is read once, as int8. Imported only where Triton is (it comes with torch for CUDA).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LINES = 16
"""Rows of the matrix that one program takes."""
PRODUCTS = 16384
"""Products that one program holds at a time: of twice as many its registers spill."""


def int8_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    threshold: float,
) -> torch.Tensor:
    """What bitsandbytes' ``MatMul8bitLt`` computes at inference, in float32 and rounded once.

    Of contiguous ``x`` ``[rows, in]`` and int8 ``weight`` ``[out, in]`` with float32 ``scales``
    ``[out]``, its rows' largest magnitudes; columns from ``threshold`` on stay unquantized.
    """
    (rows, columns), outputs = x.shape, weight.shape[0]
    values = torch.empty(rows, columns, dtype=torch.int8, device=x.device)
    largest = torch.empty(rows, dtype=torch.float32, device=x.device)
    raw = torch.empty_like(x)
    result = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    padded, width = triton.next_power_of_2(rows), triton.next_power_of_2(columns)
    step = min(PRODUCTS // (LINES * padded), width)
    # Kernels run on the current GPU, which need not be the input's.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _quantize[(rows,)](x, values, raw, largest, threshold, rows, columns, width=width)
        _multiply[(triton.cdiv(outputs, LINES),)](
            *(values, raw, largest, weight, scales, scales if bias is None else bias, result),
            *(rows, columns, outputs),
            padded=padded,
            lines=LINES,
            step=step,
            has_bias=bias is not None,
        )
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _quantize(
    x: tl.tensor,
    values: tl.tensor,
    raw: tl.tensor,
    largest: tl.tensor,
    threshold: float,
    rows: int,
    columns: int,
    width: tl.constexpr,
) -> None:
    """One row: int8 values, their scale, and what stays unquantized; the rest of both is zero."""
    row = tl.program_id(0)
    column = tl.arange(0, width)
    present = column < columns
    is_raw = tl.zeros([width], tl.int1)
    for other in range(rows):
        half = tl.load(x + other * columns + column, mask=present, other=0.0).to(tl.float16)
        is_raw = is_raw | (tl.abs(half.to(tl.float32)) >= threshold)
    mine = tl.load(x + row * columns + column, mask=present, other=0.0)
    half = mine.to(tl.float16).to(tl.float32)
    scale = tl.max(tl.where(tl.abs(half) >= threshold, 0.0, tl.abs(half)), axis=0)
    scaled = half * (1.0 / tl.where(scale == 0.0, 1.0, scale) * 127.0)
    above = tl.floor(scaled + 0.5)
    is_odd = above - 2.0 * tl.floor(above * 0.5) == 1.0
    # To the nearest, ties to even.
    rounded = tl.where((above - scaled == 0.5) & is_odd, above - 1.0, above)
    value = tl.where(is_raw, 0.0, rounded).to(tl.int8)
    tl.store(values + row * columns + column, value, mask=present)
    tl.store(raw + row * columns + column, tl.where(is_raw, mine, 0.0), mask=present)
    tl.store(largest + row, scale)


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(
    values: tl.tensor,
    raw: tl.tensor,
    largest: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    result: tl.tensor,
    rows: int,
    columns: int,
    outputs: int,
    padded: tl.constexpr,
    lines: tl.constexpr,
    step: tl.constexpr,
    has_bias: tl.constexpr,
) -> None:
    """Some outputs of all rows: the int8 products, and the unquantized ones where there are any."""
    row = tl.arange(0, padded)
    line = tl.program_id(0) * lines + tl.arange(0, lines)
    known = line < outputs
    scale = tl.load(scales + line, mask=known, other=0.0)
    whole = tl.zeros([padded, lines], tl.int32)
    apart = tl.zeros([padded, lines], tl.float32)
    for start in range(0, columns, step):
        column = start + tl.arange(0, step)
        there = column < columns
        at = row[:, None] * columns + column[None, :]
        inside = (row[:, None] < rows) & there[None, :]
        place = line[:, None].to(tl.int64) * columns + column[None, :]
        stored = tl.load(weight + place, mask=known[:, None] & there[None, :], other=0)
        value = tl.load(values + at, mask=inside, other=0).to(tl.int32)
        whole += tl.sum(value[:, None, :] * stored.to(tl.int32)[None, :, :], axis=2)
        left = tl.load(raw + at, mask=inside, other=0.0)
        if tl.max(tl.max(tl.abs(left.to(tl.float32)), axis=1), axis=0) > 0:
            # The weights as bitsandbytes multiplies them: dequantised, then in the input's type.
            actual = (stored.to(tl.float32) * (scale[:, None] / 127.0)).to(left.dtype)
            product = left.to(tl.float32)[:, None, :] * actual.to(tl.float32)[None, :, :]
            apart += tl.sum(product, axis=2)
    factor = tl.load(largest + row, mask=row < rows, other=0.0)
    # bitsandbytes' own digits of 1 / 127**2.
    total = whole.to(tl.float32) * (factor[:, None] * scale[None, :]) * 6.200124e-05 + apart
    if has_bias:
        total += tl.load(bias + line, mask=known, other=0.0).to(tl.float32)[None, :]
    where = row[:, None] * outputs + line[None, :]
    tl.store(result + where, total, mask=(row[:, None] < rows) & known[None, :])
