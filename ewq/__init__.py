"""Entropy-weighted quantization of language models; public names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ewq.version import __version__

if TYPE_CHECKING:
    from ewq.errors import EwqError
    from ewq.planning.analysis import Analysis, analyze
    from ewq.planning.plan import QuantizationPlan, read_plan
    from ewq.quantizer import EwqConfig

_HOME_OF = {
    "Analysis": "ewq.planning.analysis",
    "EwqConfig": "ewq.quantizer",
    "EwqError": "ewq.errors",
    "QuantizationPlan": "ewq.planning.plan",
    "analyze": "ewq.planning.analysis",
    "read_plan": "ewq.planning.plan",
}

__all__ = [
    "Analysis",
    "EwqConfig",
    "EwqError",
    "QuantizationPlan",
    "__version__",
    "analyze",
    "read_plan",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ewq' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
