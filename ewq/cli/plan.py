"""``ewq plan`` and ``ewq diff``: plans made, and compared block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ewq.cli import terminal
from ewq.errors import InputError
from ewq.files import check_output
from ewq.planning.diff import Move, PlanDiff, diff_plans
from ewq.planning.plan import QuantizationPlan, read_plan, write_plan
from ewq.planning.sizes import DEFAULT_FORMAT, Card, find_card
from ewq.variants import Precision

if TYPE_CHECKING:
    from ewq.checkpoint.opening import Checkpoint
    from ewq.fit.plans import Fitting
    from ewq.planning.analysis import Analysis
    from ewq.sensitivity.calibration import Calibrating

TYPE_SCORERS = ("fisher", "higgs")
"""The scorers whose plans are of types."""


def plan(
    model: Annotated[str, typer.Argument(help="Hub id, model folder, or .gguf file.")],
    factor: Annotated[
        list[float] | None,
        typer.Option(help="4-bit starts below mean - FACTOR * std; repeatable (default 0.65)."),
    ] = None,
    scorer: Annotated[
        str,
        typer.Option(
            help="histogram, softmax, variance, kurtosis, nf4-error, random, reverse, first, last; "
            "fisher: expected divergence, by gradients on a calibration text; higgs: on random "
            "tokens."
        ),
    ] = "histogram",
    granularity: Annotated[
        str | None, typer.Option(help="block or tensor; fisher also kind, and tensor by default.")
    ] = None,
    target_bpw: terminal.Bpw = None,
    target_size: terminal.Size = None,
    target_vram: terminal.Memory = None,
    context: terminal.Context = None,
    target_kld: terminal.Kld = None,
    like: terminal.Like = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="FORMAT",
            help="Storage to count sizes for: nf4 (default), nf4-double, gguf; "
            "of fisher gguf (default) or bitsandbytes.",
        ),
    ] = None,
    calibration: terminal.Text = None,
    out: Annotated[
        str | None, typer.Option("-o", "--output", help="Output file, or a directory (trailing /).")
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Of the random scorer; repeatable, one plan per seed (default 0)."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda counts on the GPU.")] = None,
    cache: Annotated[bool, typer.Option(help="Use and keep the analysis cache.")] = True,
    as_json: terminal.AsJson = False,
) -> None:
    """Decide which blocks stay raw and which get 8 or 4 bits; one plan per factor and seed."""
    from ewq.planning.analysis import analyze, check_choices
    from ewq.sensitivity.calibration import Calibrating

    targets = (factor or None, target_bpw, target_size, target_vram, target_kld, like)
    if sum(each is not None for each in targets) > 1:
        given = "--target-bpw, --target-size, --target-vram, --target-kld and --like"
        raise InputError(f"give only one of --factor, {given}")
    if seed and scorer != "random":
        raise InputError(f"--seed is for --scorer random; {scorer} draws nothing")
    progress, data_free = terminal.terminal_progress(), scorer == "higgs"
    target = target or ("gguf" if scorer in TYPE_SCORERS else DEFAULT_FORMAT)
    if card := find_card(model, target_vram, context, target, progress):
        target_size = card.room
    how = Calibrating(calibration, device=device or "cpu", cache=cache, data_free=data_free)
    if scorer in TYPE_SCORERS:
        from ewq.fit.run import Aim, check_recipes, make_plan

        paths = _paths(out, [(None, None)])
        aim = Aim(target_size, target_bpw, target_kld, like, granularity or "tensor")
        check_recipes([like], target)
        fitting = _fitting(model, target, how)
        made, numel = make_plan(fitting, aim), fitting.target.parameters
        _deliver(numel, [made], paths, as_json, [str(card)] * bool(card))
        return
    granularity = granularity or "block"
    check_choices(scorer, granularity, target)
    drafts = list(product(factor or (None,), seed or (None,)))
    paths = _paths(out, drafts)
    analysis = analyze(model, cache=cache, progress=progress, device=device)
    if like is not None:
        from ewq.fit.run import recipe_bytes

        target_size = recipe_bytes(analysis.checkpoint, like, target)
    rule = partial(
        analysis.plan, target_bpw=target_bpw, scorer=scorer, granularity=granularity, target=target
    )
    draws = [partial(rule, one, seed=drawn or 0) for one, drawn in drafts]
    if target_kld is None:
        plans = [draw(target_size_bytes=target_size) for draw in draws]
    else:
        from ewq.fit.plans import smallest_below

        fitting = _fitting(analysis.checkpoint, target, how)
        plans = [smallest_below(fitting, target_kld, draw) for draw in draws]
    notes = [*_card_lines(card, analysis, target)] if card else []
    _deliver(analysis.footprint.numel, plans, paths, as_json, notes)


def _fitting(model: str | Checkpoint, target: str, how: Calibrating) -> Fitting:
    from ewq.fit.prepare import open_fitting

    terminal.quiet_transformers()
    return open_fitting(model, target, how, terminal.terminal_progress())


def _paths(
    out: str | None, drafts: Sequence[tuple[float | None, int | None]]
) -> Sequence[Path | None]:
    """Where each plan goes, checked before any work: a folder gets one per factor and seed."""
    if out is None:
        return [None] * len(drafts)
    paths = [Path(out)]
    # Unlike Path.is_dir, False of a name that is too long, which is refused later.
    if out.endswith("/") or os.path.isdir(out):  # noqa: PTH112
        paths = [Path(out) / f"{_name(*draft)}.json" for draft in drafts]
        if len(set(paths)) < len(paths):
            raise InputError("the same plan is asked for twice; give each factor and seed once")
    elif len(drafts) > 1:
        raise InputError(f"{len(drafts)} plans need a folder, not a file: -o {out}/")
    for path in paths:
        check_output(path)
    return paths


def _name(factor: float | None, seed: int | None) -> str:
    """``plan``, ``plan-0.65``, ``plan-random-1``."""
    by_factor = "" if factor is None else f"-{factor:g}"
    return f"plan{by_factor}" + ("" if seed is None else f"-random-{seed}")


def _card_lines(card: Card, analysis: Analysis, target: str) -> Iterator[str]:
    """What is left for weights, and which uniform precisions fit there."""
    yield str(card)
    said = []
    for each in Precision:
        size = analysis.uniform_plan(each, target=target).size_bytes
        fits = "fits" if size <= card.room else "does not fit"
        said.append(f"{each} {terminal.size_text(size)} {fits}")
    yield f"uniform: {', '.join(said)}"


def _deliver(
    numel: int,
    plans: list[QuantizationPlan],
    paths: Sequence[Path | None],
    as_json: bool,
    notes: list[str],
) -> None:
    lines: list[str] = []
    for one, path in zip(plans, paths, strict=True):
        lines += terminal.plan_lines(one, numel)
        if path is not None:
            write_plan(one, path)
            lines.append(f"written to {path}")
    first, *others = documents = [one.to_json() for one in plans]
    terminal.show(documents if others else first, [*lines, *notes], as_json=as_json)


def diff(
    plans: Annotated[
        list[Path], typer.Argument(help="Two or more plan files; the first is the reference.")
    ],
    as_json: terminal.AsJson = False,
) -> None:
    """Compare plans block by block; the proof of concept's plans are read too."""
    if len(set(plans)) != len(plans):
        raise InputError("the same plan file is given twice")
    found = diff_plans({str(path): read_plan(path) for path in plans})
    lines = _difference(found, [path.name for path in plans])
    terminal.show(found.to_json(), lines, as_json=as_json)


