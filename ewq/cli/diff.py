"""``ewq diff``: which blocks change precision between plans, and what that does to size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ewq.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    """A strip per plan, then the blocks that move."""
    from ewq.cli.plan_view import LEGEND, rule_text, size_text, strip

    width = max(len(label) for label in found.labels)
    for label, plan, delta in zip(found.labels, found.plans, found.size_deltas_bytes, strict=True):
        size = size_text(plan.size_bytes) if plan.size_bytes else "size unknown"
        change = f" ({delta / 1e6:+.3f} MB)" if delta else ""
        yield f"{label:<{width}}  {strip(plan)}  {rule_text(plan)}, {size}{change}"
    yield f"{'':<{width}}  {LEGEND}"
    moves = (*found.moves, *found.weight_moves)
    if not moves:
        yield "no block changes precision"
        return
    yield f"{len(found.moves)} of {len(found.plans[0].blocks)} blocks change precision:"
    for move in moves:
        yield f"  {_move_line(move)}"


def _move_line(move: Move) -> str:
    kinds = " -> ".join("mixed" if of is None else of.value for of in move.precisions)
    if not all(move.size_bytes):
        return f"{move.name}: {kinds}"
    deltas = (size - move.size_bytes[0] for size in move.size_bytes[1:])
    return f"{move.name}: {kinds} ({', '.join(f'{delta / 1e6:+.3f} MB' for delta in deltas)})"
