"""What distinguishes two or more plans of one model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ewq.codec import encode
from ewq.errors import PlanError
from ewq.measurement import Json
from ewq.planning.plan import MIXED, QuantizationPlan
from ewq.variants import Precision


@dataclass(frozen=True)
class Move:
    """A block whose precision, or one of whose weights', is not the same in all plans."""

    name: str
    precisions: tuple[Precision | None, ...]
    """One per plan; ``None`` for a block of mixed precisions."""
    size_bytes: tuple[int | None, ...]
    """One per plan; ``None`` where a plan does not say."""


@dataclass(frozen=True)
class PlanDiff:
    """Plans by label; the first is what the others are compared with."""

    plans: Mapping[str, QuantizationPlan]
    moves: tuple[Move, ...]
    """Blocks that differ, in order."""

    @property
    def size_deltas_bytes(self) -> tuple[int | None, ...]:
        """Bytes more than the first plan; ``None`` for unknown sizes or another target."""
        first = next(iter(self.plans.values()))
        return tuple(
            plan.size_bytes - first.size_bytes
            if plan.size_bytes and first.size_bytes and plan.target == first.target
            else None
            for plan in self.plans.values()
        )

    def to_json(self) -> dict[str, Json]:
        """The comparison as plain JSON types."""
        labelled = zip(self.plans.items(), self.size_deltas_bytes, strict=True)
        plans: list[Json] = [
            {
                "label": label,
                "model": plan.model,
                "rule": dict(plan.rule),
                "scorer": plan.scorer,
                "target": plan.target,
                "size_bytes": plan.size_bytes or None,
                "size_delta_bytes": delta,
                "plan": {str(block.index): block.precision or MIXED for block in plan.blocks},
            }
            for (label, plan), delta in labelled
        ]
        return {"plans": plans, "moves": encode(self.moves)}


def diff_plans(plans: Mapping[str, QuantizationPlan]) -> PlanDiff:
    """Compare plans, given by label; a PlanError of fewer than two or of different models."""
    if len(plans) < 2:
        raise PlanError(f"{len(plans)} plan given; a comparison needs at least two")
    (label, first), *others = plans.items()
    for other_label, other in others:
        own, theirs = ([block.index for block in plan.blocks] for plan in (first, other))
        prints = {plan.fingerprint for plan in (first, other) if plan.fingerprint}
        if own != theirs or len(prints) > 1:
            raise PlanError(
                f"{label} is a plan of {_model(first)} and {other_label} of {_model(other)}: "
                "they are plans of different models"
            )
    return PlanDiff(plans, tuple(_moves([*plans.values()])))


def _model(plan: QuantizationPlan) -> str:
    return f"{plan.model} ({len(plan.blocks)} blocks, {plan.fingerprint[:19] or 'unknown weights'})"


def _moves(plans: Sequence[QuantizationPlan]) -> Iterator[Move]:
    for blocks in zip(*(plan.blocks for plan in plans), strict=True):
        pairs = zip(plans, blocks, strict=True)
        stored = [block.precision or _quantized(plan, block.name) for plan, block in pairs]
        if stored.count(stored[0]) < len(stored):
            names = [block.name for block in blocks]
            # The proof of concept's plans know no names, only numbers.
            name = next((name for name in names if not name.startswith("block ")), names[0])
            sizes = tuple(block.size_bytes or None for block in blocks)
            yield Move(name, tuple(block.precision for block in blocks), sizes)


def _quantized(plan: QuantizationPlan, block: str) -> dict[str, Precision]:
    quantized = ((name, of) for name, of in plan.weights.items() if of is not Precision.RAW)
    return {name: of for name, of in quantized if name.startswith(f"{block}.")}
