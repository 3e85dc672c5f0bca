"""A plan in a few lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ewq.planning.plan import QuantizationPlan
from ewq.precision import Precision

MARKS = {Precision.RAW: "█", Precision.EIGHT_BIT: "▄", Precision.FOUR_BIT: "▁", None: "?"}
"""The taller, the more bits; ``?`` is a block whose weights differ."""
LEGEND = "█ raw  ▄ 8bit  ▁ 4bit"


_LEAST_GB = 0.05
"""Below, sizes are told in MB."""


def size_text(size_bytes: int) -> str:
    """A size in GB, or in MB where GB would be mostly zeros."""
    if size_bytes < _LEAST_GB * 1e9:
        return f"{size_bytes / 1e6:.3f} MB"
    return f"{size_bytes / 1e9:.3f} GB"


def strip(plan: QuantizationPlan) -> str:
    """One mark per block, first block first."""
    return "".join(MARKS[precision] for precision in plan.block_precisions)


def rule_text(plan: QuantizationPlan) -> str:
    """The rule in a few words: ``factor 0.65``, ``target_bpw 8``, ``uniform 4bit``."""
    kind = str(plan.rule.get("kind", "?"))
    values = [str(value) for key, value in plan.rule.items() if key != "kind"]
    return " ".join([kind, *values])


def plan_lines(plan: QuantizationPlan, numel: int) -> Iterator[str]:
    """What ``ewq plan`` prints about one plan."""
    counts = Counter(plan.weights.values())
    blocks = Counter(plan.block_precisions)
    yield (
        f"{plan.model} ({plan.architecture}): {rule_text(plan)}, scorer {plan.scorer}, "
        f"by {plan.granularity}"
    )
    yield f"  {strip(plan)}"
    yield f"  {LEGEND}"
    for precision in Precision:
        share = f"{blocks[precision]:3d} blocks, {counts[precision]:4d} weights"
        yield f"  {precision.value:>4}: {share}"
    yield f"  {_scores_text(plan)}"
    yield (
        f"  {size_text(plan.size_bytes)} as {plan.target}, {plan.bits_per_weight:.3f} bits per "
        f"weight over {numel / 1e6:.1f} million parameters"
    )


def _scores_text(plan: QuantizationPlan) -> str:
    """Where the scores lie, and where the factor rule draws its lines."""
    units = "blocks" if plan.granularity == "block" else "weights"
    spread = f"scores of {units}: mean {plan.mean:.4g}, std {plan.std:.3g}"
    lines = [f"{precision} from {least:.4g}" for precision, least in plan.thresholds.items()]
    return "; ".join([spread, *lines])
