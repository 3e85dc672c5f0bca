"""What distinguishes two or more plans of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ewq.errors import PlanError
from ewq.measurement import Json
from ewq.planning.plan import PlanBlock, QuantizationPlan
from ewq.precision import Precision


@dataclass(frozen=True)
class Move:
    """A block, or a single weight, whose precision is not the same in all plans."""

    name: str
    precisions: tuple[Precision | None, ...]
    """One per plan; ``None`` for a block of mixed precisions."""
    size_bytes: tuple[int, ...]
    """One per plan; 0 where a plan does not say."""


@dataclass(frozen=True)
class PlanDiff:
    """Plans side by side; the first is what the others are compared with."""

    labels: tuple[str, ...]
    plans: tuple[QuantizationPlan, ...]
    moves: tuple[Move, ...]
    """Blocks that differ, in order."""
    weight_moves: tuple[Move, ...]
    """Weights that differ inside blocks whose own precision does not tell (tensor granularity)."""

    @property
    def size_deltas_bytes(self) -> tuple[int | None, ...]:
        """Bytes of each plan more than the first; ``None`` where sizes are unknown or of
        different targets."""
        first = self.plans[0]
        return tuple(
            plan.size_bytes - first.size_bytes if comparable_size(first, plan) else None
            for plan in self.plans
        )

    def to_json(self) -> dict[str, Json]:
        """The comparison as plain JSON types."""
        return {
            "plans": [
                _plan_json(label, plan, delta)
                for label, plan, delta in zip(
                    self.labels, self.plans, self.size_deltas_bytes, strict=True
                )
            ],
            "moves": [_move_json(move) for move in self.moves],
            "weight_moves": [_move_json(move) for move in self.weight_moves],
        }


def comparable_size(first: QuantizationPlan, other: QuantizationPlan) -> bool:
    """Whether both sizes are known and counted for the same storage."""
    return bool(first.size_bytes and other.size_bytes) and first.target == other.target


def _plan_json(label: str, plan: QuantizationPlan, delta: int | None) -> dict[str, Json]:
    return {
        "label": label,
        "model": plan.model,
        "rule": dict(plan.rule),
        "scorer": plan.scorer,
        "target": plan.target,
        "size_bytes": plan.size_bytes or None,
        "size_delta_bytes": delta,
        "plan": {
            str(block.index): "mixed" if block.precision is None else block.precision.value
            for block in plan.blocks
        },
    }


def _move_json(move: Move) -> dict[str, Json]:
    return {
        "name": move.name,
        "precisions": [None if of is None else of.value for of in move.precisions],
        "size_bytes": [size or None for size in move.size_bytes],
    }


def diff_plans(plans: Mapping[str, QuantizationPlan]) -> PlanDiff:
    """Compare plans, given by label.

    Raises:
        PlanError: fewer than two plans, or plans of different models.
    """
    if len(plans) < 2:
        raise PlanError(f"{len(plans)} plan given; a comparison needs at least two")
    labels, values = tuple(plans), tuple(plans.values())
    for label, plan in zip(labels[1:], values[1:], strict=True):
        _check_same_model(labels[0], values[0], label, plan)
    moves = [_block_move(column) for column in zip(*(plan.blocks for plan in values), strict=True)]
    return PlanDiff(
        labels,
        values,
        tuple(move for move in moves if move is not None),
        tuple(_weight_moves(values)),
    )


def _check_same_model(
    first_label: str, first: QuantizationPlan, label: str, plan: QuantizationPlan
) -> None:
    if len(plan.blocks) != len(first.blocks):
        raise PlanError(
            f"{first_label} has {len(first.blocks)} blocks and {label} has {len(plan.blocks)}: "
            "they are plans of different models"
        )
    for one, other in zip(first.blocks, plan.blocks, strict=True):
        if one.index != other.index:
            raise PlanError(
                f"{first_label} has block {one.index} where {label} has block {other.index}: "
                "they are plans of different models"
            )
    if first.fingerprint and plan.fingerprint and first.fingerprint != plan.fingerprint:
        raise PlanError(
            f"{first_label} is a plan of {first.model} ({first.fingerprint[:19]}…) and {label} "
            f"of {plan.model} ({plan.fingerprint[:19]}…): they cannot be compared"
        )


def _block_move(blocks: Sequence[PlanBlock]) -> Move | None:
    precisions = tuple(block.precision for block in blocks)
    if len(set(precisions)) == 1:
        return None
    names = [block.name for block in blocks]
    name = next((name for name in names if not name.startswith("block ")), names[0])
    return Move(name, precisions, tuple(block.size_bytes for block in blocks))


def _weight_moves(plans: Sequence[QuantizationPlan]) -> list[Move]:
    """Weights that differ in blocks that are mixed in every plan."""
    mixed = [
        block.name
        for index, block in enumerate(plans[0].blocks)
        if all(plan.blocks[index].precision is None for plan in plans)
    ]
    prefixes = tuple(f"{name}." for name in mixed)
    moves = []
    for name in plans[0].weights:
        precisions = tuple(plan.precision_of(name) for plan in plans)
        if name.startswith(prefixes) and len(set(precisions)) > 1:
            moves.append(Move(name, precisions, (0,) * len(plans)))
    return moves
