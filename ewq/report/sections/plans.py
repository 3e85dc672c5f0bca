"""Plans: what they have to beat, and where they spend their bits."""

from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

from ewq.report.document import Paragraph, Part, Plot, Section, Table
from ewq.report.evidence import compare_with_controls, rank_among_random
from ewq.report.rows import MISSING, ReportedRun
from ewq.report.table import kld

RANDOM_CONTROLS = "Mean KLD from FP16, nats per token, among random plans of the same size."
RULE = (
    "A block whose {} is at or above the mean stays raw; below the mean, but above "
    "mean − factor × standard deviation, it gets 8 bits; further below, 4 bits."
)
_WORDS = {"raw": "raw", "8bit": "8 bits", "4bit": "4 bits", "mixed": "mixed"}
_ENTROPIES = {"histogram": "entropy, bits", "softmax": "entropy"}
"""Scorers that are entropies; of others the report speaks of scores."""


def controls(shown: ReportedRun) -> Section | None:
    """Plans against uniform controls, and scored plans among random plans of their size."""
    parts: list[Part] = []
    uniform = [
        {
            "Plan": found.plan,
            "Control": found.control,
            "Size": f"{found.size_percent:+.0f} %",
            "Perplexity %": found.perplexity.text(2, signed=True),
            "Outcome": found.outcome,
        }
        for found in compare_with_controls(shown.rows)
    ]
    if uniform:
        title = "Plans against uniform controls of the same engine, on the same texts"
        parts.append(Table.of(uniform, "Control", "Outcome", title=title))
    random = [
        {
            "Plan": found.plan,
            "KLD": f"{found.kld_nats:.3g}",
            "Random plans": str(len(found.random_klds_nats)),
            "Median": f"{median(found.random_klds_nats):.3g}",
            "Range": f"{found.random_klds_nats[0]:.3g} to {found.random_klds_nats[-1]:.3g}",
            "Beaten": f"{found.beaten} of {len(found.random_klds_nats)}",
            "p": f"{min(found.p_values):.2f}",
            "Outcome": found.outcome,
        }
        for found in rank_among_random(shown.rows)
    ]
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
    def factor(self) -> float | None:
        factor: float | None = (self.stored.get("rule") or self.stored).get("factor")
        return factor

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
        return ", ".join(
            f"{found[name]} {'at ' * name.endswith('bit')}{words}"
            for name, words in _WORDS.items()
            if name in found
        )


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
    typed = [
        {
            "Plan": row.variant,
            "Tensors by type": ", ".join(f"{n} {name}" for name, n in row.plan["types"].items()),
            "Expected KLD": f"{row.plan['expected_kld']:.3g}"
            if row.plan.get("expected_kld")
            else MISSING,
            "Measured KLD": kld(row),
        }
        for row in shown.rows
        if row.plan and row.plan.get("types")
    ]
    title = "Plans that choose a type for every tensor; KLD in nats per token"
    parts += [Table.of(typed, "Tensors by type", title=title)] * bool(typed)
    return Section("blocks", "Where the plans spend their bits", tuple(parts)) if parts else None


def _plot(number: int, plans: list[_Plan]) -> Plot:
    first, thresholds = plans[0], _thresholds(plans)
    named: dict[str, list[str]] = {}
    for plan in plans:
        named.setdefault(plan.counts, []).append(plan.variant)
    counts = "; ".join(f"{', '.join(names)}: {counts}" for counts, names in named.items())
    rows = tuple(
        (str(index), f"{score:.4f}", *(_WORDS[each] for each in precisions))
        for (index, score, _), *precisions in zip(
            first.stored["blocks"], *(plan.precisions for plan in plans), strict=True
        )
    )
    names = tuple(plan.variant for plan in plans)
    return Plot(
        name=f"blocks-{number}",
        title=f"{first.measure} by block ({first.scorer})",
        caption=f"Mean {first.stored['mean']:.4f} (solid: raw begins), standard deviation "
        f"{first.stored['std']:.4f}. Dashed, from above: 4 bits begin for "
        f"{', '.join(thresholds.values()) or 'none'}. "
        f"Blocks: {counts}.",
        figure={
            "kind": "blocks",
            "axes": ["block", _ENTROPIES.get(first.scorer, "score")],
            "x": [index for index, _, _ in first.stored["blocks"]],
            "y": first.scores,
            "mean": first.stored["mean"],
            "thresholds": list(thresholds),
        },
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
