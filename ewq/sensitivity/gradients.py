"""Sums over one sequence: squared gradients by row, squared inputs by column, of every matrix.

A matrix's gradient exists for a moment only: autograd hands it over as soon as all its uses are
accounted for, it is reduced to its sums and let go. Decoder blocks are checkpointed, so that the
activations of one block at a time are in memory.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from ewq.errors import MeasurementError

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

    def _sum_inputs(self, name: str, expert: int, inputs: torch.Tensor) -> None:
        self.sums[name].inputs[expert] += _square_norms(inputs[None], 1)[0]
        self.sums[name].tokens[expert] += len(inputs)

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
    )


def _checkpoint(block: torch.nn.Module) -> None:
    """Keep a block's input and compute the rest again when its gradients are due."""
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)


class InputWatch(TorchFunctionMode):
    """Sees every product of an input with a known matrix, or with one expert's slice of a stack.

    Args:
        parameters: the matrices by name.
        seen: told of name, expert (0 where there is no stack) and inputs ``[tokens, columns]``.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        seen: Callable[[str, int, torch.Tensor], None],
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
        for weight, inputs in _product(func, args):
            self._note(weight, inputs)
        return func(*args, **(kwargs or {}))

    def _note(self, weight: torch.Tensor, inputs: torch.Tensor) -> None:
        place = bisect.bisect_right(self._starts, weight.data_ptr()) - 1
        if place < 0:
            return
        name = self._at[place]
        parameter, offset = self._parameters[name], weight.data_ptr() - self._starts[place]
        nbytes = parameter.numel() * parameter.element_size()
        if offset >= nbytes or not inputs.numel():
            return
        experts = len(parameter) if parameter.ndim == 3 else 1
        flat = inputs.detach().reshape(-1, inputs.shape[-1])
        self._seen(name, offset * experts // nbytes, flat)


_MATMUL = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


def _product(func: Any, args: Sequence[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    if func is torch.nn.functional.linear:
        yield args[1], args[0]
    elif func is torch.addmm:
        yield args[2], args[1]
    elif func in _MATMUL and isinstance(args[1], torch.Tensor):
        yield args[1], args[0]
