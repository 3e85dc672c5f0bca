"""Perplexity by domain of text, MMLU by group: where a variant loses more than elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ewq.report.document import Plot, Section, Table
from ewq.report.drawing import layout
from ewq.report.escaping import plot_text
from ewq.report.estimate import Estimate
from ewq.report.rows import ABSENT, VariantRow, with_error
from ewq.report.sections.groups import group_tables
from ewq.report.subject import Reported

_PAIRED, _PLAIN = "ln_ppl_ratio/", "perplexity/"
# Blue is better, vermillion worse, as deep as text stays readable on; no change is clear.
_SCALE = [
    [0.0, "rgba(0,114,178,.65)"],
    [0.5, "rgba(0,114,178,0)"],
    [0.5, "rgba(213,94,0,0)"],
    [1.0, "rgba(213,94,0,.65)"],
]
_SINGLE = [[0.0, "rgba(0,114,178,0)"], [1.0, "rgba(0,114,178,.65)"]]


def section(subject: Reported) -> Section | None:
    """Domains of text as a map, groups of MMLU's subjects as tables."""
    plots = () if (plot := _domain_map(subject)) is None else (plot,)
    parts = (*plots, *group_tables(subject.rows))
    return Section("domains", "By domain", parts) if parts else None


def _domain_map(subject: Reported) -> Plot | None:
    """Domains and variants; changes where FP16 was paired, else perplexities."""
    paired = bool(_domains(subject.rows, _PAIRED))
    prefix = _PAIRED if paired else _PLAIN
    domains = _domains(subject.rows, prefix)
    rows = [row for row in subject.rows if _domains([row], prefix)]
    if not domains:
        return None
    cells = {(row.variant, name): _cell(row, prefix + name) for row in rows for name in domains}
    caption = (
        "Change of perplexity from FP16 in %, paired on the same tokens. A tilde (~) marks "
        "changes that cannot be told from none at 95 %, or whose error is unknown."
        if paired
        else "Perplexity; nothing in this run was paired with FP16."
    )
    return Plot(
        name="domains",
        title="Perplexity by domain",
        caption=caption,
        figure=_figure(rows, domains, cells, paired),
        table=_table(rows, domains, cells, paired),
        height_px=130 + 30 * len(rows),
    )


def _domains(rows: Sequence[VariantRow], prefix: str) -> list[str]:
    records = (row.records.get("perplexity") for row in rows)
    keys = (key for record in records if record for key in record.metrics)
    return list(dict.fromkeys(key[len(prefix) :] for key in keys if key.startswith(prefix)))


def _cell(row: VariantRow, name: str) -> Estimate | None:
    metric = row.metric("perplexity", name)
    if metric is None:
        return None
    return Estimate.percent_of_ratio(metric) if name.startswith(_PAIRED) else Estimate.of(metric)


def _short(cell: Estimate | None, paired: bool) -> str:
    if cell is None:
        return ABSENT
    if not paired:
        return f"{cell.value:.3g}"
    return "~" * (not cell.told_from_zero) + with_error(cell.value, None, 1, signed=True)


def _figure(
    rows: list[VariantRow],
    domains: list[str],
    cells: dict[tuple[str, str], Estimate | None],
    paired: bool,
) -> dict[str, Any]:
    grid = [[cells[row.variant, name] for name in domains] for row in rows]
    values = [[None if cell is None else cell.value for cell in line] for line in grid]
    known = [abs(value) for line in values for value in line if value is not None]
    extreme = max(known, default=1.0) or 1.0
    heat = {
        "type": "heatmap",
        "x": [plot_text(name) for name in domains],
        "y": [plot_text(row.variant) for row in rows],
        "z": values,
        "text": [[_short(cell, paired) for cell in line] for line in grid],
        "texttemplate": "%{text}",
        "hovertemplate": "%{y}, %{x}: %{text}<extra></extra>",
        "colorscale": _SCALE if paired else _SINGLE,
        "zmin": -extreme if paired else min(known, default=0.0),
        "zmax": extreme,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
    frame = layout(
        "", "", xaxis={"type": "category", "showgrid": False},
        yaxis={"type": "category", "autorange": "reversed", "showgrid": False},
    )  # fmt: skip
    return {"data": [heat], "layout": frame}


def _table(
    rows: list[VariantRow],
    domains: list[str],
    cells: dict[tuple[str, str], Estimate | None],
    paired: bool,
) -> Table:
    def text(cell: Estimate | None) -> str:
        return ABSENT if cell is None else with_error(cell.value, cell.stderr, 2, signed=paired)

    body = tuple(
        (row.variant, *(text(cells[row.variant, name]) for name in domains)) for row in rows
    )
    return Table(("Variant", *domains), body)
