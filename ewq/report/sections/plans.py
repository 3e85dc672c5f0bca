"""Plans: what they have to beat, and where they spend their bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ewq.precision import Precision
from ewq.report.controls import (
    ControlComparison,
    RandomRanking,
    compare_with_controls,
    rank_among_random,
)
from ewq.report.document import Paragraph, Part, Plot, Section, Table
from ewq.report.estimate import MISSING
from ewq.report.plotting import GREEN, GREY, ORANGE, PURPLE, SKY, heatmap, layout
from ewq.report.rows import ReportedRun, VariantRow
from ewq.report.table import kld

RANDOM_CONTROLS = (
    "Mean KLD from FP16, nats per token. A scorer is worth something only where its plan diverges "
    "less than random plans of the same size; p is that of a permutation test."
)


UNIFORM_HEADINGS = ("Plan", "Control", "Size", "Perplexity %", "Outcome")
RANDOM_HEADINGS = ("Plan", "KLD", "Random plans", "Median", "Range", "Beaten", "p", "Outcome")


def controls(shown: ReportedRun) -> Section | None:
    """Plans against uniform controls, and scored plans among random plans of their size."""
    uniform, random = compare_with_controls(shown.rows), rank_among_random(shown.rows)
    parts: list[Part] = []
    if uniform:
        rows = tuple(_control_cells(each) for each in uniform)
        title = "Plans against uniform controls of the same engine, on the same texts"
        parts.append(Table(UNIFORM_HEADINGS, rows, frozenset({"Control", "Outcome"}), title))
    if random:
        rows = tuple(_random_cells(each) for each in random)
        parts.append(Paragraph(RANDOM_CONTROLS))
        parts.append(Table(RANDOM_HEADINGS, rows, frozenset({"Outcome"})))
    return Section("controls", "Plans against controls", tuple(parts)) if parts else None


def _control_cells(found: ControlComparison) -> tuple[str, ...]:
    size, perplexity = f"{found.size_percent:+.0f} %", found.perplexity.text(2, signed=True)
    return (found.plan, found.control, size, perplexity, found.outcome)


def _random_cells(found: RandomRanking) -> tuple[str, ...]:
    klds = found.random_klds_nats
    return (
        found.plan,
        f"{found.kld_nats:.3g}",
        str(len(klds)),
        f"{found.median_kld_nats:.3g}",
        f"{klds[0]:.3g} to {klds[-1]:.3g}",
        f"{found.beaten} of {len(klds)}",
        f"{min(found.p_better, found.p_worse):.2f}",
        found.outcome,
    )


@dataclass(frozen=True)
class _Level:
    """How one precision is written and drawn."""

    letter: str
    words: str
    color: str


_LEVELS = {
    Precision.RAW.value: _Level("R", "raw", GREEN),
    Precision.EIGHT_BIT.value: _Level("8", "8 bits", SKY),
    Precision.FOUR_BIT.value: _Level("4", "4 bits", ORANGE),
    "mixed": _Level("M", "mixed", PURPLE),
}
_BITS = (Precision.EIGHT_BIT.value, Precision.FOUR_BIT.value)
RULE = (
    "A block whose {} is at or above the mean stays raw; below the mean, but above "
    "mean − factor × standard deviation, it gets 8 bits; further below, 4 bits."
)
_ENTROPIES = {"histogram": "entropy, bits", "softmax": "entropy"}
"""Scorers that are entropies; of others the report speaks of scores."""
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


def blocks(shown: ReportedRun) -> Section | None:
    """One plot for each series of entropies (a run has one, unless scorers differ), and the types
    of plans that choose one for every tensor."""
    groups: dict[tuple[float, ...], list[_Plan]] = {}
    for row in shown.rows:
        if row.plan and row.plan.get("blocks"):
            plan = _read(row.variant, row.plan)
            groups.setdefault(plan.series, []).append(plan)
    types = _types(shown.rows)
    if not groups and not types:
        return None
    plots: list[Part] = [_plot(n, plans) for n, plans in enumerate(groups.values(), start=1)]
    by_factor = any(plan.factor is not None for plans in groups.values() for plan in plans)
    words = {_measure(plans[0]).lower() for plans in groups.values()}
    intro = (Paragraph(RULE.format(" or ".join(sorted(words)))),) if by_factor else ()
    return Section("blocks", "Where the plans spend their bits", (*intro, *plots, *types))


def _types(rows: Sequence[VariantRow]) -> list[Table]:
    """Tensors by storage type, and the divergence that was expected beside the one measured."""
    body = tuple(
        (
            row.variant,
            ", ".join(f"{count} {name}" for name, count in row.plan["types"].items()),
            f"{row.plan['expected_kld']:.3g}" if row.plan.get("expected_kld") else MISSING,
            kld(row),
        )
        for row in rows
        if row.plan and row.plan.get("types")
    )
    headings = ("Plan", "Tensors by type", "Expected KLD", "Measured KLD")
    title = "Plans that choose a type for every tensor; KLD in nats per token"
    return [Table(headings, body, frozenset({headings[1]}), title)] if body else []


def _read(variant: str, stored: Mapping[str, Any]) -> _Plan:
    rule = stored.get("rule") or {}
    return _Plan(
        variant,
        str(stored.get("scorer")),
        rule.get("factor", stored.get("factor")),
        float(stored["mean"]),
        float(stored["std"]),
        dict(stored.get("thresholds") or {}),
        tuple(
            (int(index), float(entropy), precision if precision in _LEVELS else "mixed")
            for index, entropy, precision in stored["blocks"]
        ),
    )


def _plot(number: int, plans: list[_Plan]) -> Plot:
    first = plans[0]
    return Plot(
        name=f"blocks-{number}",
        title=f"{_measure(first)} by block ({first.scorer})",
        caption=f"Mean {first.mean:.4f} (solid: raw begins), standard deviation {first.std:.4f}. "
        f"Dashed, from above: 4 bits begin for {', '.join(_thresholds(plans).values()) or 'none'}. "
        "Strips: R raw (green), 8 bits (blue), 4 bits (orange), M mixed (purple). "
        f"Blocks: {_counts(plans)}",
        figure=_figure(plans),
        table=_table(plans),
        height_px=400 + 24 * len(plans),
    )


def _counts(plans: list[_Plan]) -> str:
    """How many blocks have each precision; plans with the same counts stand together."""
    named: dict[str, list[str]] = {}
    for plan in plans:
        found = [precision for _, _, precision in plan.blocks]
        counts = ", ".join(
            f"{found.count(name)} {'at ' * (name in _BITS)}{level.words}"
            for name, level in _LEVELS.items()
            if name in found
        )
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
        shapes=[
            _line(first.mean, "solid"),
            *(_line(value, "dash") for value in _thresholds(plans)),
        ],
    )  # fmt: skip
    return {"data": [_curve(first), _strips(plans)], "layout": frame}


def _thresholds(plans: list[_Plan]) -> dict[float, str]:
    """Where each plan's 4 bits begin -> its factor or name, each value once, the highest first."""
    found: dict[float, str] = {}
    for plan in plans:
        if "8bit" in plan.thresholds:
            name = plan.variant if plan.factor is None else f"{plan.factor:g}"
            found.setdefault(float(plan.thresholds["8bit"]), name)
    return dict(sorted(found.items(), reverse=True))


