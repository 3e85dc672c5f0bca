"""Plans: what they have to beat, and where they spend their bits."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from ewq.gating.change import incomparable, paired_changes
from ewq.report.document import Paragraph, Part, Plot, Section, Table
from ewq.report.rows import MISSING, Estimate, ReportedRun, VariantRow
from ewq.report.table import kld
from ewq.stats import ALPHA
from ewq.variants import engine_of

RANDOM_CONTROLS = "Mean KLD from FP16, nats per token, among random plans of the same size."
RULE = (
    "A block whose {} is at or above the mean stays raw; below the mean, but above "
    "mean − factor × standard deviation, it gets 8 bits; further below, 4 bits."
)
_SAME_SIZE = 0.005
_RANDOM = "random"
_WORDS = {"raw": "raw", "8bit": "8 bits", "4bit": "4 bits", "mixed": "mixed"}
_ENTROPIES = {"histogram": "entropy, bits", "softmax": "entropy"}
"""Scorers that are entropies; of others the report speaks of scores."""


@dataclass(frozen=True)
class ControlComparison:
    """One plan against one uniform control of the same engine, on the same texts."""

    plan: str
    control: str
    size_percent: float
    perplexity: Estimate
    """By how much the plan's perplexity is higher than the control's, in percent, paired."""
    certain: bool

    @property
    def outcome(self) -> str:
        """Which is no larger and certainly better, if one is."""
        if not self.certain:
            return "perplexity undecided"
        better = "plan" if self.perplexity.value < 0 else "control"
        larger = self.size_percent > 0 if better == "plan" else self.size_percent < 0
        return "size against quality" if larger else f"{better} no larger and better"


def compare_with_controls(rows: Sequence[VariantRow]) -> list[ControlComparison]:
    """All pairs of one engine that share their texts and whose sizes are known."""
    pairs = [
        (plan, control)
        for plan in rows
        if plan.kind.planned and scorer(plan) != _RANDOM
        for control in rows
        if control.kind.control and engine_of(control.variant) == engine_of(plan.variant)
    ]
    found = (_compare(plan, control, ALPHA / len(pairs)) for plan, control in pairs)
    return [comparison for comparison in found if comparison is not None]


def _compare(plan: VariantRow, control: VariantRow, alpha: float) -> ControlComparison | None:
    """``None`` where perplexities cannot be paired or a size is unknown."""
    old, new = (row.records.get("perplexity") for row in (control, plan))
    if not (old and new and plan.weights_bytes and control.weights_bytes):
        return None
    change = paired_changes(old, new).get("perplexity")
    if change is None or incomparable(old, new):
        return None
    base, planned = old.metrics["perplexity"].value, new.metrics["perplexity"].value
    return ControlComparison(
        plan.variant,
        control.variant,
        100 * (plan.weights_bytes / control.weights_bytes - 1),
        Estimate(100 / base * (planned - base), 100 / base * change.stderr),
        change.p_value / 2 < alpha,
    )


@dataclass(frozen=True)
class RandomRanking:
    """One plan among random plans of its size and engine; its chances are a permutation test's."""

    plan: str
    kld_nats: float
    random_klds_nats: tuple[float, ...]
    """Of the random plans, ascending."""

    @property
    def beaten(self) -> int:
        """Random plans that diverge more from the reference than the plan."""
        return sum(kld > self.kld_nats for kld in self.random_klds_nats)

    @property
    def p_values(self) -> tuple[float, float]:
        """Chances that a random plan's rank is as good, and as bad; never 0."""
        random = self.random_klds_nats
        as_good = sum(kld <= self.kld_nats for kld in random)
        as_bad = sum(kld >= self.kld_nats for kld in random)
        return (1 + as_good) / (1 + len(random)), (1 + as_bad) / (1 + len(random))

    @property
    def outcome(self) -> str:
        """The result in words; where nothing may be said, how many random plans it would take."""
        needed = math.ceil(1 / ALPHA) - 1
        if len(self.random_klds_nats) < needed:
            return f"undecided: needs {needed} random plans"
        better, worse = (p_value <= ALPHA for p_value in self.p_values)
        how = "better than" if better else "worse than" if worse else "no different from"
        return f"{how} chance"


def rank_among_random(rows: Sequence[VariantRow]) -> list[RandomRanking]:
    """Every scored plan of which the run holds random plans of the same size."""
    measured = [(row, row.value("divergence", "kld_mean")) for row in rows]
    known = [(row, nats) for row, nats in measured if nats is not None and scorer(row)]
    random = [(row, nats) for row, nats in known if scorer(row) == _RANDOM]
    return [
        RandomRanking(row.variant, nats, tuple(rivals))
        for row, nats in known
        if scorer(row) != _RANDOM
        if (rivals := sorted(other for rival, other in random if _same_size(rival, row)))
    ]


def scorer(row: VariantRow) -> str | None:
    """The scorer of the plan that a variant was made by; ``None`` without a plan."""
    return None if row.plan is None else str(row.plan.get("scorer"))


def _same_size(one: VariantRow, other: VariantRow) -> bool:
    if not one.weights_bytes or not other.weights_bytes:
        return False
    same_engine = engine_of(one.variant) == engine_of(other.variant)
    return same_engine and abs(one.weights_bytes / other.weights_bytes - 1) <= _SAME_SIZE


