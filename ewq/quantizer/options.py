"""How planned precisions are stored and computed, checked once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from ewq.errors import InputError
from ewq.measurement import Json

QUANT_TYPES = ("nf4", "fp4")
BLOCK_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
"""What bitsandbytes quantizes to 4 bits on every device."""
COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float16")
DEFAULT_BLOCK_SIZE = 64
DEFAULT_INT8_THRESHOLD = 6.0


@dataclass(frozen=True)
class Options:
    """Storage and computation of the quantized weights.

    The defaults are those of transformers' own bitsandbytes methods, NF4
    instead of FP4 apart (better for normally distributed weights, same cost),
    so that ``ewq-*`` and ``bnb-*`` differ in the plan and in nothing else.
    """

    quant_type: str = "nf4"
    """``nf4`` or ``fp4``."""
    double_quant: bool = False
    """Quantize the 4-bit scales too: 0.37 bits less per 4-bit weight, one more pass per product."""
    block_size: int = DEFAULT_BLOCK_SIZE
    """4-bit values that share a scale."""
    compute_dtype: str = "auto"
    """Dtype of the 4-bit products; ``auto`` is the model's own, so that nothing is cast."""
    int8_threshold: float = DEFAULT_INT8_THRESHOLD
    """Activations from this magnitude on are multiplied unquantized; 0 turns that off.

    0 is faster (no search for outliers) and changes results by more than
    rounding wherever a model has such outliers; hence not the default.
    """

    def __post_init__(self) -> None:
        for name, allowed in (
            ("quant_type", QUANT_TYPES),
            ("block_size", BLOCK_SIZES),
            ("compute_dtype", COMPUTE_DTYPES),
            ("double_quant", (True, False)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                shown = ", ".join(str(one) for one in allowed)
                raise InputError(f"EwqConfig: {name}={value!r}; there are: {shown}")
        threshold = self.int8_threshold
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if not number or not math.isfinite(threshold) or threshold < 0:
            raise InputError(
                f"EwqConfig: int8_threshold={threshold!r}; give 6.0, or 0 for no outlier handling"
            )

    @property
    def target(self) -> str:
        """The format of :mod:`ewq.planning.sizes` that a plan's sizes have to be counted for."""
        return "nf4-double" if self.double_quant else "nf4"

    def to_json(self) -> dict[str, Json]:
        """The options as recorded in configs and benchmark records."""
        return asdict(self)
