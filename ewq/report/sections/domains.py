"""Perplexity by domain of text, MMLU by group: where a variant loses more than elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ewq.report.document import Plot, Section, Table
from ewq.report.estimate import MISSING, Estimate, figure_text
from ewq.report.evidence import MMLU_TASKS
from ewq.report.plotting import BETTER_OR_WORSE, NEUTRAL, category_layout, heatmap
from ewq.report.rows import ReportedRun, VariantRow

_CHANGES, _PERPLEXITIES, _ACCURACIES = "ln_ppl_ratio/", "perplexity/", "accuracy/"


def domains(shown: ReportedRun) -> Section | None:
    """Domains of text as a map, groups of MMLU's subjects as tables."""
    plots = [plot for plot in (_domain_map(shown.rows),) if plot]
    tables = [table for task in MMLU_TASKS if (table := _group_table(task, shown.rows))]
    return Section("domains", "By domain", (*plots, *tables)) if plots or tables else None


def _names(rows: Sequence[VariantRow], task: str, prefix: str) -> list[str]:
    """What follows ``prefix`` in the metrics of a task."""
    records = (row.records.get(task) for row in rows)
    keys = (key for record in records if record for key in record.metrics)
    return list(dict.fromkeys(key[len(prefix) :] for key in keys if key.startswith(prefix)))


def _domain_map(rows: Sequence[VariantRow]) -> Plot | None:
    """Changes where FP16 was paired, else perplexities."""
    paired = bool(_names(rows, "perplexity", _CHANGES))
    prefix = _CHANGES if paired else _PERPLEXITIES
    measured = [row for row in rows if _names([row], "perplexity", prefix)]
    found = _names(measured, "perplexity", prefix)
    if not found:
        return None

    def cell(row: VariantRow, domain: str) -> Estimate | None:
        if paired:
            return row.perplexity_change(domain)
        return row.estimate("perplexity", prefix + domain)

    cells = {row.variant: [cell(row, domain) for domain in found] for row in measured}
    caption = (
        "Change of perplexity from FP16 in %, paired on the same tokens. ~: not distinguishable "
        "from no change at 95 %, or of unknown error."
        if paired
        else "Perplexity; nothing in this run was paired with FP16."
    )
    texts = (
        (name, *(figure_text(c, 2, signed=paired) for c in own)) for name, own in cells.items()
    )
    return Plot(
        name="domains",
        title="Perplexity by domain",
        caption=caption,
        figure={"data": [_map(cells, found, paired)], "layout": category_layout()},
        table=Table(("Variant", *found), tuple(texts)),
        height_px=130 + 30 * len(measured),
    )


def _map(
    cells: dict[str, list[Estimate | None]], names: Sequence[str], paired: bool
) -> dict[str, Any]:
    values = [[None if cell is None else cell.value for cell in line] for line in cells.values()]
    known = [abs(value) for line in values for value in line if value is not None]
    extreme = max(known, default=1.0) or 1.0

    def text(cell: Estimate | None) -> str:
        if cell is None:
            return MISSING
        if not paired:
            return f"{cell.value:.3g}"
        return "~" * (not cell.differs_from_zero) + cell.text(1, signed=True, error=False)

    return heatmap(
        names,
        list(cells),
        values,
        [[text(cell) for cell in line] for line in cells.values()],
        colorscale=BETTER_OR_WORSE if paired else NEUTRAL,
        zmin=-extreme if paired else min(known, default=0.0),
        zmax=extreme,
    )


def _group_table(task: str, rows: Sequence[VariantRow]) -> Table | None:
    """Accuracy by groups of subjects, where any variant did better than guessing."""
    measured = [row for row in rows if _names([row], task, _ACCURACIES)]
    guessed = {row.variant for row in measured if row.at_chance(task)}
    if len(guessed) == len(measured):
        return None
    groups = _names(measured, task, _ACCURACIES)
    body = tuple(
        (
            row.variant + "*" * (row.variant in guessed),
            *(figure_text(row.estimate(task, _ACCURACIES + name, 100), 1) for name in groups),
        )
        for row in measured
    )
    headings = ("Variant", *(name.replace("_", " ") for name in groups))
    title = f"{MMLU_TASKS[task]} by group of subjects, % ± standard error"
    return Table(headings, body, title=title + "; * guessing" * bool(guessed), folded=True)
