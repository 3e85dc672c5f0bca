"""Plans: what they have to beat, and where they spend their bits."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ewq.gating.change import incomparable, paired_changes
from ewq.report.document import Paragraph, Part, Plot, Section, Table
from ewq.report.rows import MISSING, Estimate, ReportedRun, VariantRow
from ewq.report.table import kld
from ewq.stats import ALPHA
from ewq.variants import engine_of

RANDOM_CONTROLS = "Mean KLD from FP16, nats per token, among random plans of the same size."
RULE = (
    "By a factor, a block whose entropy or score is at or above the mean stays raw; below it, but "
    "above mean − factor × standard deviation, it gets 8 bits; further below, 4 bits."
)
_SAME_SIZE = 0.005
_RANDOM = "random"
_ENTROPIES = {"histogram": "entropy, bits", "softmax": "entropy"}
"""Scorers that are entropies; of others the report speaks of scores."""
_Plan = Mapping[str, Any]


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
    found = []
    for plan, control in pairs:
        old, new = (row.records.get("perplexity") for row in (control, plan))
        if not (old and new and plan.weights_bytes and control.weights_bytes):
            continue
        change = paired_changes(old, new).get("perplexity")
        if change is None or incomparable(old, new):
            continue
        size_percent = 100 * (plan.weights_bytes / control.weights_bytes - 1)
        base, planned = (record.metrics["perplexity"].value for record in (old, new))
        ratio = Estimate(100 / base * (planned - base), 100 / base * change.stderr)
        certain = change.p_value / 2 < ALPHA / len(pairs)
        names = (plan.variant, control.variant)
        found.append(ControlComparison(*names, size_percent, ratio, certain))
    return found


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


def blocks(shown: ReportedRun) -> Section | None:
    """A plot for each series of scores (several where scorers differ), and types of tensors."""
    groups: dict[tuple[float, ...], dict[str, _Plan]] = {}
    typed = []
    for row in shown.rows:
        if plan := row.plan:
            scores = tuple(score for _, score, _ in plan.get("blocks") or ())
            groups.setdefault(scores, {})[row.variant] = plan
        if plan and (types := plan.get("types")):
            expected, counted = plan.get("expected_kld"), (f"{types[t]} {t}" for t in types)
            cells = {"Plan": row.variant, "Tensors by type": ", ".join(counted)}
            cells["Expected KLD"] = f"{expected:.3g}" if expected else MISSING
            typed.append(cells | {"Measured KLD": kld(row)})
    drawn = [plans for scores, plans in groups.items() if scores]
    parts: list[Part] = [Paragraph(RULE)] * bool(drawn)
    parts += [_plot(number, plans) for number, plans in enumerate(drawn, start=1)]
    title = "Plans that choose a type for every tensor; KLD in nats per token"
    parts += [Table.of(typed, "Tensors by type", title=title)] * bool(typed)
    return Section("blocks", "Where the plans spend their bits", tuple(parts)) if parts else None


def _plot(number: int, plans: dict[str, _Plan]) -> Plot:
    """The scores that plans share, and which precision each plan gives to each block."""
    first = next(iter(plans.values()))
    name, stored = str(first.get("scorer")), first["blocks"]
    measure = "Entropy" if name in _ENTROPIES else "Score"
    chosen = {of: [each or "mixed" for _, _, each in plan["blocks"]] for of, plan in plans.items()}
    counts = "; ".join(
        f"{of}: {', '.join(f'{each} {n}' for each, n in Counter(own).most_common())}"
        for of, own in chosen.items()
    )
    pairs = reversed(plans.items())
    begins = {(plan.get("thresholds") or {}).get("8bit"): of for of, plan in pairs}
    thresholds = sorted((at for at in begins if at is not None), reverse=True)
    dashed = ", ".join(begins[at] for at in thresholds) or "none"
    rows = tuple(
        (str(index), f"{score:.4f}", *precisions)
        for (index, score, _), *precisions in zip(stored, *chosen.values(), strict=True)
    )
    axes = ["block", _ENTROPIES.get(name, "score")]
    drawn = {"axes": axes, "x": [each[0] for each in stored], "y": [each[1] for each in stored]}
    return Plot(
        name=f"blocks-{number}",
        title=f"{measure} by block ({name})",
        caption=f"Mean {first['mean']:.4f} (solid: raw begins), standard deviation "
        f"{first['std']:.4f}. Dashed, from above: 4 bits begin for {dashed}. Blocks: {counts}.",
        figure={"kind": "blocks", **drawn, "mean": first["mean"], "thresholds": thresholds},
        table=Table(("Block", measure, *chosen), rows, frozenset(chosen)),
    )
