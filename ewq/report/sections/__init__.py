"""The parts of a report, in the order people read them.

A section is a function ``ReportedRun -> Section | None``; ``None`` where the run holds nothing for
it. To add one, write it and add it to :data:`SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable

from ewq.report.document import Section
from ewq.report.rows import ReportedRun
from ewq.report.sections.against_size import quality, speed
from ewq.report.sections.domains import domains
from ewq.report.sections.history import history
from ewq.report.sections.outputs import flips, samples
from ewq.report.sections.overview import overview
from ewq.report.sections.plans import blocks, controls
from ewq.report.sections.run import protocol, verdicts

SECTIONS: tuple[Callable[[ReportedRun], Section | None], ...] = (
    overview,
    verdicts,
    quality,
    speed,
    domains,
    controls,
    blocks,
    flips,
    samples,
    history,
    protocol,
)
