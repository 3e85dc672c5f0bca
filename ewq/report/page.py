"""From stored runs to a page, before any format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ewq.record import Record
from ewq.report.document import Page, Section
from ewq.report.recommendations import recommendations
from ewq.report.rows import ReportedRun, reported_run, run_data
from ewq.report.sections import SECTIONS
from ewq.report.sections.against_size import pareto_fronts
from ewq.storage.runs import Run

SCHEMA = 1


def make_page(runs: Sequence[Run]) -> Page:
    """The report of the newest of ``runs``, with the others as its history.

    Raises:
        InputError: the newest run holds nothing that ewq measured.
    """
    shown = reported_run(runs)
    made = (section(shown) for section in SECTIONS)
    sections: tuple[Section, ...] = tuple(section for section in made if section is not None)
    title = f"{shown.first.model}: quantized variants compared"
    return Page(title, _subtitle(shown), sections, _data(shown))


def _subtitle(shown: ReportedRun) -> str:
    run, count = shown.run, len(shown.rows)
    return (
        f"{count} variant{'s' * (count != 1)}, tier {shown.first.tier}, on {shown.device}; "
        f"run {run.name} of {run.datetime:%Y-%m-%d}"
    )


def _data(shown: ReportedRun) -> dict[str, Any]:
    """Everything a script may want, without per-item records."""
    return {
        "schema": SCHEMA,
        "model": shown.first.model,
        "fingerprint": shown.first.fingerprint,
        "tier": shown.first.tier,
        "runs": [run_data(run) for run in shown.history],
        "answers": [asdict(each) for each in recommendations(shown.rows)],
        "pareto_fronts": pareto_fronts(shown),
        "variants": [
            {
                "variant": row.variant,
                "verdict": row.verdict.value,
                "tasks": {task: _record(record) for task, record in row.records.items()},
            }
            for row in shown.rows
        ],
        "environment": dict(shown.run.machine),
    }


def _record(record: Record) -> dict[str, Any]:
    """A stored record without items and other bulk, but with the plan."""
    stored = record.to_json()
    side = stored.pop("side")
    for bulky in ("items", "schema", "model", "fingerprint", "variant", "task", "tier"):
        del stored[bulky]
    return stored | ({"plan_blocks": side["plan"]} if "plan" in side else {})
