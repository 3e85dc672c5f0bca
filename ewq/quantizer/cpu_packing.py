"""Undo bitsandbytes' repacking of 4-bit weights for processors with AVX512-BF16.

Its first forward pass on such a processor rearranges values and scales in
place. Its own way back leaves the scales transposed, so that a model saved
after a forward pass cannot be opened again; here they are put in order.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse
from bitsandbytes.nn.modules import Linear4bit
from torch import nn


def unpack_model(model: nn.Module) -> None:
    """Put every repacked 4-bit weight of a model back in order, in place."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            unpack(module)


def unpack(module: Linear4bit) -> None:
    """Put one repacked weight back in order; scales stay rounded to bfloat16 in value."""
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
