"""Sums over sequences: squared gradients and inputs of every matrix, and moments of inputs.

A matrix's gradient is reduced to its sums as soon as autograd hands it over. Decoder blocks are
checkpointed, so that the activations of one block at a time are in memory.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from ewq.errors import MeasurementError

INT8_OUTLIER = 6.0
"""bitsandbytes' threshold."""

Floats = NDArray[np.float64]
Sums = dict[str, Floats]
"""The fields of :class:`ewq.sensitivity.measure.Matrix`, as they grow."""


class GradientSums:
    """Sums of all matrices of a model, filled sequence by sequence.

    The model's parameters are left requiring gradients where they are matrices, and its decoder
    ``blocks`` checkpointed.
    """

    def __init__(self, model: torch.nn.Module, blocks: Sequence[str]) -> None:
        self._model = model
        # Floating-point matrices and stacks of them; a tied matrix counts once.
        self._names = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.ndim in (2, 3) and parameter.is_floating_point()
        }
        self._flipped = {
            f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)
        }
        """Weights that are stored ``[in, out]``."""
        self.sums = {n: _no_sums(p, n in self._flipped) for n, p in self._names.items()}
        self._squares: dict[str, float] = {}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self._names)
        for name, parameter in self._names.items():
            hook: Any = partial(self._reduce, name)
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        for name in blocks:
            # A block's input is kept, the rest computed again when its gradients are due.
            block = model.get_submodule(name)
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        self._inputs = InputWatch(self._names, self._sum_inputs)

    def add(self, ids: Sequence[int], seed: int) -> None:
        """Run one sequence.

        Labels are sampled from the model's own distributions. A MeasurementError of a gradient
        that is not finite.
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
        for name, square in self._squares.items():
            self.sums[name]["squares"] = np.append(self.sums[name]["squares"], square)

    def _sum_inputs(self, name: str, expert: int, inputs: torch.Tensor) -> torch.Tensor:
        sums, flat = self.sums[name], inputs.detach().reshape(-1, inputs.shape[-1])
        sums["inputs"][expert] += _square_norms(flat[None], 1)[0]
        sums["tokens"][expert] += len(flat)
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
        rows = _square_norms(stacked, 2)
        self.sums[name]["rows"] += rows
        self.sums[name]["columns"] += _square_norms(stacked, 1)
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
    sums["input_rounding"] += float(rounded.square().sum(1) @ variance)


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


def _no_sums(parameter: torch.Tensor, flipped: bool) -> Sums:
    *stack, rows, columns = parameter.shape
    experts = stack[0] if stack else 1
    rows, columns = (columns, rows) if flipped else (rows, columns)
    return {
        "rows": np.zeros((experts, rows)),
        "columns": np.zeros((experts, columns)),
        "inputs": np.zeros((experts, columns)),
        "tokens": np.zeros(experts),
        "input_rounding": np.zeros(1),
        "squares": np.zeros(0),
    }


class InputWatch(TorchFunctionMode):
    """Sees every product of an input with a known matrix, or with one expert's slice of a stack.

    ``seen`` is told of name, expert (0 where there is no stack) and inputs ``[..., columns]``, and
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


class SecondMoments:
    """Sums of ``x x^T`` over the tokens that reached each of some matrices.

    Matrices that read the same input, such as query, key and value, share one sum. None of them
    is a stack of experts.
    """

    def __init__(self, model: torch.nn.Module, names: Sequence[str]) -> None:
        self._model = model
        self._watch = InputWatch({name: model.get_parameter(name) for name in names}, self._add)
        self._sums: dict[str, torch.Tensor] = {}
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None
        self._tokens = 0

    def add(self, ids: Sequence[int]) -> None:
        """Run one sequence."""
        device = next(self._model.parameters()).device
        self._last = None
        with torch.no_grad(), self._watch:
            self._model(input_ids=torch.tensor([ids], device=device), use_cache=False)
        self._tokens += len(ids)

    def means(self) -> Mapping[str, NDArray[np.float32]]:
        """``[columns, columns]`` by matrix, divided by the number of tokens."""
        shared = {id(total): total for total in self._sums.values()}
        means = {key: (total / self._tokens).cpu().numpy() for key, total in shared.items()}
        return {name: means[id(total)] for name, total in self._sums.items()}

    def _add(self, name: str, _: int, whole: torch.Tensor) -> torch.Tensor:
        # The last input is kept, so its address cannot have become another's.
        inputs = whole.detach().reshape(-1, whole.shape[-1])
        if self._last and inputs.is_set_to(self._last[0]):
            self._sums.setdefault(name, self._last[1])
            return whole
        if name not in self._sums:
            columns = inputs.shape[1]
            self._sums[name] = torch.zeros(columns, columns, device=inputs.device)
        flat = inputs.float()
        self._sums[name].addmm_(flat.T, flat)
        self._last = inputs, self._sums[name]
        return whole
