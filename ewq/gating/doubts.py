"""What a doubt about a measurement does to verdicts on its metrics."""

from __future__ import annotations

from ewq.measurement import Doubt, DoubtKind
from ewq.record import Record, Verdict
from ewq.tasks.table import Figure, Kind, figure_of

_OF_THE_REFERENCE = (DoubtKind.OTHER_SESSION, DoubtKind.DECODE_MODE)


def doubt_about(metric: str, record: Record, verdict: Verdict | None = None) -> Doubt | None:
    """The first doubt of a record about one of its metrics.

    With ``verdict``: the first that makes this verdict on the metric inconclusive.
    """
    figure = figure_of(record.task, metric)
    if figure is None or verdict is Verdict.INCONCLUSIVE:
        return None
    return next((each for each in record.doubts if _counts(each.kind, figure, verdict)), None)


def at_chance(record: Record) -> bool:
    """Whether the record's accuracy cannot be told from guessing."""
    return any(doubt.kind is DoubtKind.CHANCE for doubt in record.doubts)


def _counts(doubt: DoubtKind, figure: Figure, verdict: Verdict | None) -> bool:
    if doubt is DoubtKind.CHANCE:
        # A variant that fell to chance while its reference did not has failed for certain.
        return figure.kind is Kind.CHOICE and verdict is not Verdict.FAIL
    return figure.kind is Kind.CLOCK and (figure.paired or doubt not in _OF_THE_REFERENCE)
