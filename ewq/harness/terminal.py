"""What a run writes on the terminal: its progress, then the table, the verdicts, where it lies."""

from __future__ import annotations

import io
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ewq.progress import NO_PROGRESS, Progress
from ewq.report.escaping import terminal_line
from ewq.report.rows import VariantRow, variant_rows
from ewq.report.table import footnotes, terminal_table

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

    from ewq.harness.state import PluginState

NARROWEST = 60
_REDRAW_S = 0.2
_BAR_CELLS = 20
_MEGA = 1e6


def write_summary(reporter: TerminalReporter, state: PluginState, storage: Path) -> None:
    """Write which variant to take, the table, the verdicts and where the run is stored."""
    session = state.session
    assert session is not None
    rows = variant_rows(session.records.values())
    reporter.section(f"ewq: {terminal_line(session.subject.label)}")
    placement = session.placement
    reporter.write_line(
        f"tier {session.options.tier}, {placement.device}, {placement.dtype} compute"
    )
    for line in _recommended(rows, verbose=reporter.verbosity > 0):
        reporter.write_line(terminal_line(line))
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


def _gates(state: PluginState) -> list[str]:
    """How many records each verdict has, then what is no pass, each cause once."""
    assert state.session is not None
    from ewq.report.sections.run import verdict_counts, verdict_points

    records = list(state.session.records.values())
    gate = state.session.gate
    lines = [f"gates: {gate.ungated or f'{verdict_counts(records)}, by {gate.thresholds.source}'}"]
    if baseline := gate.baseline:
        lines.append(f"  {'; '.join((f'against {baseline.name}', *gate.remarks))}")
    return lines + [f"  {point.lead}: {point.text}" for point in verdict_points(records)]


def _recommended(rows: list[VariantRow], *, verbose: bool) -> list[str]:
    """Which variant to take for which need, in a line each; what that rests on if ``verbose``."""
    from ewq.report.recommendations import recommendations

    lines = []
    for each in recommendations(rows):
        lines.append(f"{each.need}: {'' if each.decided else '(undecided) '}{each.sentence}")
        lines += [f"  {each.details}"] * (verbose and bool(each.details))
    return lines


def _skips(state: PluginState) -> list[str]:
    """Variants that could not be measured, once each."""
    assert state.session is not None
    reasons: dict[str, set[str]] = {}
    for (variant, _), reason in {**state.session.failures, **state.session.skipped}.items():
        reasons.setdefault(reason, set()).add(variant)
    return [f"not measured: {', '.join(sorted(names))}: {why}" for why, names in reasons.items()]


def _where(state: PluginState, storage: Path) -> str:
    stored = state.stored_file(storage)
    return f"saved: {stored}" if stored else "not saved, as asked"


@dataclass
class Step:
    """What is being done and how far it is."""

    label: str
    total: int
    unit: str
    done: int = 0
    started_s: float = field(default_factory=time.monotonic)

    def fitting(self, room: int) -> str:
        """The longest line of this step that ``room`` cells hold; empty where none does."""
        from rich.cells import cell_len

        if self.total <= 1:
            lines = [f"{self.label} ..."]
        else:
            counted = f"{self.label} {self._amount}"
            lines = [f"{self.label} {self._bar} {self._amount}{self._left}", counted, self.label]
        return next((line for line in lines if cell_len(line) <= room), "")

    @property
    def _bar(self) -> str:
        filled = _BAR_CELLS * min(self.done, self.total) // self.total
        return f"[{'#' * filled}{'-' * (_BAR_CELLS - filled)}]"

    @property
    def _amount(self) -> str:
        if self.unit == "bytes":
            return f"{self.done / _MEGA:.0f}/{self.total / _MEGA:.0f} MB"
        return f"{self.done}/{self.total} {self.unit}"

    @property
    def _left(self) -> str:
        if not 0 < self.done < self.total:
            return ""
        passed_s = time.monotonic() - self.started_s
        minutes, seconds = divmod(round(passed_s * (self.total - self.done) / self.done), 60)
        return f", {minutes}:{seconds:02d} left"


class TerminalProgress:
    """Draws to the right of what pytest has written, and leaves the cursor where pytest had it.

    So whatever pytest writes next stands where it would have stood, and nothing of its is erased.
    """

    def __init__(self, reporter: Any, capture: Any) -> None:
        self._reporter = reporter
        self._capture = capture
        self._lock = threading.Lock()
        self._step: Step | None = None
        self._drawn_s = 0.0

    def start(self, label: str, total: int, unit: str) -> None:
        """Begin a step."""
        with self._lock:
            self._step = Step(terminal_line(label), total, unit)
            self._draw(self._step)

    def advance(self, amount: int) -> None:
        """Report progress; redraws at most five times a second."""
        with self._lock:
            if self._step is None:
                return
            self._step.done += amount
            if time.monotonic() - self._drawn_s > _REDRAW_S:
                self._draw(self._step)

    def finish(self) -> None:
        """Remove the line."""
        with self._lock:
            if self._step is not None:
                self._write("\x1b[K")
            self._step = None

    def _draw(self, step: Step) -> None:
        from rich.cells import cell_len

        writer = self._reporter._tw
        # One cell stays free: behind the last one the cursor would be on the next line.
        text = step.fitting(writer.fullwidth - writer.width_of_current_line - 1)
        back = f"\x1b[{cell_len(text)}D" if text else ""
        self._write(f"\x1b[K{text}{back}")
        self._drawn_s = time.monotonic()

    def _write(self, text: str) -> None:
        """Write past pytest's capture and its count of the line's width."""
        with self._capture.global_and_fixture_disabled():
            self._reporter._tw._file.write(text)
            self._reporter._tw._file.flush()


def find_progress(config: pytest.Config) -> Progress:
    """A drawn progress on a terminal, a silent one in pipes and CI logs."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or capture is None or not reporter.isatty:
        return NO_PROGRESS
    return TerminalProgress(reporter, capture)
