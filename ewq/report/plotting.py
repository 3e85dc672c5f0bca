"""What plots share: colours and marks of the kinds of variants, layouts, and figures against size.

Colours are Okabe and Ito's (2008), told apart with any common colour vision; kinds also differ in
their marks. Ink, lines and paper are the style sheet's, so that a plot follows dark mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ewq.report.document import Figure, Plot, plot_text
from ewq.variants import (
    FIXED,
    HF,
    LLAMA_CPP,
    GgufType,
    Raw,
    Uniform,
    engine_of,
    is_fit_name,
    is_plan_name,
)

BLUE, SKY, ORANGE, GREEN = "#0072B2", "#56B4E9", "#E69F00", "#009E73"
VERMILLION, PURPLE, GREY = "#D55E00", "#CC79A7", "#8A8F98"
SERIES = (BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, GREY)
MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")


@dataclass(frozen=True)
class VariantKind:
    """A sort of variant and how it is drawn."""

    label: str
    color: str
    mark: str
    planned: bool = False
    control: bool = False


UNQUANTIZED = VariantKind("16 bits, not quantized", GREY, "star")
PLANNED = VariantKind("EWQ plan, bitsandbytes", BLUE, "circle", planned=True)
UNIFORM = VariantKind("uniform control, bitsandbytes", VERMILLION, "square-open", control=True)
GGUF_PLANNED = VariantKind("EWQ plan, GGUF", GREEN, "diamond", planned=True)
GGUF_UNIFORM = VariantKind("uniform control, GGUF preset", ORANGE, "diamond-open", control=True)
FITTED = VariantKind("fitted plan, bitsandbytes", SKY, "triangle-up", planned=True)
GGUF_FITTED = VariantKind("fitted plan, GGUF", PURPLE, "triangle-up", planned=True)
FOLDER = VariantKind("folder, as transformers loads it", VERMILLION, "x")
OTHER = VariantKind("other", GREY, "cross")
VARIANT_KINDS = (
    UNQUANTIZED, PLANNED, FITTED, UNIFORM, GGUF_PLANNED, GGUF_FITTED, GGUF_UNIFORM, FOLDER, OTHER,
)  # fmt: skip


def variant_kind(variant: str) -> VariantKind:
    """The kind of a stored variant; names this version does not know are ``OTHER``."""
    native = engine_of(variant) == LLAMA_CPP
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


def layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    """A layout with titled axes; what all layouts share stands in ``draw.js``."""
    return more | {
        axis: {"title": {"text": text, "standoff": 8}, **more.get(axis, {})}
        for axis, text in (("xaxis", x), ("yaxis", y))
    }


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
    """``plot`` with figures against sizes: a trace a kind of variant, the Pareto front a line."""
    line = {
        "type": "scatter", "mode": "lines", "name": "Pareto front", "hoverinfo": "skip",
        "x": [point.size for point in front], "y": [point.value for point in front],
        "line": {"color": GREY, "width": 1.5, "dash": "dot", "shape": "hv"},
    }  # fmt: skip
    kinds = {kind: [p for p in points if variant_kind(p.variant) is kind] for kind in VARIANT_KINDS}
    ends = [end for point in points for end in (point.low, point.high)]
    frame = layout(
        *axes,
        xaxis={"range": _padded([point.size for point in points], 0.12)},
        yaxis={"range": _padded(ends, 0.1)},
    )
    traces = [_trace(kind, own, axes) for kind, own in kinds.items() if own]
    return replace(plot, figure={"data": [line, *traces], "layout": frame})


def _trace(kind: VariantKind, points: Sequence[SizedPoint], axes: tuple[str, str]) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": kind.label,
        "x": [point.size for point in points],
        "y": [point.value for point in points],
        "text": [plot_text(point.variant) for point in points],
        "marker": {
            "color": kind.color, "symbol": kind.mark, "size": 11,
            "line": {"width": 2, "color": kind.color},
        },
        "error_y": {
            "type": "data", "color": kind.color, "thickness": 1.5, "symmetric": False,
            "array": [point.high - point.value for point in points],
            "arrayminus": [point.value - point.low for point in points],
        },
        "hovertemplate": f"%{{text}}<br>{axes[0]}: %{{x:.3g}}<br>{axes[1]}: %{{y:.4g}}"
        "<extra></extra>",
    }  # fmt: skip


def _padded(values: list[float], share: float) -> list[float]:
    low, high = min(values), max(values)
    room = share * (high - low or abs(high) or 1.0)
    return [low - room, high + room]
