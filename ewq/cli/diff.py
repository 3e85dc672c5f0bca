"""``ewq diff``: which blocks change precision between plans, and what that does to size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ewq.cli.plan_view import legend, rule_text, size_text, strip_lines
from ewq.errors import InputError
from ewq.planning.diff import Move, PlanDiff, diff_plans
from ewq.planning.plan import read_plan
from ewq.report.escaping import terminal_line


def diff(
    plans: Annotated[
        list[Path], typer.Argument(help="Two or more plan files; the first is the reference.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Compare plans block by block; the proof of concept's plans are read too."""
    if len(set(plans)) != len(plans):
        raise InputError("the same plan file is given twice")
    found = diff_plans({str(path): read_plan(path) for path in plans})
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
        return
    for line in _lines(found, [path.name for path in plans]):
        print(terminal_line(line))


def _lines(found: PlanDiff, names: list[str]) -> Iterator[str]:
    """A strip per plan, then their sizes, then the blocks that move."""
    plans = [*found.plans.values()]
    # Strips need the room that folders take, where names alone tell the files apart.
    labels = names if len(set(names)) == len(names) else [*found.plans]
    yield from strip_lines(labels, plans)
    yield f"{'':<{max(len(label) for label in labels)}}  {legend()}"
    for (label, plan), delta in zip(found.plans.items(), found.size_deltas_bytes, strict=True):
        size = size_text(plan.size_bytes) if plan.size_bytes else "size unknown"
        yield f"{label}: {rule_text(plan)}, {size}" + (f" ({_added(delta)})" if delta else "")
    if not found.moves and not found.weight_moves:
        yield "no block changes precision"
        return
    yield f"{len(found.moves)} of {len(plans[0].blocks)} blocks change precision:"
    for move in (*found.moves, *found.weight_moves):
        yield f"  {_move_line(move)}"


def _move_line(move: Move) -> str:
    said = f"{move.name}: {' -> '.join(of or 'mixed' for of in move.precisions)}"
    first, *others = (size or 0 for size in move.size_bytes)
    known = bool(first) and all(others)
    return f"{said} ({', '.join(_added(size - first) for size in others)})" if known else said


def _added(delta_bytes: int) -> str:
    return f"{delta_bytes / 1e6:+.3f} MB"
