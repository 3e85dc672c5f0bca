"""Entropy of every block with the plans' thresholds, and a strip of precisions for each plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ewq.report import kinds
from ewq.report.document import Paragraph, Part, Plot, Section, Table
from ewq.report.drawing import layout
from ewq.report.escaping import plot_text
from ewq.report.rows import ABSENT
from ewq.report.subject import Reported

LETTERS = {"raw": "R", "8bit": "8", "4bit": "4", "mixed": "M"}
WORDS = {"raw": "raw", "8bit": "8 bits", "4bit": "4 bits", "mixed": "mixed"}
SPENT = {"raw": "raw", "8bit": "at 8 bits", "4bit": "at 4 bits", "mixed": "mixed"}
COLORS = {**kinds.PRECISION_COLORS, "mixed": kinds.PURPLE}
MARKS = {**kinds.PRECISION_MARKS, "mixed": "star"}
_LEVELS = tuple(WORDS)
RULE = (
    "A block whose {} is at or above the mean stays raw; below the mean, but above "
    "mean − factor × standard deviation, it gets 8 bits; further below, 4 bits."
)
_ENTROPIES = {"histogram": "entropy, bits", "softmax": "entropy"}
"""Scorers that are entropies; of others the report speaks of scores."""
_LABEL_PX = 34
_LETTERED = 48
"""More blocks than this leave no room for letters in a strip."""


@dataclass(frozen=True)
class _Plan:
    variant: str
    scorer: str
    factor: float | None
    mean: float
    std: float
    thresholds: Mapping[str, float]
    blocks: tuple[tuple[int, float, str], ...]
    """``(index, entropy, precision)``; a block of several precisions is ``mixed``."""

    @property
    def series(self) -> tuple[float, ...]:
        return tuple(entropy for _, entropy, _ in self.blocks)


def section(subject: Reported) -> Section | None:
    """One plot for each series of entropies (a run has one, unless scorers differ)."""
    groups: dict[tuple[float, ...], list[_Plan]] = {}
    for row in subject.rows:
        record = row.records.get("memory")
        stored = record.side.get("plan") if record else None
        if isinstance(stored, Mapping) and stored.get("blocks") and not _is_uniform(stored):
            plan = _read(row.variant, stored)
            groups.setdefault(plan.series, []).append(plan)
    if not groups:
        return None
    plots: list[Part] = [_plot(n, plans) for n, plans in enumerate(groups.values(), start=1)]
    by_factor = any(plan.factor is not None for plans in groups.values() for plan in plans)
    words = {_measure(plans[0]).lower() for plans in groups.values()}
    intro = (Paragraph(RULE.format(" or ".join(sorted(words)))),) if by_factor else ()
    return Section("blocks", "Where the plans spend their bits", (*intro, *plots))


def _is_uniform(stored: Mapping[str, Any]) -> bool:
    """Controls are stored as plans too, but nothing was decided in them."""
    return (stored.get("rule") or {}).get("kind") == "uniform"


def _read(variant: str, stored: Mapping[str, Any]) -> _Plan:
    rule = stored.get("rule") or {}
    return _Plan(
        variant,
        str(stored.get("scorer")),
        rule.get("factor", stored.get("factor")),
        float(stored["mean"]),
        float(stored["std"]),
        dict(stored.get("thresholds") or {}),
        tuple((int(i), float(h), str(p or "mixed")) for i, h, p in stored["blocks"]),
    )


def _plot(number: int, plans: list[_Plan]) -> Plot:
    first = plans[0]
    return Plot(
        name=f"blocks-{number}",
        title=f"{_measure(first)} by block ({first.scorer})",
        caption=f"Mean {first.mean:.4f} (the line for raw), standard deviation {first.std:.4f}. "
        f"Dashed: where each factor's 4 bits begin. Strips: R raw, 8 and 4 bits. Blocks: "
        f"{_spent(plans)}",
        figure=_figure(plans),
        table=_table(plans),
        height_px=400 + 24 * len(plans),
    )


def _spent(plans: list[_Plan]) -> str:
    """How many blocks have each precision; plans that spend alike are told once."""
    named: dict[str, list[str]] = {}
    for plan in plans:
        found = [precision for _, _, precision in plan.blocks]
        counts = ", ".join(f"{found.count(p)} {SPENT[p]}" for p in _LEVELS if p in found)
        named.setdefault(counts, []).append(plan.variant)
    return "; ".join(f"{', '.join(names)}: {counts}" for counts, names in named.items()) + "."


def _figure(plans: list[_Plan]) -> dict[str, Any]:
    strip_share = min(0.5, 0.06 + 0.05 * len(plans))
    first = plans[0]
    frame = layout(
        "block",
        _ENTROPIES.get(first.scorer, "score"),
        xaxis={"anchor": "y2", "range": [first.blocks[0][0] - 0.6, first.blocks[-1][0] + 0.6]},
        yaxis={"domain": [strip_share + 0.04, 1]},
        yaxis2={
            "domain": [0, strip_share], "autorange": "reversed", "fixedrange": True,
            "automargin": True, "type": "category", "showgrid": False, "tickfont": {"size": 11},
        },
        shapes=[_line(value, dash) for value, _, dash in _lines(plans)],
        annotations=[
            _line_label(value, text, place) for place, (value, text, _) in enumerate(_lines(plans))
        ],
    )  # fmt: skip
    return {"data": [_curve(first), *_dots(first), _strips(plans)], "layout": frame}


def _lines(plans: list[_Plan]) -> list[tuple[float, str, str]]:
    """Mean, then the 8-bit threshold of each plan: ``(entropy, label, dash)``, each value once."""
    lines = {plans[0].mean: ("mean", "solid")}
    for plan in plans:
        if "8bit" in plan.thresholds:
            value = float(plan.thresholds["8bit"])
            name = plan.variant if plan.factor is None else f"{plan.factor:g}"
            lines.setdefault(value, (name, "dash"))
    return [(value, plot_text(name), dash) for value, (name, dash) in lines.items()]


def _line(value: float, dash: str) -> dict[str, Any]:
    style = {"color": kinds.GREY, "width": 1, "dash": dash}
    return {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": style,
    }  # fmt: skip


def _line_label(value: float, text: str, place: int) -> dict[str, Any]:
    """Thresholds lie close together, so their labels stand side by side."""
    return {
        "xref": "paper", "x": 1, "xanchor": "right", "y": value, "yanchor": "bottom",
        "xshift": -_LABEL_PX * place, "text": text, "showarrow": False, "font": {"size": 10},
    }  # fmt: skip


def _curve(plan: _Plan) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False,
        "x": [index for index, _, _ in plan.blocks], "y": list(plan.series),
        "line": {"color": kinds.GREY, "width": 1},
    }  # fmt: skip


def _dots(plan: _Plan) -> list[dict[str, Any]]:
    """Marks by the first plan's precision, so that the legend explains the strips too."""
    traces = []
    for level in _LEVELS:
        own = [(index, entropy) for index, entropy, precision in plan.blocks if precision == level]
        if own:
            marker = {"color": COLORS[level], "symbol": MARKS[level], "size": 8}
            traces.append(
                {
                    "type": "scatter", "mode": "markers", "marker": marker,
                    "name": f"{WORDS[level]} in {plot_text(plan.variant)}",
                    "x": [index for index, _ in own], "y": [entropy for _, entropy in own],
                    "hovertemplate": "block %{x}: %{y:.4f}<extra></extra>",
                }
            )  # fmt: skip
    return traces


