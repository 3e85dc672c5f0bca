"""Plans: what they have to beat, and where they spend their bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ewq.report.controls import compare_with_controls, rank_among_random
from ewq.report.document import Paragraph, Part, Plot, Section, Table
from ewq.report.estimate import MISSING
from ewq.report.plotting import GREEN, GREY, ORANGE, PURPLE, SKY, MapCell, heatmap, layout
from ewq.report.rows import ReportedRun, VariantRow
from ewq.report.table import kld

RANDOM_CONTROLS = (
    "Mean KLD from FP16, nats per token. A scorer is worth something only where its plan diverges "
    "less than random plans of the same size; p is that of a permutation test."
)
UNIFORM_HEADINGS = ("Plan", "Control", "Size", "Perplexity %", "Outcome")
RANDOM_HEADINGS = ("Plan", "KLD", "Random plans", "Median", "Range", "Beaten", "p", "Outcome")
RULE = (
    "A block whose {} is at or above the mean stays raw; below the mean, but above "
    "mean − factor × standard deviation, it gets 8 bits; further below, 4 bits."
)
_LETTERS = {"raw": "R", "8bit": "8", "4bit": "4", "mixed": "M"}
_WORDS = {"raw": "raw", "8bit": "8 bits", "4bit": "4 bits", "mixed": "mixed"}
_COLORS = (GREEN, SKY, ORANGE, PURPLE)
_ENTROPIES = {"histogram": "entropy, bits", "softmax": "entropy"}
"""Scorers that are entropies; of others the report speaks of scores."""
_LETTERED = 48
"""More blocks than this leave no room for letters in a strip."""


def controls(shown: ReportedRun) -> Section | None:
    """Plans against uniform controls, and scored plans among random plans of their size."""
    parts: list[Part] = []
    uniform = tuple(
        (
            found.plan,
            found.control,
            f"{found.size_percent:+.0f} %",
            found.perplexity.text(2, signed=True),
            found.outcome,
        )
        for found in compare_with_controls(shown.rows)
    )
    if uniform:
        title = "Plans against uniform controls of the same engine, on the same texts"
        parts.append(Table(UNIFORM_HEADINGS, uniform, frozenset({"Control", "Outcome"}), title))
    random = tuple(
        (
            found.plan,
            f"{found.kld_nats:.3g}",
            str(len(found.random_klds_nats)),
            f"{found.median_kld_nats:.3g}",
            f"{found.random_klds_nats[0]:.3g} to {found.random_klds_nats[-1]:.3g}",
            f"{found.beaten} of {len(found.random_klds_nats)}",
            f"{min(found.p_better, found.p_worse):.2f}",
            found.outcome,
        )
        for found in rank_among_random(shown.rows)
    )
    if random:
        table = Table(RANDOM_HEADINGS, random, frozenset({"Outcome"}))
        parts += [Paragraph(RANDOM_CONTROLS), table]
    return Section("controls", "Plans against controls", tuple(parts)) if parts else None


@dataclass(frozen=True)
class _Plan:
    variant: str
    scorer: str
    factor: float | None
    mean: float
    std: float
    begins_8bit: float | None
    """Least score that is above 4 bits, for rules that have one."""
    indices: tuple[int, ...]
    scores: tuple[float, ...]
    precisions: tuple[str, ...]
    """``mixed`` for a block of several."""

    @classmethod
    def of(cls, variant: str, stored: Mapping[str, Any]) -> _Plan:
        indices, scores, precisions = zip(*stored["blocks"], strict=True)
        thresholds = stored.get("thresholds") or {}
        return cls(
            variant,
            str(stored.get("scorer")),
            (stored.get("rule") or {}).get("factor", stored.get("factor")),
            float(stored["mean"]),
            float(stored["std"]),
            float(thresholds["8bit"]) if "8bit" in thresholds else None,
            indices,
            scores,
            tuple(each if each in _LETTERS else "mixed" for each in precisions),
        )

    @property
    def measure(self) -> str:
        """What the blocks' scores are."""
        return "Entropy" if self.scorer in _ENTROPIES else "Score"

    @property
    def counts(self) -> str:
        """``16 raw, 6 at 8 bits, 8 at 4 bits``."""
        return ", ".join(
            f"{self.precisions.count(name)} {'at ' * name.endswith('bit')}{words}"
            for name, words in _WORDS.items()
            if name in self.precisions
        )


