"""RMS norms of a decode step in two kernels, where transformers' own take eight."""

import inspect
from functools import partial
from typing import Any

import torch
from torch.nn.functional import rms_norm

from ewq.backends.int8_step import Forwards


def fused_norms(model: Any) -> Forwards:
    """What replaces the forward of every norm that is computed as Llama's.

    torch's own is one kernel on CUDA and also computes in float32. Its result is rounded before the
    weight is multiplied, as in transformers, so only the order of its sum differs. Left alone are
    norms of another formula (Gemma's ``1 + weight``, a mean that is subtracted, a gate).
    """
    found = [(module, partial(_fused, module)) for module in model.modules() if _is_plain(module)]
    return [(module, forward) for module, forward in found if _agrees(module, forward)]


def _fused(module: Any, x: torch.Tensor) -> torch.Tensor:
    weight: torch.Tensor = module.weight
    return weight * rms_norm(x, weight.shape, None, module.variance_epsilon)


def _is_plain(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    known = hasattr(module, "variance_epsilon") and isinstance(weight, torch.Tensor)
    return known and weight.dim() == 1 and len(inspect.signature(module.forward).parameters) == 1


@torch.no_grad()
def _agrees(module: Any, forward: Any) -> bool:
    """Within the rounding of the weights' type, on values whose mean is not zero."""
    weight = module.weight
    x = torch.linspace(-2.0, 3.0, len(weight), device=weight.device).to(weight.dtype)
    expected, found = module(x[None]), forward(x[None])
    most = 2 * torch.finfo(weight.dtype).eps
    return found.dtype == expected.dtype and torch.allclose(found, expected, rtol=most, atol=0.0)
