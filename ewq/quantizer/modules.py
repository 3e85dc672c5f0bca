"""The bitsandbytes module that stands for a linear one at each precision, and the way back."""

from typing import Any

import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import nn
from transformers.integrations.bitsandbytes import dequantize_bnb_weight
from transformers.pytorch_utils import Conv1D

from ewq.precision import Precision
from ewq.quantizer.config import StorageOptions

QUANTIZED = (Linear4bit, Linear8bitLt)
CPU_KERNEL_ROWS = 32
"""bitsandbytes' packed kernel for processors wants output rows in multiples of this."""
PLAIN_SUBCLASSES = frozenset({"FalconLinear"})
"""Subclasses of ``Linear`` in transformers that compute the same function."""


def is_linear(module: nn.Module) -> bool:
    """Whether a quantized module can stand for this one; other subclasses of ``Linear`` cannot."""
    kind = type(module)
    return isinstance(module, Conv1D) or kind is nn.Linear or kind.__name__ in PLAIN_SUBCLASSES


def replacement(
    module: nn.Module,
    precision: Precision,
    options: StorageOptions,
    dtype: torch.dtype,
    stored: bool,
) -> nn.Module:
    """A quantized module for a linear one, on the meta device, waiting for its weight.

    4-bit products are computed in ``dtype``; ``stored``: the checkpoint holds quantized values.
    """
    is_four_bit = precision is Precision.FOUR_BIT
    new: Linear4bit | Linear8bitLt
    with torch.device("meta"):
        if is_four_bit:
            new = _four_bit(module, options, dtype)
        else:
            new = Linear8bitLt(
                *_features(module),
                module.bias is not None,
                has_fp16_weights=False,
                threshold=options.int8_threshold,
            )
    if stored:
        new.weight.data = new.weight.data.to(torch.uint8 if is_four_bit else torch.int8)
    # What transformers' own operations read to transpose Conv1D weights.
    new.source_cls = type(module)  # type: ignore[assignment]
    return new.requires_grad_(False).train(module.training)


def _features(module: Any) -> tuple[int, int]:
    """``(in, out)`` of a linear module; ``Conv1D`` stores its weight as ``[in, out]``."""
    if isinstance(module, Conv1D):
        rows, columns = module.weight.shape
        return int(rows), int(columns)
    return int(module.in_features), int(module.out_features)


def _four_bit(module: nn.Module, options: StorageOptions, dtype: torch.dtype) -> Linear4bit:
    new = Linear4bit(  # type: ignore[no-untyped-call]
        *_features(module),
        module.bias is not None,
        compute_dtype=dtype,
        compress_statistics=options.double_quant,
        quant_type=options.quant_type,
    )
    weight: Any = new.weight
    weight.blocksize = options.block_size
    # The kernel rounds activations and scales to bfloat16, and fails on shapes it does not divide.
    fits = new.out_features % CPU_KERNEL_ROWS == 0 and new.in_features % options.block_size == 0
    new.support_avx512bf16_for_cpu &= fits and dtype == torch.bfloat16
    return new


def state_to_save(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as saved: 8-bit weights as a column, which nobody takes for plain ones."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            _undo_repacking(module)
    state: dict[str, torch.Tensor] = model.state_dict()
    for name, module in model.named_modules():
        weight = state.get(f"{name}.weight")
        if isinstance(module, Linear8bitLt) and weight is not None:
            state[f"{name}.weight"] = weight.reshape(-1, 1)
    return state


def _undo_repacking(module: Linear4bit) -> None:
    """Put a weight back in order that bitsandbytes repacked in place, scales included."""
    parameter: Any = module.weight
    state: Any = getattr(parameter, "quant_state", None)
    if not getattr(state, "packing_format_for_cpu", False):
        return
    # float32 and row order before anything is derived from the scales.
    absmax = state.absmax.T.contiguous().to(torch.float32)
    weight, state = _convert_weight_packed_for_cpu_inverse(parameter.data, state)
    if not state.nested:
        state.absmax = absmax.reshape(-1)
    parameter.data, parameter.quant_state, module.quant_state = weight, state, state


def dequantized_weight(module: Any) -> torch.Tensor:
    """The values that a quantized module multiplies with: ``[out, in]``."""
    if isinstance(module, Linear4bit):
        _undo_repacking(module)
    values: torch.Tensor = dequantize_bnb_weight(module.weight, getattr(module, "state", None))
    return values


def dequantize_model(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every quantized module by the plain one it came from, in place."""
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module

    quantized = [(n, m) for n, m in model.named_modules() if isinstance(m, QUANTIZED)]
    for name, module in quantized:
        plain = _plain(module, dequantized_weight(module).to(dtype)).train(module.training)
        # accelerate's, where the model is spread over devices
        hook = getattr(module, "_hf_hook", None)
        if hook is not None:
            remove_hook_from_module(module)
            add_hook_to_module(plain, hook)
        model.set_submodule(name, plain)


def _plain(module: Linear4bit | Linear8bitLt, weight: torch.Tensor) -> nn.Module:
    """The module of the original class; Conv1D keeps its weight transposed and has a bias."""
    new: nn.Module
    with torch.device("meta"):
        if getattr(module, "source_cls", nn.Linear) is Conv1D:
            new = Conv1D(module.out_features, module.in_features)  # type: ignore[no-untyped-call]
            weight = weight.T.contiguous()
        else:
            new = nn.Linear(module.in_features, module.out_features, module.bias is not None)
    new.weight = nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        new.bias = nn.Parameter(module.bias.data.to(weight.dtype), requires_grad=False)
    return new