def blocks(shown: ReportedRun) -> Section | None:
    """One plot for each series of scores (a run has one, unless scorers differ), and the types
    of plans that choose one for every tensor."""
    groups: dict[tuple[float, ...], list[_Plan]] = {}
    for row in shown.rows:
        if row.plan and row.plan.get("blocks"):
            plan = _Plan.of(row.variant, row.plan)
            groups.setdefault(plan.scores, []).append(plan)
    parts: list[Part] = [_plot(n, plans) for n, plans in enumerate(groups.values(), start=1)]
    if any(plan.factor is not None for plans in groups.values() for plan in plans):
        measures = {plans[0].measure.lower() for plans in groups.values()}
        parts.insert(0, Paragraph(RULE.format(" or ".join(sorted(measures)))))
    parts += _types(shown.rows)
    return Section("blocks", "Where the plans spend their bits", tuple(parts)) if parts else None


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


def _plot(number: int, plans: list[_Plan]) -> Plot:
    first, thresholds = plans[0], _thresholds(plans)
    named: dict[str, list[str]] = {}
    for plan in plans:
        named.setdefault(plan.counts, []).append(plan.variant)
    counts = "; ".join(f"{', '.join(names)}: {counts}" for counts, names in named.items())
    rows = tuple(
        (str(index), f"{score:.4f}", *(_WORDS[plan.precisions[place]] for plan in plans))
        for place, (index, score) in enumerate(zip(first.indices, first.scores, strict=True))
    )
    names = tuple(plan.variant for plan in plans)
    return Plot(
        name=f"blocks-{number}",
        title=f"{first.measure} by block ({first.scorer})",
        caption=f"Mean {first.mean:.4f} (solid: raw begins), standard deviation {first.std:.4f}. "
        f"Dashed, from above: 4 bits begin for {', '.join(thresholds.values()) or 'none'}. "
        "Strips: R raw (green), 8 bits (blue), 4 bits (orange), M mixed (purple). "
        f"Blocks: {counts}.",
        figure=_figure(plans, thresholds),
        table=Table(("Block", first.measure, *names), rows, frozenset(names)),
        height_px=400 + 24 * len(plans),
    )


def _thresholds(plans: list[_Plan]) -> dict[float, str]:
    """Where each plan's 4 bits begin -> its factor or name, each value once, the highest first."""
    found: dict[float, str] = {}
    for plan in plans:
        if plan.begins_8bit is not None:
            name = plan.variant if plan.factor is None else f"{plan.factor:g}"
            found.setdefault(plan.begins_8bit, name)
    return dict(sorted(found.items(), reverse=True))


def _figure(plans: list[_Plan], thresholds: Mapping[float, str]) -> dict[str, Any]:
    """A curve of scores with its thresholds, above a strip of precisions for each plan."""
    first, strip_share = plans[0], min(0.5, 0.06 + 0.05 * len(plans))
    lines = [(first.mean, "solid"), *((value, "dash") for value in thresholds)]
    frame = layout(
        "block",
        _ENTROPIES.get(first.scorer, "score"),
        xaxis={"anchor": "y2", "range": [first.indices[0] - 0.6, first.indices[-1] + 0.6]},
        yaxis={"domain": [strip_share + 0.04, 1]},
        yaxis2={
            "domain": [0, strip_share], "autorange": "reversed", "fixedrange": True,
            "automargin": True, "type": "category", "showgrid": False, "tickfont": {"size": 11},
        },
        shapes=[
            {
                "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value,
                "line": {"color": GREY, "width": 1, "dash": dash},
            }
            for value, dash in lines
        ],
    )  # fmt: skip
    curve = {
        "type": "scatter", "mode": "lines+markers", "showlegend": False,
        "x": list(first.indices), "y": list(first.scores),
        "line": {"color": GREY, "width": 1}, "marker": {"color": GREY, "size": 7},
        "hovertemplate": "block %{x}: %{y:.4f}<extra></extra>",
    }  # fmt: skip
    return {"data": [curve, _strips(plans)], "layout": frame}


def _strips(plans: list[_Plan]) -> dict[str, Any]:
    """Precisions of every block, a row for each plan, coloured in equal steps."""
    names, steps = list(_LETTERS), len(_COLORS)
    return heatmap(
        plans[0].indices,
        {
            plan.variant: [MapCell(names.index(each), _LETTERS[each]) for each in plan.precisions]
            for plan in plans
        },
        yaxis="y2",
        texttemplate="%{text}" if len(plans[0].indices) <= _LETTERED else "",
        textfont={"size": 10, "color": "#000"},
        colorscale=[
            [end / steps, color]
            for place, color in enumerate(_COLORS)
            for end in (place, place + 1)
        ],
        zmin=-0.5,
        zmax=steps - 0.5,
        xgap=1,
        ygap=3,
    )
