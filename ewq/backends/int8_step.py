"""LLM.int8 as a computation of fixed shape, so that a decode step can be recorded and replayed.

bitsandbytes looks for outliers on the host, which allows neither CUDA graphs nor a whole compiled
step. With Triton two kernels compute a product of few rows whatever its outliers
(:mod:`ewq.backends.int8_kernel`). Else a fixed number of columns is taken, those with outliers
first, the others times zero; more outliers are noticed afterwards, and the result is dropped.
"""

import logging
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch

Kernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float], torch.Tensor
]
"""``kernel(x, weight, scales, bias, threshold)``."""
Forwards = Sequence[tuple[Any, Callable[[torch.Tensor], torch.Tensor]]]
"""Modules, and what computes in their stead for a while."""

logger = logging.getLogger(__name__)

OUTLIER_COLUMNS = 64
"""Columns of one product that may hold outliers; LLM.int8's paper saw 7 in models of 13 billion."""
KERNEL_ROWS = 8
"""Most rows that the kernels take; beyond, a matrix product is faster."""
AGREEMENT = 0.01
"""Most that the kernels may differ, as a share of the largest value: a tie moves it by 1 / 128."""


class DecoderUnsupported(Exception):
    """This way of decoding does not work for this model; another one does."""


class StaticInt8:
    """A model's LLM.int8 modules, which compute in fixed shapes while :meth:`in_force`.

    ``with_kernels``: by Triton's kernels where they work.
    """

    def __init__(self, model: Any, with_kernels: bool = False) -> None:
        on_one_device = len({parameter.device for parameter in model.parameters()}) == 1
        modules = [
            module
            for module in model.modules()
            if type(module).__name__ == "Linear8bitLt" and module.state.threshold > 0
        ]
        for module in modules:
            # What the first call does: a recording may come before it.
            if module.weight.CB is not None:
                module.init_8bit_state()
        self._exceeded = torch.zeros((), dtype=torch.bool, device=model.device)
        # Else its change in place would keep torch from replaying a compiled step.
        torch._dynamo.mark_static_address(self._exceeded)
        fixed = modules if on_one_device else []
        kernel = working_kernel(model.device) if with_kernels and fixed else None
        # Made once: another object would have a compiled step compiled anew.
        self._forwards: Forwards = [
            (module, partial(int8_product, module, self._exceeded, kernel=kernel))
            for module in fixed
        ]

    @contextmanager
    def in_force(self, others: Forwards = ()) -> Iterator[None]:
        """Every such module computes by :func:`int8_product`, and ``others`` as they say."""
        forwards = [*self._forwards, *others]
        for module, forward in forwards:
            module.forward = forward
        try:
            yield
        finally:
            for module, _ in forwards:
                del module.forward

    def reset(self) -> None:
        """Forget earlier generations."""
        self._exceeded.zero_()

    def check(self) -> None:
        """Wait for the device, and refuse a result with more outlier columns than computed."""
        if bool(self._exceeded):
            raise DecoderUnsupported(f"int8 outliers in more than {OUTLIER_COLUMNS} columns")


def int8_product(
    module: Any, exceeded: torch.Tensor, x: torch.Tensor, kernel: Kernel | None = None
) -> torch.Tensor:
    """What ``Linear8bitLt.forward`` computes at inference of ``x`` ``[..., in]``.

    ``exceeded`` is set where the outliers did not fit :data:`OUTLIER_COLUMNS`.
    """
    rows, state = x.reshape(-1, x.shape[-1]), module.state
    if kernel is not None and len(rows) <= KERNEL_ROWS:
        whole = kernel(rows.contiguous(), state.CB, state.SCB, module.bias, state.threshold)
    else:
        whole = _assembled(rows, state, module.bias, exceeded)
    return whole.reshape(*x.shape[:-1], -1)


def _assembled(
    rows: torch.Tensor, state: Any, bias: torch.Tensor | None, exceeded: torch.Tensor
) -> torch.Tensor:
    """The formula of bitsandbytes' ``int8_vectorwise_quant`` and ``int8_mixed_scaled_mm``."""
    ops = torch.ops.bitsandbytes
    half = rows.to(torch.float16)
    outliers = half.abs() >= state.threshold
    columns = outliers.any(dim=0)
    values, scales, _ = ops.int8_vectorwise_quant(half.masked_fill(outliers, 0.0), 0.0)
    if rows.shape[0] > 1:
        values = values.masked_fill(columns, 0)
    result: torch.Tensor = ops.int8_scaled_mm(
        values, state.CB, scales, state.SCB, bias=bias, dtype=rows.dtype
    )
    most = min(OUTLIER_COLUMNS, rows.shape[1])
    numbers = columns.cumsum(0)
    exceeded.logical_or_(numbers[-1] > most)
    # The first of them in order; places that are left over count nothing.
    places = torch.where(columns & (numbers <= most), numbers - 1, most)
    chosen = torch.zeros(most + 1, dtype=torch.int64, device=rows.device)
    chosen = chosen.scatter_(0, places, torch.arange(rows.shape[1], device=rows.device))[:most]
    taken = torch.arange(most, device=rows.device) < numbers[-1]
    raw = rows[:, chosen].masked_fill(~taken, 0.0)
    weights = ops.int8_vectorwise_dequant(state.CB[:, chosen].contiguous(), state.SCB)
    return result.addmm(raw, weights.to(rows.dtype).t())


@cache
def working_kernel(device: torch.device) -> Kernel | None:
    """The Triton kernels, if they run on ``device`` and compute there what they should."""
    try:
        from triton.errors import TritonError

        from ewq.backends.int8_kernel import int8_product as kernel
    except ImportError:
        return None
    try:
        difference = _difference(kernel, device)
    except (TritonError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        reason = str(error).split("\n")[0]
    else:
        if difference < AGREEMENT:
            return kernel
        reason = f"differs by {difference:.1%} from bitsandbytes"
    logger.warning("int8 steps are put together from small kernels, Triton's own: %s", reason)
    return None


def _difference(kernel: Kernel, device: torch.device) -> float:
    """Largest difference from bitsandbytes on a small product, as a share of its largest value."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(3, 256, generator=source)
    x[1, 17], x[2, 5] = 8.0, -9.0
    weight = torch.randint(-127, 128, (96, 256), generator=source, dtype=torch.int8).to(device)
    scales = torch.rand(96, generator=source).to(device)
    rows = x.to(device, torch.float16)
    state = SimpleNamespace(CB=weight, SCB=scales, threshold=6.0)
    exceeded = torch.zeros((), dtype=torch.bool, device=device)
    expected = _assembled(rows, state, None, exceeded)
    found = kernel(rows, weight, scales, None, 6.0)
    return float((found - expected).abs().max() / expected.abs().max())