def _line(value: float, dash: str) -> dict[str, Any]:
    style = {"color": GREY, "width": 1, "dash": dash}
    return {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": style,
    }  # fmt: skip


def _curve(plan: _Plan) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines+markers", "showlegend": False,
        "x": [index for index, _, _ in plan.blocks], "y": list(plan.series),
        "line": {"color": GREY, "width": 1}, "marker": {"color": GREY, "size": 7},
        "hovertemplate": "block %{x}: %{y:.4f}<extra></extra>",
    }  # fmt: skip


def _strips(plans: list[_Plan]) -> dict[str, Any]:
    """Precisions of every block, a row for each plan, coloured in equal steps."""
    names, levels = list(_LEVELS), len(_LEVELS)
    scale = []
    for position, level in enumerate(_LEVELS.values()):
        scale += [[position / levels, level.color], [(position + 1) / levels, level.color]]
    precisions = [[precision for _, _, precision in plan.blocks] for plan in plans]
    return heatmap(
        [index for index, _, _ in plans[0].blocks],
        [plan.variant for plan in plans],
        [[names.index(each) for each in line] for line in precisions],
        [[_LEVELS[each].letter for each in line] for line in precisions],
        yaxis="y2",
        texttemplate="%{text}" if len(plans[0].blocks) <= _LETTERED else "",
        textfont={"size": 10, "color": "#000"},
        colorscale=scale,
        zmin=-0.5,
        zmax=levels - 0.5,
        xgap=1,
        ygap=3,
    )


def _table(plans: list[_Plan]) -> Table:
    rows = tuple(
        (str(index), f"{entropy:.4f}", *(_LEVELS[p.blocks[place][2]].words for p in plans))
        for place, (index, entropy, _) in enumerate(plans[0].blocks)
    )
    names = tuple(plan.variant for plan in plans)
    return Table(("Block", _measure(plans[0]), *names), rows, frozenset(names))


def _measure(plan: _Plan) -> str:
    """What the blocks' numbers are."""
    return "Entropy" if plan.scorer in _ENTROPIES else "Score"
