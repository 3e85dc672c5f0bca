"""What distinguishes two or more plans of one model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ewq.codec import encode
from ewq.errors import PlanError
from ewq.measurement import Json
from ewq.planning.plan import MIXED, QuantizationPlan
from ewq.precision import Precision


@dataclass(frozen=True)
class Move:
    """A block, or a single weight, whose precision is not the same in all plans."""

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
    weight_moves: tuple[Move, ...]
    """Weights that differ in blocks that are mixed in every plan."""

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
        moves, weight_moves = encode(self.moves), encode(self.weight_moves)
        return {"plans": plans, "moves": moves, "weight_moves": weight_moves}


def diff_plans(plans: Mapping[str, QuantizationPlan]) -> PlanDiff:
    """Compare plans, given by label; a PlanError of fewer than two or of different models."""
    if len(plans) < 2:
        raise PlanError(f"{len(plans)} plan given; a comparison needs at least two")
    (label, first), *others = plans.items()
    for other_label, other in others:
        _check_same_model(label, first, other_label, other)
    compared = list(plans.values())
    return PlanDiff(plans, tuple(_block_moves(compared)), tuple(_weight_moves(compared)))


def _check_same_model(
    label: str, first: QuantizationPlan, other_label: str, other: QuantizationPlan
) -> None:
    own, theirs = ([block.index for block in plan.blocks] for plan in (first, other))
    if len(own) != len(theirs):
        found = f"{label} has {len(own)} blocks and {other_label} has {len(theirs)}"
    elif own != theirs:
        one, two = next(pair for pair in zip(own, theirs, strict=True) if pair[0] != pair[1])
        found = f"{label} has block {one} where {other_label} has block {two}"
    elif first.fingerprint and other.fingerprint and first.fingerprint != other.fingerprint:
        found = (
            f"{label} is a plan of {first.model} ({first.fingerprint[:19]}…) and {other_label} "
            f"of {other.model} ({other.fingerprint[:19]}…)"
        )
    else:
        return
    raise PlanError(f"{found}: they are plans of different models")


def _block_moves(plans: Sequence[QuantizationPlan]) -> Iterator[Move]:
    for blocks in zip(*(plan.blocks for plan in plans), strict=True):
        precisions = tuple(block.precision for block in blocks)
        if len(set(precisions)) > 1:
            names = [block.name for block in blocks]
            # The proof of concept's plans know no names, only numbers.
            name = next((name for name in names if not name.startswith("block ")), names[0])
            yield Move(name, precisions, tuple(block.size_bytes or None for block in blocks))


def _weight_moves(plans: Sequence[QuantizationPlan]) -> Iterator[Move]:
    mixed = tuple(
        f"{blocks[0].name}."
        for blocks in zip(*(plan.blocks for plan in plans), strict=True)
        if all(block.precision is None for block in blocks)
    )
    for name in plans[0].weights:
        precisions = tuple(plan.weights.get(name, Precision.RAW) for plan in plans)
        if name.startswith(mixed) and len(set(precisions)) > 1:
            yield Move(name, precisions, (None,) * len(plans))
