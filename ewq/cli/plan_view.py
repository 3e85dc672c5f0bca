"""Plans in a few lines of text."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ewq.measurement import Json
from ewq.planning.plan import QuantizationPlan
from ewq.precision import Precision

Marks = Mapping[Precision | None, str]
MARKS: Marks = {
    Precision.RAW: "█",
    Precision.EIGHT_BIT: "▄",
    Precision.FOUR_BIT: "▁",
    None: "?",
}
"""The taller, the more bits; ``?`` is a block whose weights differ."""
ASCII_MARKS: Marks = {
    Precision.RAW: "#",
    Precision.EIGHT_BIT: "=",
    Precision.FOUR_BIT: "_",
    None: "?",
}
"""For output that cannot carry the others."""
COLUMNS = 80


def _marks() -> Marks:
    try:
        "".join(MARKS.values()).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return ASCII_MARKS
    return MARKS


def legend() -> str:
    """What the marks of a strip mean."""
    return "  ".join(f"{mark} {of.value}" for of, mark in _marks().items() if of is not None)


_LEAST_GB = 0.05
"""Below, sizes are told in MB."""


def size_text(size_bytes: int) -> str:
    """A size in GB, or in MB where GB would be mostly zeros."""
    if size_bytes < _LEAST_GB * 1e9:
        return f"{size_bytes / 1e6:.3f} MB"
    return f"{size_bytes / 1e9:.3f} GB"


def strip(plan: QuantizationPlan) -> str:
    """One mark per block, first block first."""
    marks = _marks()
    return "".join(marks[precision] for precision in plan.block_precisions)


def strip_lines(labels: Sequence[str], plans: Sequence[QuantizationPlan]) -> Iterator[str]:
    """The strips of plans one below the other, labelled; folded alike where they are too long."""
    width = max(len(label) for label in labels)
    strips = [strip(plan) for plan in plans]
    rows = -(-len(strips[0]) // max(16, COLUMNS - width - 2)) or 1
    step = -(-len(strips[0]) // rows) or 1
    for start in range(0, len(strips[0]), step):
        for label, marks in zip(labels, strips, strict=True):
            yield f"{label:<{width}}  {marks[start : start + step]}"


def rule_text(plan: QuantizationPlan) -> str:
    """The rule in a few words: ``factor 0.65``, ``target_size 9.000 GB seed 1``."""
    return " ".join(_rule_words(key, value) for key, value in plan.rule.items())


def _rule_words(key: str, value: Json) -> str:
    if key == "target_size_bytes" and isinstance(value, int):
        return size_text(value)
    return f"seed {value}" if key == "seed" else str(value)


def plan_lines(plan: QuantizationPlan, numel: int) -> Iterator[str]:
    """What ``ewq plan`` prints about one plan."""
    if plan.types:
        yield from _type_lines(plan, numel)
        return
    counts = Counter(plan.weights.values())
    blocks = Counter(plan.block_precisions)
    yield (
        f"{plan.model} ({plan.architecture}): {rule_text(plan)}, scorer {plan.scorer}, "
        f"by {plan.granularity}"
    )
    yield from strip_lines([""], [plan])
    yield f"  {legend()}"
    for precision in Precision:
        share = f"{blocks[precision]:3d} blocks, {counts[precision]:4d} weights"
        yield f"  {precision.value:>4}: {share}"
    yield f"  {_scores_text(plan)}"
    yield (
        f"  {size_text(plan.size_bytes)} as {plan.target}, {plan.bits_per_weight:.3f} bits per "
        f"weight over {numel / 1e6:.1f} million parameters"
    )


def _type_lines(plan: QuantizationPlan, numel: int) -> Iterator[str]:
    """A plan of types: how many tensors have each, the blocks' bits, and what is expected."""
    yield (
        f"{plan.model} ({plan.architecture}): {rule_text(plan)}, scorer {plan.scorer}, "
        f"by {plan.granularity}"
    )
    counts = Counter(plan.types.values())
    yield "  " + ", ".join(f"{count} {name}" for name, count in counts.most_common())
    bits = [8 * block.size_bytes / block.numel for block in plan.blocks if block.numel]
    yield "  bits per weight of blocks: " + " ".join(f"{each:.1f}" for each in bits)
    expected = plan.expected_kld
    if expected is not None:
        yield (
            f"  expected divergence {expected.value:.5f} ± {expected.stderr:.5f} nats per token, "
            "standard error over calibration sequences"
        )
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
