"""What a doubt about a measurement does to verdicts on its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ewq.measurement import Doubt, DoubtKind
from ewq.record import Record, Verdict
from ewq.tasks.table import Figure, Kind, figure_of

_ANY = frozenset({Verdict.PASS, Verdict.FAIL, Verdict.IMPROVED})
# A variant that fell to chance while its reference did not has failed for certain; only agreeing
# with a reference that guesses says nothing.
_GOOD_NEWS = frozenset({Verdict.PASS, Verdict.IMPROVED})


def _is_clocked(figure: Figure) -> bool:
    return figure.kind is Kind.CLOCK


_EFFECTS: Mapping[DoubtKind, tuple[Callable[[Figure], bool], frozenset[Verdict]]] = {
    DoubtKind.THROTTLING: (_is_clocked, _ANY),
    DoubtKind.NOISE: (_is_clocked, _ANY),
    DoubtKind.BUSY: (_is_clocked, _ANY),
    DoubtKind.OTHER_SESSION: (lambda figure: _is_clocked(figure) and figure.paired, _ANY),
    DoubtKind.DECODE_MODE: (lambda figure: _is_clocked(figure) and figure.paired, _ANY),
    DoubtKind.CHANCE: (lambda figure: figure.kind is Kind.CHOICE, _GOOD_NEWS),
    DoubtKind.APPROXIMATE_REFERENCE: (lambda figure: figure.paired, _ANY),
}
"""Kind -> the metrics it concerns, and the verdicts on them that become inconclusive."""


def doubt_about(metric: str, record: Record, verdict: Verdict | None = None) -> Doubt | None:
    """The first doubt of a record about one of its metrics.

    With ``verdict``: the first that makes this verdict on the metric inconclusive.
    """
    figure = figure_of(record.task, metric)
    if figure is None:
        return None
    for doubt in record.doubts:
        concerns, undermined = _EFFECTS[doubt.kind]
        if concerns(figure) and (verdict is None or verdict in undermined):
            return doubt
    return None


def at_chance(record: Record) -> bool:
    """Whether the record's accuracy cannot be told from guessing."""
    return any(doubt.kind is DoubtKind.CHANCE for doubt in record.doubts)
