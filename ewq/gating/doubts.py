"""Measurements that carry a reason not to trust them: noise, throttling, chance level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ewq.metrics import is_choice, is_clocked
from ewq.record import Record, Verdict


@dataclass(frozen=True)
class Doubt:
    """Why a figure is not to be trusted, and which verdicts that takes away."""

    reason: str
    spoiled: frozenset[Verdict]

    def spoils(self, verdict: Verdict) -> bool:
        """Whether ``verdict`` becomes inconclusive."""
        return verdict in self.spoiled


_ANY = frozenset({Verdict.PASS, Verdict.FAIL, Verdict.IMPROVED})
# A variant that fell to chance while its reference did not has failed for certain; only agreeing
# with a reference that guesses says nothing.
_GOOD_NEWS = frozenset({Verdict.PASS, Verdict.IMPROVED})

_MARKERS: tuple[tuple[str, Callable[[str], bool], frozenset[Verdict]], ...] = (
    ("throttl", is_clocked, _ANY),
    ("nois", is_clocked, _ANY),
    ("chance", is_choice, _GOOD_NEWS),
)
"""A word that tasks use in their notes, the metrics it concerns, the verdicts it takes away."""


def doubt_about(metric: str, record: Record) -> Doubt | None:
    """The first doubt that the record's notes raise about one of its metrics."""
    for marker, concerns, spoiled in _MARKERS:
        note = next((note for note in record.notes if marker in note.lower()), None)
        if note is not None and concerns(metric):
            return Doubt(note, spoiled)
    return None
