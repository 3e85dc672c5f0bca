"""The look all plots share, as plotly.js layouts.

Colours of ink, lines and paper are the style sheet's: it overrides plotly's
own, so that a plot follows the reader's dark or light mode and prints on white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ewq.report.escaping import plot_text
from ewq.report.kinds import Kind

MARGIN = {"l": 58, "r": 16, "t": 12, "b": 52}
CLEAR = "rgba(0,0,0,0)"


def layout(x: str, y: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - plotly's own schema
    """A layout with titled axes; ``more`` overrides or extends it, one level deep."""
    base: dict[str, Any] = {
        "margin": dict(MARGIN),
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "hoverlabel": {"font": {"family": "system-ui, sans-serif"}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": axis(x),
        "yaxis": axis(y),
        "dragmode": False,
    }
    for key, value in more.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        base[key] = {**base[key], **value} if both else value
    return base


def axis(title: str) -> dict[str, Any]:
    """An axis with quiet lines."""
    return {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "gridcolor": "#888",
        "zeroline": False,
        "fixedrange": True,
    }


def marks(
    kind: Kind,
    names: Sequence[str],
    x: Sequence[float],
    y: Sequence[float],
    error_y: Mapping[str, Any],
) -> dict[str, Any]:
    """A trace of variants of one kind with error bars; ``names`` are escaped here."""
    outline = {"width": 2, "color": kind.color}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": kind.label,
        "x": list(x),
        "y": list(y),
        "text": [plot_text(name) for name in names],
        "marker": {"color": kind.color, "symbol": kind.mark, "size": 11, "line": outline},
        "error_y": {"type": "data", "color": kind.color, "thickness": 1.5, **error_y},
    }


def padded(values: list[float], share: float = 0.08) -> list[float]:
    """A range around ``values`` with room for labels."""
    low, high = min(values), max(values)
    room = share * (high - low or abs(high) or 1.0)
    return [low - room, high + room]
