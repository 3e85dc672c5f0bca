"""Accuracy by MMLU's groups of subjects, where the task measured more than guessing."""

from __future__ import annotations

from collections.abc import Sequence

from ewq.report.document import Table
from ewq.report.evidence import MMLU_TASKS, at_chance
from ewq.report.rows import ABSENT, VariantRow, with_error

_PREFIX = "accuracy/"


def group_tables(rows: Sequence[VariantRow]) -> tuple[Table, ...]:
    """One table a task; errors are each accuracy's own, not those of differences."""
    tables = (_table(task, rows) for task in MMLU_TASKS)
    return tuple(table for table in tables if table is not None)


def _table(task: str, rows: Sequence[VariantRow]) -> Table | None:
    told = [row for row in rows if _groups(row, task)]
    if all(at_chance(row, task) for row in told):
        return None
    groups = list(dict.fromkeys(name for row in told for name in _groups(row, task)))
    body = tuple(
        (row.variant + "*" * at_chance(row, task), *(_cell(row, task, name) for name in groups))
        for row in told
    )
    headings = ("Variant", *(name.replace("_", " ") for name in groups))
    title = f"{MMLU_TASKS[task]} by group of subjects, %: each accuracy with its own standard error"
    if any(at_chance(row, task) for row in told):
        title += "; * at chance level"
    return Table(headings, body, title=title, folded=True)


def _groups(row: VariantRow, task: str) -> list[str]:
    record = row.records.get(task)
    keys = record.metrics if record else ()
    return [key.removeprefix(_PREFIX) for key in keys if key.startswith(_PREFIX)]


def _cell(row: VariantRow, task: str, group: str) -> str:
    metric = row.metric(task, _PREFIX + group)
    if metric is None:
        return ABSENT
    error = None if metric.stderr is None else 100 * metric.stderr
    return with_error(100 * metric.value, error, 1)