def controls(shown: ReportedRun) -> Section | None:
    """Plans against uniform controls, and scored plans among random plans of their size."""
    parts: list[Part] = []
    uniform = []
    for pair in compare_with_controls(shown.rows):
        change = f"{pair.size_percent:+.0f} %", pair.perplexity.text(2, signed=True)
        uniform.append((pair.plan, pair.control, *change, pair.outcome))
    if uniform:
        title = "Plans against uniform controls of the same engine, on the same texts"
        headings = ("Plan", "Control", "Size", "Perplexity %", "Outcome")
        words = frozenset({"Control", "Outcome"})
        parts.append(Table(headings, tuple(uniform), words, title))
    random = []
    for found in rank_among_random(shown.rows):
        klds = found.random_klds_nats
        made = {
            "Plan": found.plan,
            "KLD": f"{found.kld_nats:.3g}",
            "Random plans": str(len(klds)),
            "Median": f"{median(klds):.3g}",
            "Range": f"{klds[0]:.3g} to {klds[-1]:.3g}",
            "Beaten": f"{found.beaten} of {len(klds)}",
            "p": f"{min(found.p_values):.2f}",
            "Outcome": found.outcome,
        }
        random.append(made)
    if random:
        parts += [Paragraph(RANDOM_CONTROLS), Table.of(random, "Outcome")]
    return Section("controls", "Plans against controls", tuple(parts)) if parts else None


class _Plan(NamedTuple):
    """The stored summary of a variant's plan of precisions."""

    variant: str
    stored: Mapping[str, Any]

    @property
    def scores(self) -> tuple[float, ...]:
        return tuple(score for _, score, _ in self.stored["blocks"])

    @property
    def precisions(self) -> list[str]:
        found = (precision for _, _, precision in self.stored["blocks"])
        return [each if each in _WORDS else "mixed" for each in found]

    @property
    def factor(self) -> Any:
        return (self.stored.get("rule") or self.stored).get("factor")

    @property
    def scorer(self) -> str:
        return str(self.stored.get("scorer"))

    @property
    def measure(self) -> str:
        return "Entropy" if self.scorer in _ENTROPIES else "Score"

    @property
    def counts(self) -> str:
        """``16 raw, 6 at 8 bits, 8 at 4 bits``."""
        found = Counter(self.precisions)
        bits = {name: "at " * name.endswith("bit") + words for name, words in _WORDS.items()}
        return ", ".join(f"{found[name]} {bits[name]}" for name in bits if name in found)


def blocks(shown: ReportedRun) -> Section | None:
    """A plot for each series of scores (several where scorers differ), and types of tensors."""
    plans = [
        _Plan(row.variant, row.plan) for row in shown.rows if row.plan and row.plan.get("blocks")
    ]
    groups: dict[tuple[float, ...], list[_Plan]] = {}
    for plan in plans:
        groups.setdefault(plan.scores, []).append(plan)
    parts: list[Part] = [_plot(n, own) for n, own in enumerate(groups.values(), start=1)]
    if any(plan.factor is not None for plan in plans):
        measures = sorted({plan.measure.lower() for plan in plans})
        parts.insert(0, Paragraph(RULE.format(" or ".join(measures))))
    typed = []
    for row in shown.rows:
        if row.plan and (types := row.plan.get("types")):
            expected, counted = row.plan.get("expected_kld"), (f"{types[t]} {t}" for t in types)
            cells = {"Plan": row.variant, "Tensors by type": ", ".join(counted)}
            cells["Expected KLD"] = f"{expected:.3g}" if expected else MISSING
            typed.append(cells | {"Measured KLD": kld(row)})
    title = "Plans that choose a type for every tensor; KLD in nats per token"
    parts += [Table.of(typed, "Tensors by type", title=title)] * bool(typed)
    return Section("blocks", "Where the plans spend their bits", tuple(parts)) if parts else None


def _plot(number: int, plans: list[_Plan]) -> Plot:
    first, thresholds = plans[0], _thresholds(plans)
    named: dict[str, list[str]] = {}
    for plan in plans:
        named.setdefault(plan.counts, []).append(plan.variant)
    counts = "; ".join(f"{', '.join(names)}: {counts}" for counts, names in named.items())
    mean, std, stored = (first.stored[key] for key in ("mean", "std", "blocks"))
    columns = zip(stored, *(plan.precisions for plan in plans), strict=True)
    rows = tuple(
        (str(index), f"{score:.4f}", *(_WORDS[each] for each in precisions))
        for (index, score, _), *precisions in columns
    )
    names, indices = tuple(plan.variant for plan in plans), [index for index, _, _ in stored]
    axes = ["block", _ENTROPIES.get(first.scorer, "score")]
    drawn = {"axes": axes, "x": indices, "y": first.scores}
    return Plot(
        name=f"blocks-{number}",
        title=f"{first.measure} by block ({first.scorer})",
        caption=f"Mean {mean:.4f} (solid: raw begins), standard deviation {std:.4f}. Dashed, from "
        f"above: 4 bits begin for {', '.join(thresholds.values()) or 'none'}. Blocks: {counts}.",
        figure={"kind": "blocks", **drawn, "mean": mean, "thresholds": list(thresholds)},
        table=Table(("Block", first.measure, *names), rows, frozenset(names)),
    )


def _thresholds(plans: list[_Plan]) -> dict[float, str]:
    """Where 4 bits begin -> the first such plan's factor or name, the highest first."""
    found: dict[float, str] = {}
    for plan in plans:
        begins = (plan.stored.get("thresholds") or {}).get("8bit")
        if begins is not None:
            found.setdefault(begins, plan.variant if plan.factor is None else f"{plan.factor:g}")
    return dict(sorted(found.items(), reverse=True))
