"""Pareto fronts: variants that no other beats in both size and quality."""

from __future__ import annotations

from collections.abc import Sequence

Candidate = tuple[float, float, str]
"""``(cost, badness, name)``: lower is better in both."""


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that none beats in one figure without losing in the other, by cost.

    Of candidates equal in both, all are kept.
    """
    kept: list[Candidate] = []
    for candidate in sorted(candidates):
        if not kept or candidate[1] < kept[-1][1] or candidate[:2] == kept[-1][:2]:
            kept.append(candidate)
    return kept
