"""Exact bytes of a model with quantized modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import nn


def memory_footprint(model: nn.Module, return_buffers: bool = True) -> int:
    """Bytes of parameters, buffers and quantization states.

    Unlike ``PreTrainedModel.get_memory_footprint`` this counts the scales and
    tables of quantized weights, which are neither parameters nor buffers.

    Args:
        model: any model.
        return_buffers: also count buffers.
    """
    tensors: list[torch.Tensor] = [*model.parameters()]
    if return_buffers:
        tensors.extend(model.buffers())
    for module in model.modules():
        tensors.extend(quantization_state(module))
    return sum(tensor.nelement() * tensor.element_size() for tensor in tensors)


def quantization_state(module: Any) -> Iterator[torch.Tensor]:  # noqa: ANN401 - a module
    """Scales and tables of one quantized module; nothing for any other module."""
    if isinstance(module, Linear8bitLt):
        # The first forward pass moves the scales from the weight to the module's state.
        scales = (getattr(module.weight, "SCB", None), module.state.SCB)
        yield from (scale for scale in scales[:2] if scale is not None)
    elif isinstance(module, Linear4bit) and getattr(module.weight, "quant_state", None):
        weight: Any = module.weight
        state = weight.quant_state
        nested = getattr(state, "state2", None)
        parts = [state.absmax, state.code, getattr(state, "offset", None)]
        parts += [] if nested is None else [nested.absmax, nested.code]
        yield from (part for part in parts if part is not None)
