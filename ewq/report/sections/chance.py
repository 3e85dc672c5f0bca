"""Plans against random plans of the same size."""

from __future__ import annotations

from ewq.report.document import Paragraph, Section, Table
from ewq.report.draws import Draws, draws
from ewq.report.subject import Reported

WHAT = (
    "Mean KLD from FP16 on the same tokens, in thousandths of a nat. A scorer is worth something "
    "only where its plan diverges less than plans of the same size drawn at random; p is that of "
    "a permutation test among the draws."
)
HEADINGS = ("Plan", "KLD", "Random plans", "Their median", "Their range", "Beaten", "p", "Outcome")


def section(subject: Reported) -> Section | None:
    """Rank of every scored plan among the random plans of its size."""
    found = draws(subject.rows)
    if not found:
        return None
    table = Table(HEADINGS, tuple(_cells(each) for each in found), frozenset({"Outcome"}))
    return Section("chance", "Better than chance?", (Paragraph(WHAT), table))


def _cells(each: Draws) -> tuple[str, ...]:
    klds = each.random_klds_nats
    return (
        each.plan,
        _milli(each.kld_nats),
        str(len(klds)),
        _milli(each.median_kld_nats),
        f"{_milli(klds[0])} to {_milli(klds[-1])}",
        f"{each.beaten} of {len(klds)}",
        f"{min(each.p_better, each.p_worse):.2f}",
        each.outcome,
    )


def _milli(nats: float) -> str:
    return f"{1000 * nats:.3g}"
