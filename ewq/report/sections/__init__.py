"""The parts of a report, in the order people read them.

A section is a function ``Reported -> Section | None``; ``None`` where the run
holds nothing for it. To add one, write it and add it to :data:`SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable

from ewq.report.document import Section
from ewq.report.sections import (
    answers,
    blocks,
    chance,
    domains,
    flips,
    history,
    protocol,
    quality,
    samples,
    speed,
    variants,
    verdicts,
)
from ewq.report.subject import Reported

SECTIONS: tuple[Callable[[Reported], Section | None], ...] = (
    answers.section,
    variants.section,
    verdicts.section,
    quality.section,
    speed.section,
    domains.section,
    blocks.section,
    chance.section,
    flips.section,
    samples.section,
    history.section,
    protocol.section,
)
