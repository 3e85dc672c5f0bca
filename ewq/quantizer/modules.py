"""The bitsandbytes module that stands for a linear one at each precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt, Params4bit
from torch import nn
from transformers.pytorch_utils import Conv1D

from ewq.precision import Precision
from ewq.quantizer.options import Options

CPU_KERNEL_ROWS = 32
"""bitsandbytes' packed kernel for processors wants output rows in multiples of this."""


PLAIN_SUBCLASSES = frozenset({"FalconLinear"})
"""Subclasses of ``Linear`` in transformers that compute the same function."""


def is_linear(module: nn.Module) -> bool:
    """Whether a quantized module can stand for this one; other subclasses of ``Linear`` cannot."""
    kind = type(module)
    return isinstance(module, Conv1D) or kind is nn.Linear or kind.__name__ in PLAIN_SUBCLASSES


def features(module: Any) -> tuple[int, int]:  # noqa: ANN401 - a linear module
    """``(in, out)`` of a linear module; ``Conv1D`` stores its weight as ``[in, out]``."""
    if isinstance(module, Conv1D):
        rows, columns = module.weight.shape
        return int(rows), int(columns)
    return int(module.in_features), int(module.out_features)


def four_bit(module: nn.Module, options: Options, dtype: torch.dtype) -> Linear4bit:
    """An empty 4-bit module in place of ``module``, on the current default device."""
    rows_in, rows_out = features(module)
    new = Linear4bit(  # type: ignore[no-untyped-call]
        rows_in,
        rows_out,
        module.bias is not None,
        compute_dtype=dtype,
        compress_statistics=options.double_quant,
        quant_type=options.quant_type,
    )
    new.weight = Params4bit(
        new.weight.data,
        requires_grad=False,
        blocksize=options.block_size,
        compress_statistics=options.double_quant,
        quant_type=options.quant_type,
        module=new,
    )
    new.support_avx512bf16_for_cpu = _packs(new, options.block_size, dtype)
    return new


def _packs(module: Linear4bit, block_size: int, dtype: torch.dtype) -> bool:
    """Whether bitsandbytes may repack this weight for its bfloat16 kernel on processors.

    That kernel rounds activations and scales to bfloat16 whatever the compute
    dtype, cannot be trained through, and fails on shapes it does not divide.
    So it serves where bfloat16 was asked for and the shape fits.
    """
    fits = module.out_features % CPU_KERNEL_ROWS == 0 and module.in_features % block_size == 0
    return bool(module.support_avx512bf16_for_cpu) and fits and dtype == torch.bfloat16


def eight_bit(module: nn.Module, options: Options, dtype: torch.dtype) -> Linear8bitLt:
    """An empty LLM.int8 module in place of ``module``; ``dtype`` does not matter to it."""
    rows_in, rows_out = features(module)
    return Linear8bitLt(
        rows_in,
        rows_out,
        module.bias is not None,
        has_fp16_weights=False,
        threshold=options.int8_threshold,
    )


REPLACEMENTS: Mapping[Precision, Callable[[nn.Module, Options, torch.dtype], nn.Module]] = {
    Precision.EIGHT_BIT: eight_bit,
    Precision.FOUR_BIT: four_bit,
}
STORED_DTYPES = {Precision.EIGHT_BIT: torch.int8, Precision.FOUR_BIT: torch.uint8}


def replacement(
    module: nn.Module, precision: Precision, options: Options, dtype: torch.dtype, stored: bool
) -> nn.Module:
    """A quantized module on the meta device, waiting for its weight.

    Args:
        module: ``nn.Linear`` or ``Conv1D``, on the meta device.
        precision: 8 or 4 bits.
        options: how to store it.
        dtype: of 4-bit products.
        stored: the checkpoint holds quantized values already.
    """
    with torch.device("meta"):
        new = REPLACEMENTS[precision](module, options, dtype)
    if stored:
        new.weight.data = new.weight.data.to(dtype=STORED_DTYPES[precision])
    # What transformers' own operations read to transpose Conv1D weights.
    new.source_cls = type(module)  # type: ignore[assignment]
    return new.requires_grad_(False).train(module.training)
