"""From stored runs to a page: its sections, functions ``ReportedRun -> Section | None``."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ewq.report.document import Page, Paragraph, Section, Table
from ewq.report.recommendations import recommendations
from ewq.report.rows import ReportedRun, VariantRow, reported_run, run_data, variant_rows
from ewq.report.sections.against_size import quality, quality_plots, speed
from ewq.report.sections.breakdown import domains, flips, lm_eval, samples
from ewq.report.sections.history import history
from ewq.report.sections.plans import blocks, controls
from ewq.report.sections.run import overview, protocol, verdicts
from ewq.report.table import footnotes, variants_table
from ewq.storage.runs import Run

SECTIONS: tuple[Callable[[ReportedRun], Section | None], ...] = (
    overview, verdicts, quality, speed, lm_eval, domains, controls, blocks, flips, samples, history,
    protocol,
)  # fmt: skip
"""In the order people read them; a section is ``None`` where the run holds nothing for it."""


def make_page(runs: Sequence[Run]) -> Page:
    """The report of the newest of ``runs``, with the others as its history."""
    shown = reported_run(runs)
    run, first, count = shown.run, shown.first, len(shown.rows)
    device = run.machine.get("gpu") or run.machine.get("cpu") or "an unknown device"
    subtitle = (
        f"{count} variant{'s' * (count != 1)}, tier {first.tier}, on {device}; "
        f"run {run.name} of {run.datetime:%Y-%m-%d}"
    )
    sections = [section for make in SECTIONS if (section := make(shown)) is not None]
    title = f"{first.model}: quantized variants compared"
    return Page(title, subtitle, tuple(sections), _data(shown))


def sweep_page(runs: Sequence[tuple[str, Run]]) -> Page:
    """The runs of a sweep by their names: what to take of each model, then a table for each."""
    rows = {name: variant_rows(run.records.values()) for name, run in runs}
    taken = [
        {"Model": name} | {each.need: each.variant or "–" for each in recommendations(own)}
        for name, own in rows.items()
    ]
    needs = dict.fromkeys(heading for each in taken for heading in each)
    cells = [{heading: each.get(heading, "–") for heading in needs} for each in taken]
    chosen = Section("models", "What to take", (Table.of(cells, *needs),))
    tables = [
        Section(f"run-{number}", name, (variants_table(own), Paragraph(" ".join(footnotes(own)))))
        for number, (name, own) in enumerate(rows.items(), start=1)
    ]
    subtitle = f"{len(runs)} runs, the newest of {max(run.datetime for _, run in runs):%Y-%m-%d}"
    data = {"schema": 1, "runs": {name: run_data(run) for name, run in runs}}
    return Page("Quantized variants of many models", subtitle, (chosen, *tables), data)


def _data(shown: ReportedRun) -> dict[str, Any]:
    return {
        "schema": 1,
        "model": shown.first.model,
        "fingerprint": shown.first.fingerprint,
        "tier": shown.first.tier,
        "runs": [run_data(run) for run in shown.history],
        "answers": [asdict(each) for each in recommendations(shown.rows)],
        "pareto_fronts": {name: front for name, (_, front) in quality_plots(shown).items()},
        "variants": [_variant(row) for row in shown.rows],
        "environment": dict(shown.run.machine),
    }


def _variant(row: VariantRow) -> dict[str, Any]:
    tasks = {task: record.to_json() for task, record in row.records.items()}
    for stored in tasks.values():
        side = stored.pop("side")
        for bulky in ("items", "schema", "model", "fingerprint", "variant", "task", "tier"):
            del stored[bulky]
        stored |= {"plan_blocks": side["plan"]} if "plan" in side else {}
    return {"variant": row.variant, "verdict": row.verdict.value, "tasks": tasks}
