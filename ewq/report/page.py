"""From stored runs to a page, before any format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ewq.record import Record
from ewq.report.document import Page, Section
from ewq.report.headline import claims
from ewq.report.sections import SECTIONS
from ewq.report.sections.quality import fronts
from ewq.report.subject import Reported, reported
from ewq.storage.runs import Run

SCHEMA = 1


def make_page(runs: Sequence[Run]) -> Page:
    """The report of the newest of ``runs``, with the others as its history.

    Raises:
        InputError: the newest run holds nothing that ewq measured.
    """
    subject = reported(runs)
    made = (section(subject) for section in SECTIONS)
    sections: tuple[Section, ...] = tuple(section for section in made if section is not None)
    return Page(_title(subject), _subtitle(subject), sections, _data(subject))


def _title(subject: Reported) -> str:
    return f"{subject.first.model}: quantized variants compared"


def _subtitle(subject: Reported) -> str:
    run = subject.run
    count = len(subject.rows)
    return (
        f"{count} variant{'s' * (count != 1)}, tier {subject.first.tier}, on "
        f"{subject.measured_on}; run {run.name} of {run.datetime:%Y-%m-%d}"
    )


def _data(subject: Reported) -> dict[str, Any]:
    """Everything a script may want, without per-item records."""
    return {
        "schema": SCHEMA,
        "model": subject.first.model,
        "fingerprint": subject.first.fingerprint,
        "tier": subject.first.tier,
        "runs": [_run(run) for run in subject.history],
        "answers": [asdict(claim) for claim in claims(subject)],
        "pareto_fronts": fronts(subject),
        "variants": [
            {
                "variant": row.variant,
                "verdict": row.verdict.value,
                "tasks": {task: _record(record) for task, record in row.records.items()},
            }
            for row in subject.rows
        ],
        "environment": dict(subject.run.machine),
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": str(run.path),
        "commit": run.commit,
        "dirty": run.dirty,
        "datetime": run.datetime.isoformat(),
        "complete": run.complete,
        "missing": [list(key) for key in run.lost],
    }


def _record(record: Record) -> dict[str, Any]:
    """A stored record without items and other bulk, but with the plan."""
    stored = record.to_json()
    side = stored.pop("side")
    for bulky in ("items", "schema", "model", "fingerprint", "variant", "task", "tier"):
        del stored[bulky]
    return stored | ({"plan_blocks": side["plan"]} if "plan" in side else {})
