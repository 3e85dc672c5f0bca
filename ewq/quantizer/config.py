"""``EwqConfig``: what to hand to ``from_pretrained(quantization_config=...)``."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from ewq.errors import EwqError, InputError
from ewq.planning.plan import QuantizationPlan, read_plan

QUIET_LOGGERS = ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops")
"""Of a cast at every int8 product, which costs more than a small one, and of optional kernels."""


def require_bitsandbytes() -> None:
    """Refuse to go on without bitsandbytes, and let it log errors only unless told otherwise."""
    for name in QUIET_LOGGERS:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.ERROR)
    try:
        import_module("bitsandbytes")
    except ImportError as error:
        raise EwqError(f"no bitsandbytes ({error}): pip install bitsandbytes") from error


require_bitsandbytes()

METHOD = "ewq"
"""``quant_method`` in ``config.json``."""
DOUBLE_TARGETS = {"nf4": False, "nf4-double": True}
"""Whether a plan counted its sizes with double quantization; GGUF plans do not say."""
ALLOWED: Mapping[str, tuple[object, ...]] = {
    "quant_type": ("nf4", "fp4"),
    "block_size": (64, 128, 256, 512, 1024, 2048, 4096),
    "compute_dtype": ("auto", "float32", "bfloat16", "float16"),
    "double_quant": (True, False),
}
"""What bitsandbytes takes on every device."""


@dataclass(frozen=True)
class StorageOptions:
    """Storage and computation of the quantized weights, by default as in ``bnb-nf4``."""

    quant_type: str = "nf4"
    """``nf4`` or ``fp4``."""
    double_quant: bool = False
    """Quantize the 4-bit scales too: 0.37 bits less per 4-bit weight, one more pass per product."""
    block_size: int = 64
    """4-bit values that share a scale."""
    compute_dtype: str = "auto"
    """Dtype of the 4-bit products; ``auto`` is the model's own, so that nothing is cast."""
    int8_threshold: float = 6.0
    """Activations from this magnitude on are multiplied unquantized; 0 turns that off."""

    def __post_init__(self) -> None:
        for name, allowed in ALLOWED.items():
            value = getattr(self, name)
            if value not in allowed:
                shown = ", ".join(map(str, allowed))
                raise InputError(f"EwqConfig: {name}={value!r}; there are: {shown}")
        threshold = self.int8_threshold
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if not number or not 0 <= threshold < math.inf:
            raise InputError(f"EwqConfig: int8_threshold={threshold!r}; give 6.0, or 0 for none")

    @property
    def target(self) -> str:
        """The format of :mod:`ewq.planning.sizes` that a plan's sizes have to be counted for."""
        return "nf4-double" if self.double_quant else "nf4"


@register_quantization_config(METHOD)
class EwqConfig(QuantizationConfigMixin):
    """Which weights get which precision, and how those are stored.

    Args:
        plan: a :class:`~ewq.planning.plan.QuantizationPlan`, its JSON, or the path of a plan file;
            ``ewq.analyze(model).plan(factor=0.65)`` makes one.
        quant_type: this and the next four are :class:`StorageOptions`.
        double_quant: unless given, as the plan counted its sizes.
        llm_int8_enable_fp32_cpu_offload: as in ``BitsAndBytesConfig``: modules placed on the
            processor or the disk stay unquantized instead of being refused.

    An InputError of unknown options or such as do not go together, a PlanError of a plan that
    cannot be read.
    """

    def __init__(
        self,
        plan: QuantizationPlan | Mapping[str, Any] | str | Path,
        *,
        quant_type: str = StorageOptions.quant_type,
        double_quant: bool | None = None,
        block_size: int = StorageOptions.block_size,
        compute_dtype: object = StorageOptions.compute_dtype,
        int8_threshold: float = StorageOptions.int8_threshold,
        llm_int8_enable_fp32_cpu_offload: bool = False,
        quant_method: str = METHOD,
        **unknown: object,
    ) -> None:
        if unknown:
            raise InputError(f"EwqConfig has no option {', '.join(sorted(unknown))}")
        if quant_method != METHOD:
            raise InputError(f"EwqConfig: quant_method={quant_method!r}; it is always {METHOD!r}")
        self.quant_method = METHOD  # type: ignore[assignment]
        self.plan = _as_plan(plan)
        self.options = StorageOptions(
            quant_type=quant_type,
            double_quant=self._double_quant(double_quant),
            block_size=block_size,
            compute_dtype=str(compute_dtype).removeprefix("torch."),
            int8_threshold=int8_threshold,
        )
        self.llm_int8_enable_fp32_cpu_offload = bool(llm_int8_enable_fp32_cpu_offload)

    def _double_quant(self, wanted: bool | None) -> bool:
        counted = DOUBLE_TARGETS.get(self.plan.target, wanted)
        if wanted is not None and wanted != counted:
            other = "nf4-double" if wanted else "nf4"
            given = f"EwqConfig: double_quant={wanted}, with a plan for {self.plan.target}"
            raise InputError(f"{given}: plan with --for {other}, or leave double_quant out")
        return counted or False

    def to_dict(self) -> dict[str, Any]:
        """The config as stored in ``config.json``: the plan itself, never a path."""
        return {
            "quant_method": METHOD,
            "plan": self.plan.to_json(),
            **asdict(self.options),
            "llm_int8_enable_fp32_cpu_offload": self.llm_int8_enable_fp32_cpu_offload,
        }

    def to_json_string(self, use_diff: bool = True) -> str:
        """The config as JSON; ``use_diff`` is transformers' and changes nothing here."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"


def _as_plan(plan: QuantizationPlan | Mapping[str, Any] | str | Path) -> QuantizationPlan:
    if isinstance(plan, QuantizationPlan):
        return plan
    if isinstance(plan, Mapping):
        return QuantizationPlan.from_json(plan, "the plan in EwqConfig")
    return read_plan(plan)
