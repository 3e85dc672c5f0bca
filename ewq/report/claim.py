"""What a headline says about one need."""

from __future__ import annotations

from dataclasses import dataclass

from ewq.record import Verdict
from ewq.report.rows import VariantRow


@dataclass(frozen=True)
class Claim:
    """The answer to one need."""

    need: str
    variant: str | None
    """The variant to take; ``None`` where no single one is."""
    sentence: str
    decided: bool = True
    """Whether the run's statistics settle it."""


def failed_gates(row: VariantRow) -> str:
    """What must be said with every recommendation of a variant whose gates fail."""
    return " Its gates fail all the same: see Verdicts." if row.verdict is Verdict.FAIL else ""
