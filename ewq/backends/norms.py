"""RMS norms of a recorded step in two kernels, where transformers' own take eight."""

from functools import partial
from inspect import signature
from typing import Any

import torch
from torch.nn.functional import rms_norm

from ewq.backends.int8_step import Forwards


def fused_norms(model: Any) -> Forwards:
    """What replaces the forward of every norm that computes as Llama's.

    torch's is one kernel on CUDA, in float32 as well. Its result is rounded before the weight is
    multiplied, as in transformers, so only the order of its sum differs.
    """
    return [(module, partial(_fused, module)) for module in model.modules() if _is_llamas(module)]


def _fused(module: Any, x: torch.Tensor) -> torch.Tensor:
    normed = rms_norm(x, module.weight.shape, None, module.variance_epsilon)
    scaled: torch.Tensor = module.weight * normed
    return scaled


@torch.no_grad()
def _is_llamas(module: Any) -> bool:
    """Not Gemma's ``1 + weight``, a gate, or a mean subtracted: tried where it is not zero."""
    if not hasattr(module, "variance_epsilon") or len(signature(module.forward).parameters) != 1:
        return False
    weight = module.weight
    x = torch.linspace(-2.0, 3.0, weight.numel(), device=weight.device).to(weight.dtype)
    expected, found = (forward(x.view_as(weight)) for forward in (module, partial(_fused, module)))
    most = 2 * torch.finfo(weight.dtype).eps
    return found.dtype == expected.dtype and torch.allclose(found, expected, rtol=most, atol=0.0)
