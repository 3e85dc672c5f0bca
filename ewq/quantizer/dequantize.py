"""Back from quantized modules to plain linear ones."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import nn
from transformers.pytorch_utils import Conv1D

from ewq.quantizer.cpu_packing import unpack
from ewq.quantizer.ops import QUANTIZED


def dequantized_weight(module: Any) -> torch.Tensor:  # noqa: ANN401 - a quantized module
    """The values that a quantized module multiplies with: ``[out, in]``."""
    if isinstance(module, Linear4bit):
        unpack(module)
        weight: Any = module.weight
        return dequantize_4bit(weight.data, weight.quant_state)
    scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
    values: torch.Tensor = int8_vectorwise_dequant(module.weight.data, scales)
    return values


def dequantize_model(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every quantized module by the plain one it came from, in place."""
    quantized = [(n, m) for n, m in model.named_modules() if isinstance(m, QUANTIZED)]
    for name, module in quantized:
        plain = _plain(module, dequantized_weight(module).to(dtype)).train(module.training)
        _move_hook(module, plain)
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


def _move_hook(old: nn.Module, new: nn.Module) -> None:
    """Keep accelerate's device hook where the model is spread over devices."""
    hook = getattr(old, "_hf_hook", None)
    if hook is not None:
        from accelerate.hooks import add_hook_to_module, remove_hook_from_module

        remove_hook_from_module(old)
        add_hook_to_module(new, hook)
