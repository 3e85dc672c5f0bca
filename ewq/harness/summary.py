"""The table at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ewq.harness.session import HarnessSession


def write_summary(reporter: Any, state: HarnessSession, storage: Path) -> None:  # noqa: ANN401
    """Write the variants' table, the verdicts and where the run is stored."""
    bench = state.bench
    assert bench is not None
    reporter.section("ewq")
    for key, record in bench.records.items():
        figures = ", ".join(f"{k} {m.value:.4g}" for k, m in list(record.metrics.items())[:6])
        reporter.write_line(f"{key[0]:14} {key[1]:12} {record.verdict.value:12} {figures}")
