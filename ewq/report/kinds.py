"""What sort of variant a name stands for, and how each sort is drawn.

Colours are Okabe and Ito's (2008), told apart by people with any common colour
vision; kinds also differ in their marks, so that nothing depends on colour.
"""

from __future__ import annotations

from dataclasses import dataclass

from ewq.precision import Precision
from ewq.variants import FIXED, GgufType, Raw, Uniform, engine_of, is_plan_name

BLUE, SKY, ORANGE, GREEN = "#0072B2", "#56B4E9", "#E69F00", "#009E73"
VERMILLION, PURPLE, YELLOW, GREY = "#D55E00", "#CC79A7", "#F0E442", "#8A8F98"
SERIES = (BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, GREY)
MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")


@dataclass(frozen=True)
class Kind:
    """A sort of variant."""

    label: str
    color: str
    mark: str
    planned: bool = False
    """Whether EWQ chose the precisions."""
    control: bool = False
    """Whether every block has the same precision: what a plan has to beat."""


REFERENCE = Kind("16 bits, not quantized", GREY, "star")
PLANNED = Kind("EWQ plan, bitsandbytes", BLUE, "circle", planned=True)
UNIFORM = Kind("uniform control, bitsandbytes", VERMILLION, "square-open", control=True)
GGUF_PLANNED = Kind("EWQ plan, GGUF", GREEN, "diamond", planned=True)
GGUF_UNIFORM = Kind("uniform control, GGUF preset", ORANGE, "diamond-open", control=True)
OTHER = Kind("other", PURPLE, "cross")
KINDS = (REFERENCE, PLANNED, UNIFORM, GGUF_PLANNED, GGUF_UNIFORM, OTHER)

_OF_RECIPE: dict[type, Kind] = {
    Raw: REFERENCE,
    Uniform: UNIFORM,
    GgufType: GGUF_UNIFORM,
}
_UNQUANTIZED_GGUF = "gguf-f16"

PRECISION_COLORS = {
    Precision.RAW.value: GREEN,
    Precision.EIGHT_BIT.value: SKY,
    Precision.FOUR_BIT.value: ORANGE,
}
PRECISION_MARKS = {
    Precision.RAW.value: "circle",
    Precision.EIGHT_BIT.value: "square",
    Precision.FOUR_BIT.value: "diamond",
}


def kind_of(variant: str) -> Kind:
    """The kind of a stored variant; names this version does not know are ``OTHER``."""
    if variant == _UNQUANTIZED_GGUF:
        return REFERENCE
    if is_plan_name(variant):
        return GGUF_PLANNED if engine_of(variant) == "llama.cpp" else PLANNED
    return _OF_RECIPE[type(FIXED[variant])] if variant in FIXED else OTHER
