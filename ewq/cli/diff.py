"""``ewq diff``: which blocks change precision between plans, and what that does to size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ewq.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ewq.planning.diff import Move, PlanDiff


def diff(
    plans: Annotated[
        list[Path], typer.Argument(help="Two or more plan files; the first is the reference.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Compare plans block by block; the proof of concept's plans are read too."""
    from ewq.planning.diff import diff_plans
    from ewq.planning.plan import read_plan
    from ewq.report.escaping import terminal_line

    if len(set(plans)) != len(plans):
        raise InputError("the same plan file is given twice")
    found = diff_plans({str(path): read_plan(path) for path in plans})
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
        return
    for line in diff_lines(found):
        print(terminal_line(line))


def diff_lines(found: PlanDiff) -> Iterator[str]:
    """A strip per plan, then their sizes, then the blocks that move."""
    from ewq.cli.plan_view import legend, rule_text, size_text, strip_lines

    labels = _short(found.labels)
    yield from strip_lines(labels, found.plans)
    yield f"{'':<{max(len(label) for label in labels)}}  {legend()}"
    for label, plan, delta in zip(found.labels, found.plans, found.size_deltas_bytes, strict=True):
        size = size_text(plan.size_bytes) if plan.size_bytes else "size unknown"
        change = f" ({delta / 1e6:+.3f} MB)" if delta else ""
        yield f"{label}: {rule_text(plan)}, {size}{change}"
    moves = (*found.moves, *found.weight_moves)
    if not moves:
        yield "no block changes precision"
        return
    yield f"{len(found.moves)} of {len(found.plans[0].blocks)} blocks change precision:"
    for move in moves:
        yield f"  {_move_line(move)}"


def _short(labels: Sequence[str]) -> Sequence[str]:
    """File names without their folders, where that tells them apart: strips need the room."""
    names = [Path(label).name for label in labels]
    return names if len(set(names)) == len(names) else labels


def _move_line(move: Move) -> str:
    kinds = " -> ".join("mixed" if of is None else of.value for of in move.precisions)
    if not all(move.size_bytes):
        return f"{move.name}: {kinds}"
    deltas = (size - move.size_bytes[0] for size in move.size_bytes[1:])
    return f"{move.name}: {kinds} ({', '.join(f'{delta / 1e6:+.3f} MB' for delta in deltas)})"
