"""Kinds of variants, and their figures against size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ewq.report.document import Plot, plot_text
from ewq.variants import (
    FIXED,
    HF,
    KV,
    LLAMA_CPP,
    GgufType,
    Raw,
    Uniform,
    engine_of,
    is_fit_name,
    is_plan_name,
)


@dataclass(frozen=True)
class VariantKind:
    """A sort of variant; ``draw.js`` knows its colour and mark by the label."""

    label: str
    planned: bool = False
    control: bool = False


UNQUANTIZED = VariantKind("16 bits, not quantized")
PLANNED = VariantKind("EWQ plan, bitsandbytes", planned=True)
UNIFORM = VariantKind("uniform control, bitsandbytes", control=True)
GGUF_PLANNED = VariantKind("EWQ plan, GGUF", planned=True)
GGUF_UNIFORM = VariantKind("uniform control, GGUF preset", control=True)
FITTED = VariantKind("fitted plan, bitsandbytes", planned=True)
GGUF_FITTED = VariantKind("fitted plan, GGUF", planned=True)
FOLDER = VariantKind("folder, as transformers loads it")
OTHER = VariantKind("other")


def variant_kind(variant: str) -> VariantKind:
    """The kind of a stored variant; names this version does not know are ``OTHER``."""
    native = engine_of(variant) == LLAMA_CPP
    if KV in variant:  # Neither plan nor control: its losses are those of two choices.
        return OTHER
    if is_plan_name(variant):
        return GGUF_PLANNED if native else PLANNED
    if is_fit_name(variant):
        return GGUF_FITTED if native else FITTED
    if variant.startswith(HF):
        return FOLDER
    if variant == "gguf-f16":
        return UNQUANTIZED
    kinds = {Raw: UNQUANTIZED, Uniform: UNIFORM, GgufType: GGUF_UNIFORM}
    return kinds.get(type(FIXED.get(variant)), OTHER)


class SizedPoint(NamedTuple):
    """A variant's size and one of its figures with the ends of its error bar, in axes' units."""

    variant: str
    size: float
    value: float
    low: float
    high: float
    text: str = ""


def pareto_front(points: Sequence[SizedPoint], *, higher_is_better: bool) -> list[SizedPoint]:
    """The points, smallest first, that no other beats in both size and value; equals all stay."""
    sign = -1 if higher_is_better else 1
    kept: list[SizedPoint] = []
    for point in sorted(points, key=lambda p: (p.size, sign * p.value, p.variant)):
        better = not kept or sign * point.value < sign * kept[-1].value
        if better or (point.size, point.value) == (kept[-1].size, kept[-1].value):
            kept.append(point)
    return kept


def size_plot(
    plot: Plot,
    points: Sequence[SizedPoint],
    axes: tuple[str, str],
    front: Sequence[SizedPoint],
) -> Plot:
    """``plot`` with figures against sizes, and the Pareto front as a line."""
    drawn = [
        point._asdict()
        | {"variant": plot_text(point.variant), "kind": variant_kind(point.variant).label}
        for point in points
    ]
    line = [(point.size, point.value) for point in front]
    return replace(plot, figure={"kind": "sizes", "axes": axes, "points": drawn, "front": line})
