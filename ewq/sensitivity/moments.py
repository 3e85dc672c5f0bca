"""Second moments of the inputs of matrices: what error-compensating rounding needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ewq.sensitivity.gradients import InputWatch

Moments = NDArray[np.float32]


class SecondMoments:
    """Sums of ``x x^T`` over the tokens that reached each of some matrices.

    Matrices that read the same input, such as query, key and value, share one sum.

    Args:
        model: a causal language model in evaluation mode.
        names: parameters to watch, none of them a stack of experts.
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

    def means(self) -> Mapping[str, Moments]:
        """``[columns, columns]`` by matrix, divided by the number of tokens."""
        shared = {id(total): total for total in self._sums.values()}
        means = {key: (total / self._tokens).cpu().numpy() for key, total in shared.items()}
        return {name: means[id(total)] for name, total in self._sums.items()}

    def _add(self, name: str, _: int, whole: torch.Tensor) -> torch.Tensor:
        # The last input is kept, so its address cannot have become another's.
        inputs = whole.detach().reshape(-1, whole.shape[-1])
        if self._last and _same(self._last[0], inputs):
            self._sums.setdefault(name, self._last[1])
            return whole
        if name not in self._sums:
            columns = inputs.shape[1]
            self._sums[name] = torch.zeros(columns, columns, device=inputs.device)
        flat = inputs.float()
        self._sums[name].addmm_(flat.T, flat)
        self._last = inputs, self._sums[name]
        return whole


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
