"""LLM.int8 as a computation of fixed shape, so that a decode step can be recorded and replayed.

bitsandbytes looks for outliers on the host and takes as many columns as it
finds, which waits for the device at every product and allows neither CUDA
graphs nor a whole compiled step. Here a fixed number of columns is taken, those
with outliers first, and the others count nothing: the same sum with zeros
added. More columns than that are noticed afterwards, and the result is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

OUTLIER_COLUMNS = 64
"""Columns of one product that may hold outliers; LLM.int8's paper saw 7 in models of 13 billion."""


class DecoderUnsupported(Exception):
    """This way of decoding does not work for this model; another one does."""


class StaticInt8:
    """A model's LLM.int8 modules, which compute in fixed shapes while :meth:`in_force`."""

    def __init__(self, model: Any) -> None:
        on_one_device = len({parameter.device for parameter in model.parameters()}) == 1
        modules = [module for module in model.modules() if _looks_for_outliers(module)]
        self._exceeded = self._flag(model.device) if modules and on_one_device else None
        # Made once: another object would have a compiled step compiled anew.
        self._forwards = [
            (module, partial(int8_product, module, self._exceeded))
            for module in modules
            if self._exceeded is not None
        ]

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Every such module computes by :func:`int8_product`."""
        for module, forward in self._forwards:
            module.forward = forward
        try:
            yield
        finally:
            for module, _ in self._forwards:
                del module.forward

    def reset(self) -> None:
        """Forget earlier generations."""
        if self._exceeded is not None:
            self._exceeded.zero_()

    def check(self) -> None:
        """Waits for the device.

        Raises:
            DecoderUnsupported: some product had more outlier columns than were computed.
        """
        if self._exceeded is not None and bool(self._exceeded):
            raise DecoderUnsupported(
                f"an int8 product has outliers in more than {OUTLIER_COLUMNS} columns"
            )

    def close(self) -> None:
        """Let go of the modules."""
        self._forwards.clear()
        self._exceeded = None

    @staticmethod
    def _flag(device: torch.device) -> torch.Tensor:
        import torch

        flag = torch.zeros((), dtype=torch.bool, device=device)
        # Else its change in place would keep torch from replaying a compiled step.
        torch._dynamo.mark_static_address(flag)
        return flag


def _looks_for_outliers(module: Any) -> bool:
    return type(module).__name__ == "Linear8bitLt" and module.state.threshold > 0


def int8_product(module: Any, exceeded: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What ``Linear8bitLt.forward`` computes at inference, after its first call.

    The formula is that of bitsandbytes' ``int8_vectorwise_quant`` and
    ``int8_mixed_scaled_mm``: elements from the threshold on are left out of
    scales and values, their columns of all rows are multiplied unquantized.

    Args:
        module: a ``Linear8bitLt`` that has computed before.
        exceeded: set where the outliers did not fit :data:`OUTLIER_COLUMNS`.
        x: ``[..., in]``.
    """
    import torch

    ops, state = torch.ops.bitsandbytes, module.state
    rows = x.reshape(-1, x.shape[-1])
    half = rows.to(torch.float16)
    outliers = half.abs() >= state.threshold
    columns = outliers.any(dim=0)
    values, scales, _ = ops.int8_vectorwise_quant(half.masked_fill(outliers, 0.0), 0.0)
    if rows.shape[0] > 1:
        values = values.masked_fill(columns, 0)
    result: torch.Tensor = ops.int8_scaled_mm(
        values, state.CB, scales, state.SCB, bias=module.bias, dtype=x.dtype
    )
    most = min(OUTLIER_COLUMNS, rows.shape[1])
    exceeded.logical_or_(columns.sum() > most)
    chosen = columns.to(torch.int32).topk(most).indices.sort().values
    raw = rows[:, chosen].masked_fill(~columns[chosen], 0.0)
    weights = ops.int8_vectorwise_dequant(state.CB[:, chosen].contiguous(), state.SCB)
    whole: torch.Tensor = result.addmm(raw, weights.to(x.dtype).t())
    return whole.reshape(*x.shape[:-1], -1)
