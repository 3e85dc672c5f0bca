"""Perplexity by domain of text, MMLU by group: where a variant loses more than elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from ewq.report.document import Plot, Section, Table
from ewq.report.estimate import MISSING, Estimate, figure_text
from ewq.report.evidence import MMLU_TASKS
from ewq.report.plotting import BETTER_OR_WORSE, NEUTRAL, MapCell, map_plot
from ewq.report.rows import ReportedRun, VariantRow


def domains(shown: ReportedRun) -> Section | None:
    """Domains of text as a map, groups of MMLU's subjects as tables."""
    made = [_domain_map(shown.rows), *(_group_table(task, shown.rows) for task in MMLU_TASKS)]
    parts = tuple(part for part in made if part is not None)
    return Section("domains", "By domain", parts) if parts else None


def _names(rows: Sequence[VariantRow], task: str, prefix: str) -> list[str]:
    """What follows ``prefix`` in the metrics of a task."""
    records = (row.records.get(task) for row in rows)
    keys = (key for record in records if record for key in record.metrics)
    return list(dict.fromkeys(key[len(prefix) :] for key in keys if key.startswith(prefix)))


def _domain_map(rows: Sequence[VariantRow]) -> Plot | None:
    """Changes where FP16 was paired, else perplexities."""
    paired = bool(_names(rows, "perplexity", "ln_ppl_ratio/"))
    prefix = "ln_ppl_ratio/" if paired else "perplexity/"
    found = _names(rows, "perplexity", prefix)
    if not found:
        return None
    estimates = {
        row.variant: [
            row.perplexity_change(f"/{name}")
            if paired
            else row.estimate("perplexity", prefix + name)
            for name in found
        ]
        for row in rows
        if _names([row], "perplexity", prefix)
    }
    known = [abs(cell.value) for line in estimates.values() for cell in line if cell]
    caption = (
        "Change of perplexity from FP16 in %, paired on the same tokens. ~: not distinguishable "
        "from no change at 95 %, or of unknown error."
        if paired
        else "Perplexity; nothing in this run was paired with FP16."
    )
    return map_plot(
        Plot("domains", "Perplexity by domain", caption, Table(("Variant", *found), ())),
        {name: [_cell(each, paired) for each in line] for name, line in estimates.items()},
        colorscale=BETTER_OR_WORSE if paired else NEUTRAL,
        zmin=-max(known) if paired else min(known),
        zmax=max(known) or 1.0,
    )


def _cell(estimate: Estimate | None, paired: bool) -> MapCell:
    if estimate is None:
        return MapCell(None, MISSING, MISSING)
    doubt = "~" * (paired and not estimate.differs_from_zero)
    short = estimate.text(1, signed=paired, error=False)
    return MapCell(estimate.value, doubt + short, estimate.text(2, signed=paired))


def _group_table(task: str, rows: Sequence[VariantRow]) -> Table | None:
    """Accuracy by groups of subjects, where any variant did better than guessing."""
    measured = [row for row in rows if _names([row], task, "accuracy/")]
    guessed = {row.variant for row in measured if row.at_chance(task)}
    if len(guessed) == len(measured):
        return None
    groups = _names(measured, task, "accuracy/")
    body = tuple(
        (
            row.variant + "*" * (row.variant in guessed),
            *(figure_text(row.estimate(task, f"accuracy/{name}", 100), 1) for name in groups),
        )
        for row in measured
    )
    headings = ("Variant", *(name.replace("_", " ") for name in groups))
    title = f"{MMLU_TASKS[task]} by group of subjects, % ± standard error"
    return Table(headings, body, title=title + "; * guessing" * bool(guessed), folded=True)
