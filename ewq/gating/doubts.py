"""What a doubt about a measurement does to verdicts on its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ewq.measurement import Doubt, DoubtKind
from ewq.metrics import is_choice, is_clocked, is_paired
from ewq.record import Record, Verdict

_ANY = frozenset({Verdict.PASS, Verdict.FAIL, Verdict.IMPROVED})
# A variant that fell to chance while its reference did not has failed for certain; only agreeing
# with a reference that guesses says nothing.
_GOOD_NEWS = frozenset({Verdict.PASS, Verdict.IMPROVED})


def _is_speed_ratio(metric: str) -> bool:
    return is_clocked(metric) and is_paired(metric)


_EFFECTS: Mapping[DoubtKind, tuple[Callable[[str], bool], frozenset[Verdict]]] = {
    DoubtKind.THROTTLING: (is_clocked, _ANY),
    DoubtKind.NOISE: (is_clocked, _ANY),
    DoubtKind.OTHER_SESSION: (_is_speed_ratio, _ANY),
    DoubtKind.CHANCE: (is_choice, _GOOD_NEWS),
    DoubtKind.APPROXIMATE_REFERENCE: (is_paired, _ANY),
}
"""Kind -> the metrics it concerns, and the verdicts on them that become inconclusive."""


def doubt_about(metric: str, record: Record, verdict: Verdict | None = None) -> Doubt | None:
    """The first doubt of a record about one of its metrics.

    With ``verdict``: the first that makes this verdict on the metric inconclusive.
    """
    for doubt in record.doubts:
        concerns, undermined = _EFFECTS[doubt.kind]
        if concerns(metric) and (verdict is None or verdict in undermined):
            return doubt
    return None


def at_chance(record: Record) -> bool:
    """Whether the record's accuracy cannot be told from guessing."""
    return any(doubt.kind is DoubtKind.CHANCE for doubt in record.doubts)
