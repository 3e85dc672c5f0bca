"""What is written at the end of a run: the table, what the gates said, where the run lies."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from ewq.record import Record, Verdict
from ewq.report.escaping import terminal_line
from ewq.report.rows import VariantRow, variant_rows
from ewq.report.table import footnotes, terminal_table

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

    from ewq.harness.session import HarnessSession

NARROWEST = 60


def write_summary(reporter: TerminalReporter, state: HarnessSession, storage: Path) -> None:
    """Write the variants' table, the verdicts and where the run is stored."""
    bench = state.bench
    assert bench is not None
    rows = variant_rows(bench.records.values())
    reporter.section(f"ewq: {terminal_line(bench.subject.label)}")
    placement = bench.placement
    reporter.write_line(f"tier {bench.options.tier}, {placement.device}, {placement.dtype} compute")
    reporter.write(_drawn(rows, max(NARROWEST, reporter._tw.fullwidth), reporter.hasmarkup))
    for line in [*footnotes(rows), *_gates(state), *_skips(state)]:
        reporter.write_line(terminal_line(line))
    reporter.write_line(_where(state, storage))


def _drawn(rows: list[VariantRow], width: int, markup: bool) -> str:
    from rich.console import Console

    buffer = io.StringIO()
    console = Console(file=buffer, width=width, force_terminal=markup, no_color=not markup)
    console.print(terminal_table(rows, width))
    return buffer.getvalue()


def _gates(state: HarnessSession) -> list[str]:
    """How many records each verdict has, then a line for each that is no pass.

    The statistics behind the sentences are in the stored record and in JUnit XML.
    """
    assert state.bench is not None
    records = list(state.bench.records.values())
    counted = {verdict: sum(r.verdict is verdict for r in records) for verdict in Verdict}
    counts = ", ".join(f"{number} {verdict}" for verdict, number in counted.items() if number)
    gated = f"{counts}, by {state.bench.thresholds.source}"
    lines = [f"gates: {state.bench.ungated or gated}"]
    for verdict in (Verdict.FAIL, Verdict.IMPROVED):
        lines += [
            f"  {verdict}: {record.variant} {record.task}: {record.reasons[0].text}"
            for record in records
            if record.verdict is verdict and record.reasons
        ]
    return lines + _inconclusive(records)


def _inconclusive(records: list[Record]) -> list[str]:
    """One line a task: the same few questions are too few for every variant alike."""
    variants: dict[str, list[str]] = {}
    for record in records:
        if record.verdict is Verdict.INCONCLUSIVE:
            variants.setdefault(record.task, []).append(record.variant)
    return [f"  inconclusive: {task}: {', '.join(names)}" for task, names in variants.items()]


def _skips(state: HarnessSession) -> list[str]:
    """Variants that could not be measured, once each."""
    assert state.bench is not None
    reasons: dict[str, set[str]] = {}
    for (variant, _), reason in {**state.bench.failures, **state.bench.skipped}.items():
        reasons.setdefault(reason, set()).add(variant)
    return [f"not measured: {', '.join(sorted(names))}: {why}" for why, names in reasons.items()]


def _where(state: HarnessSession, storage: Path) -> str:
    stored = state.stored_file(storage)
    return f"saved: {stored}" if stored else "not saved: add --benchmark-autosave to keep this run"
