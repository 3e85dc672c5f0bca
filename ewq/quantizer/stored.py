"""How quantized weights lie in a saved folder."""

from __future__ import annotations

import torch
from bitsandbytes.nn.modules import Linear8bitLt
from torch import nn

from ewq.quantizer.cpu_packing import unpack_model


def state_to_save(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as saved: 8-bit weights as one column, as bitsandbytes has 4-bit ones.

    In their own shape a transformers that does not know this method would read
    them as plain weights and build a model of noise; a column it refuses.
    """
    unpack_model(model)
    state: dict[str, torch.Tensor] = model.state_dict()
    for name, module in model.named_modules():
        weight = state.get(f"{name}.weight")
        if isinstance(module, Linear8bitLt) and weight is not None:
            state[f"{name}.weight"] = weight.reshape(-1, 1)
    return state


def in_shape(module: Linear8bitLt, weight: torch.Tensor) -> torch.Tensor:
    """A saved 8-bit weight as ``[out, in]``."""
    return weight.reshape(module.out_features, module.in_features)