def _difference(found: PlanDiff, names: list[str]) -> Iterator[str]:
    """A strip per plan, then their sizes, then the blocks that move."""
    plans = [*found.plans.values()]
    # Strips need the room that folders take, where names alone tell the files apart.
    labels = names if len(set(names)) == len(names) else [*found.plans]
    yield from terminal.strip_lines(labels, plans)
    yield f"{'':<{max(len(label) for label in labels)}}  {terminal.legend()}"
    for (label, plan), delta in zip(found.plans.items(), found.size_deltas_bytes, strict=True):
        size = terminal.size_text(plan.size_bytes) if plan.size_bytes else "size unknown"
        yield f"{label}: {terminal.rule_text(plan)}, {size}" + (
            f" ({_added(delta)})" if delta else ""
        )
    if not found.moves:
        yield "no block changes precision"
        return
    yield f"{len(found.moves)} of {len(plans[0].blocks)} blocks change precision:"
    for move in found.moves:
        yield f"  {_move_line(move)}"


def _move_line(move: Move) -> str:
    said = f"{move.name}: {' -> '.join(of or 'mixed' for of in move.precisions)}"
    first, *others = (size or 0 for size in move.size_bytes)
    known = bool(first) and all(others)
    return f"{said} ({', '.join(_added(size - first) for size in others)})" if known else said


def _added(delta_bytes: int) -> str:
    return f"{delta_bytes / 1e6:+.3f} MB"