def _strips(plans: list[_Plan]) -> dict[str, Any]:
    levels = len(_LEVELS)
    scale = []
    for position, level in enumerate(_LEVELS):
        scale += [[position / levels, COLORS[level]], [(position + 1) / levels, COLORS[level]]]
    lettered = len(plans[0].blocks) <= _LETTERED
    return {
        "type": "heatmap",
        "yaxis": "y2",
        "x": [index for index, _, _ in plans[0].blocks],
        "y": [plot_text(plan.variant) for plan in plans],
        "z": [[_LEVELS.index(precision) for _, _, precision in plan.blocks] for plan in plans],
        "text": [[LETTERS[precision] for _, _, precision in plan.blocks] for plan in plans],
        "texttemplate": "%{text}" if lettered else "",
        "textfont": {"size": 10, "color": "#000"},
        "hovertemplate": "%{y}, block %{x}: %{text}<extra></extra>",
        "colorscale": scale,
        "zmin": -0.5,
        "zmax": levels - 0.5,
        "showscale": False,
        "xgap": 1,
        "ygap": 3,
    }


def _table(plans: list[_Plan]) -> Table:
    rows = tuple(
        (
            str(index),
            f"{entropy:.4f}",
            *(WORDS.get(plan.blocks[place][2], ABSENT) for plan in plans),
        )
        for place, (index, entropy, _) in enumerate(plans[0].blocks)
    )
    names = tuple(plan.variant for plan in plans)
    return Table(("Block", _measure(plans[0]), *names), rows, frozenset(names))


def _measure(plan: _Plan) -> str:
    """What the blocks' numbers are."""
    return "Entropy" if plan.scorer in _ENTROPIES else "Score"
