"""Exact bytes of a loaded torch model, bitsandbytes' quantization state included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def stored_bytes(model: torch.nn.Module, checkpoint_dtype: torch.dtype | None = None) -> int:
    """Bytes of every distinct stored tensor; tied tensors count once.

    Counted are parameters, persistent buffers and the scales, code tables and
    nested statistics that bitsandbytes keeps beside its packed weights.

    Args:
        model: the loaded model.
        checkpoint_dtype: where the model computes in a wider type than its
            checkpoint has, raw parameters count with the checkpoint's width:
            what a variant weighs is a property of its artefact.
    """
    widths = {id(p): _width(p, checkpoint_dtype) for p in model.parameters()}
    sizes = {
        (tensor.device, tensor.data_ptr(), tensor.numel()): tensor.numel()
        * widths.get(id(tensor), tensor.element_size())
        for tensor in _stored_tensors(model)
        if tensor.numel()
    }
    return sum(sizes.values())


def _width(parameter: torch.Tensor, checkpoint_dtype: torch.dtype | None) -> int:
    """Bytes an element of a parameter takes in the artefact."""
    width = parameter.element_size()
    if checkpoint_dtype is None or not parameter.is_floating_point():
        return width
    return min(width, checkpoint_dtype.itemsize)


def parameter_count(model: torch.nn.Module) -> int:
    """Number of weights as the architecture defines them, whatever they are packed into."""
    return sum(_logical_numel(parameter) for parameter in model.parameters())


def _stored_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    persistent = set(model.state_dict())
    for parameter in model.parameters():
        yield parameter
        yield from _state_tensors(getattr(parameter, "quant_state", None))
        yield from _tensors(getattr(parameter, "SCB", None))
    for name, buffer in model.named_buffers():
        if name in persistent:
            yield buffer
    for module in model.modules():
        # After its first forward pass Linear8bitLt keeps the scales here.
        yield from _tensors(getattr(getattr(module, "state", None), "SCB", None))


def _state_tensors(state: Any) -> Iterator[torch.Tensor]:  # noqa: ANN401 (bitsandbytes is untyped)
    if state is None:
        return
    for name in ("absmax", "code", "offset"):
        yield from _tensors(getattr(state, name, None))
    yield from _state_tensors(getattr(state, "state2", None))


def _tensors(value: Any) -> Iterator[torch.Tensor]:  # noqa: ANN401 (bitsandbytes is untyped)
    import torch

    if isinstance(value, torch.Tensor):
        yield value


def _logical_numel(parameter: torch.Tensor) -> int:
    import math

    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
