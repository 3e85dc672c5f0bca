"""Sums over one sequence: squared gradients by row, squared inputs by column, of every matrix.

A matrix's gradient exists for a moment only: autograd hands it over as soon as all its uses are
accounted for, it is reduced to its sums and let go. Decoder blocks are checkpointed, so that the
activations of one block at a time are in memory.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from ewq.errors import MeasurementError

INT8_OUTLIER = 6.0
"""bitsandbytes' threshold."""

Floats = NDArray[np.float64]


@dataclass
class Sums:
    """What is summed up for one matrix, or for a stack of experts' matrices."""

    rows: Floats
    """``[experts, rows]``: squared sequence gradients, summed over columns and sequences."""
    columns: Floats
    """``[experts, columns]``: the same summed over rows."""
    inputs: Floats
    """``[experts, columns]``: squared inputs, summed over tokens; 0 where it is only looked up."""
    tokens: Floats
    """``[experts]``: tokens that reached it."""
    input_rounding: Floats
    """``[1]``: squared gradients with respect to inputs times the variance that rounding these to
    8 bits has, as LLM.int8 does."""


class GradientSums:
    """Sums of all matrices of a model, filled sequence by sequence.

    Args:
        model: a causal language model in evaluation mode; its parameters are left requiring
            gradients where they are matrices.
        blocks: names of its decoder blocks, to be checkpointed.
    """

    def __init__(self, model: torch.nn.Module, blocks: Sequence[str]) -> None:
        self._model = model
        self._names = _matrices(model)
        self._flipped = _stored_in_by_out(model)
        self.sums = {
            name: _no_sums(_shape(parameter, name in self._flipped))
            for name, parameter in self._names.items()
        }
        self._squares: dict[str, float] = {}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self._names)
            if name in self._names:
                hook: Any = partial(self._reduce, name)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        for block in blocks:
            _checkpoint(model.get_submodule(block))
        self._inputs = InputWatch(self._names, self._sum_inputs)

    def add(self, ids: Sequence[int], seed: int) -> Mapping[str, float]:
        """Run one sequence with labels sampled from the model's own distributions.

        Returns:
            Squared norm of the sequence's gradient by matrix.

        Raises:
            MeasurementError: a gradient that is not finite.
        """
        self._squares = dict.fromkeys(self._names, 0.0)
        device = next(self._model.parameters()).device
        tokens = torch.tensor([ids], device=device)
        with self._inputs:
            logits = self._model(input_ids=tokens, use_cache=False).logits[0].float()
        loss = torch.nn.functional.cross_entropy(logits, _sampled(logits, seed), reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        broken = next((n for n, square in self._squares.items() if not np.isfinite(square)), None)
        if broken is not None:
            raise MeasurementError(
                f"the gradient of {broken} is not finite: the weights hold broken values, or the "
                "model needs another dtype"
            )
        return self._squares

    def _sum_inputs(self, name: str, expert: int, inputs: torch.Tensor) -> torch.Tensor:
        sums, flat = self.sums[name], inputs.detach().reshape(-1, inputs.shape[-1])
        sums.inputs[expert] += _square_norms(flat[None], 1)[0]
        sums.tokens[expert] += len(flat)
        if not inputs.requires_grad:
            return inputs
        # A view of its own, whose gradient is that of this product alone.
        watched = inputs.view_as(inputs)
        hook: Any = partial(_sum_rounding, sums, *_int8_rounding(flat))
        watched.register_hook(hook)  # type: ignore[no-untyped-call]
        return watched

    def _reduce(self, name: str, parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        parameter.grad = None
        if gradient is None:
            return
        stacked = gradient if gradient.ndim == 3 else gradient[None]
        if name in self._flipped:
            stacked = stacked.transpose(1, 2)
        sums = self.sums[name]
        rows = _square_norms(stacked, 2)
        sums.rows += rows
        sums.columns += _square_norms(stacked, 1)
        self._squares[name] = float(rows.sum())


def _int8_rounding(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance of rounding each token's inputs to 127 steps, and which columns are not rounded.

    LLM.int8 (Dettmers et al. 2022): columns with an outlier stay in 16 bits.
    """
    kept = (inputs.abs() >= INT8_OUTLIER).any(0)
    steps = inputs.masked_fill(kept, 0).abs().amax(1).float() / 127
    return steps.square() / 12, kept


def _sum_rounding(
    sums: Sums, variance: torch.Tensor, kept: torch.Tensor, gradient: torch.Tensor
) -> None:
    rounded = gradient.reshape(len(variance), -1).masked_fill(kept, 0).float()
    sums.input_rounding += float(rounded.square().sum(1) @ variance)


def _square_norms(values: torch.Tensor, axis: int) -> Floats:
    norms = torch.linalg.vector_norm(values, dim=axis, dtype=torch.float32)
    squares: Floats = norms.double().square().cpu().numpy()
    return squares


def _sampled(logits: torch.Tensor, seed: int) -> torch.Tensor:
    """One label per position, drawn on the CPU so that every device draws the same."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = logits.detach().softmax(-1).cpu()
    if not bool(torch.isfinite(probabilities).all()):
        raise MeasurementError("the model's logits are not finite: nothing can be measured on it")
    labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    return labels.to(logits.device)


def _matrices(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Floating-point matrices and stacks of them; a tied matrix counts once."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim in (2, 3) and parameter.is_floating_point()
    }


def _stored_in_by_out(model: torch.nn.Module) -> frozenset[str]:
    """Weights of GPT-2's Conv1D, which are stored ``[in, out]``."""
    from transformers.pytorch_utils import Conv1D

    modules = model.named_modules()
    return frozenset(f"{name}.weight" for name, module in modules if isinstance(module, Conv1D))


def _shape(parameter: torch.Tensor, flipped: bool) -> tuple[int, int, int]:
    """``(experts, rows, columns)``."""
    *stack, rows, columns = parameter.shape
    experts = stack[0] if stack else 1
    return (experts, columns, rows) if flipped else (experts, rows, columns)


def _no_sums(shape: tuple[int, int, int]) -> Sums:
    experts, rows, columns = shape
    return Sums(
        np.zeros((experts, rows)),
        np.zeros((experts, columns)),
        np.zeros((experts, columns)),
        np.zeros(experts),
        np.zeros(1),
    )


def _checkpoint(block: torch.nn.Module) -> None:
    """Keep a block's input and compute the rest again when its gradients are due."""
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)


class InputWatch(TorchFunctionMode):
    """Sees every product of an input with a known matrix, or with one expert's slice of a stack.

    Args:
        parameters: the matrices by name.
        seen: told of name, expert (0 where there is no stack) and inputs ``[..., columns]``;
            returns what is multiplied in their place.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        seen: Callable[[str, int, torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        self._parameters, self._seen = parameters, seen
        places = sorted((parameter.data_ptr(), name) for name, parameter in parameters.items())
        self._starts = [start for start, _ in places]
        self._at = [name for _, name in places]

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        weight, inputs = _PRODUCTS.get(func, (0, 0))
        if weight != inputs and isinstance(args[weight], torch.Tensor):
            args = list(args)
            args[inputs] = self._watched(args[weight], args[inputs])
        return func(*args, **(kwargs or {}))

    def _watched(self, weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        place = bisect.bisect_right(self._starts, weight.data_ptr()) - 1
        if place < 0:
            return inputs
        name = self._at[place]
        parameter, offset = self._parameters[name], weight.data_ptr() - self._starts[place]
        nbytes = parameter.numel() * parameter.element_size()
        if offset >= nbytes or not inputs.numel():
            return inputs
        experts = len(parameter) if parameter.ndim == 3 else 1
        return self._seen(name, offset * experts // nbytes, inputs)


_MATMUL = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
_PRODUCTS: Mapping[Any, tuple[int, int]] = {
    torch.nn.functional.linear: (1, 0),
    torch.addmm: (2, 1),
    **dict.fromkeys(_MATMUL, (1, 0)),
}
"""Functions of torch, and which of their arguments are the weight and its inputs."""
