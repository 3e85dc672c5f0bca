"""What a run writes on the terminal: its progress, then the table, the verdicts, where it lies."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ewq.harness.session import Session
from ewq.progress import NO_PROGRESS, Progress, progress_on
from ewq.report.document import VERDICT, terminal_line
from ewq.report.recommendations import recommendations
from ewq.report.rows import VariantRow, variant_rows
from ewq.report.sections.run import verdict_counts, verdict_points
from ewq.report.table import footnotes, terminal_table, variants_table

Draw = Callable[[Sequence[str]], None]


def write_summary(reporter: TerminalReporter, session: Session, stored: Path | None) -> None:
    """Write which variant to take, the table, the verdicts and where the run is stored."""
    rows = variant_rows(session.records.values())
    reporter.section(f"ewq: {terminal_line(session.subject.label)}")
    tier, placement = session.options.tier, session.placement
    reporter.write_line(f"tier {tier}, {placement.device}, {placement.dtype} compute")
    for line in _recommended(rows, verbose=reporter.verbosity > 0):
        reporter.write_line(terminal_line(line))
    reporter.write(_drawn(rows, max(60, reporter._tw.fullwidth), reporter.hasmarkup))
    for line in [*footnotes(rows), *_gates(session), *_skips(session)]:
        reporter.write_line(terminal_line(line))
    reporter.write_line(f"saved: {stored}" if stored else "not saved, as asked")


def row_line(session: Session, variant: str) -> str:
    """A variant's row of the table as soon as it is measured; empty where nothing was."""
    rows = variant_rows(each for each in session.records.values() if each.variant == variant)
    table = variants_table(rows, brief=True)
    if not rows or len(table.headings) < 2:
        return ""
    cells = dict(zip(table.headings, table.rows[0], strict=True))
    verdict = cells.pop(VERDICT, "")
    told = [f"{heading} {cell}" for heading, cell in list(cells.items())[1:]]
    return terminal_line(f"ewq: {variant}: {', '.join(told)} {verdict}".rstrip())


def tell(config: pytest.Config, *lines: str) -> None:
    """Write lines between tests, past pytest's capture of what tests write; none under ``-q``."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or reporter.verbosity < 0:
        return
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        for line in filter(None, lines):
            reporter.ensure_newline()
            reporter.write_line(line)


@contextmanager
def lines_drawn(config: pytest.Config) -> Iterator[tuple[Draw | None, Callable[[str], None]]]:
    """What draws lines in place of those before, on a terminal only, and what writes above them."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or capture is None or not reporter.isatty or reporter.verbosity < 0:
        yield None, partial(tell, config)
        return
    reporter.ensure_newline()
    # While pytest captures, standard output is a file, and rich would draw nothing.
    with capture.global_and_fixture_disabled():
        terminal = reporter._tw
        console = Console(file=terminal._file, force_terminal=True, width=terminal.fullwidth)
        with Live(console=console, auto_refresh=False, transient=True) as live:

            def draw(lines: Sequence[str]) -> None:
                text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
                live.update(text, refresh=True)

            yield draw, partial(console.print, markup=False, highlight=False)


def _drawn(rows: list[VariantRow], width: int, markup: bool) -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, force_terminal=markup, no_color=not markup)
    console.print(terminal_table(rows, width))
    return buffer.getvalue()


def _gates(session: Session) -> list[str]:
    """How many records each verdict has, then what is no pass, each cause once."""
    records, gate = list(session.records.values()), session.gate
    lines = [f"gates: {gate.ungated or f'{verdict_counts(records)}, by {gate.thresholds.source}'}"]
    if gate.baseline:
        lines.append(f"  {'; '.join((f'against {gate.baseline.name}', *gate.remarks))}")
    return lines + [f"  {point.lead}: {point.text}" for point in verdict_points(records)]


def _recommended(rows: list[VariantRow], *, verbose: bool) -> list[str]:
    """Which variant to take for which need, in a line each; what that rests on if ``verbose``."""
    lines = []
    for each in recommendations(rows):
        lines.append(f"{each.need}: {'' if each.decided else '(undecided) '}{each.sentence}")
        lines += [f"  {each.details}"] * (verbose and bool(each.details))
    return lines


def _skips(session: Session) -> list[str]:
    """Variants that could not be measured, once each."""
    reasons: dict[str, set[str]] = {}
    for (variant, _), reason in {**session.failures, **session.skipped}.items():
        reasons.setdefault(reason, set()).add(variant)
    return [f"not measured: {', '.join(sorted(names))}: {why}" for why, names in reasons.items()]


def find_progress(config: pytest.Config) -> Progress:
    """Progress below what pytest wrote."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or capture is None:
        return NO_PROGRESS
    writer = reporter._tw

    def write(text: str) -> None:
        """Past pytest's capture, from a line's beginning."""
        with capture.global_and_fixture_disabled():
            if writer.width_of_current_line:
                writer.line()
            writer._file.write(text)
            writer._file.flush()

    return progress_on(reporter.isatty, write, lambda: writer.fullwidth)
