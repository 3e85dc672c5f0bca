"""``ewq plan``: decide precisions from the weights alone."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ewq.errors import InputError

if TYPE_CHECKING:
    from ewq.planning.analysis import Analysis
    from ewq.planning.plan import QuantizationPlan


def plan(
    model: Annotated[str, typer.Argument(help="Hub id, model folder, or .gguf file.")],
    factor: Annotated[
        list[float] | None,
        typer.Option(help="4-bit starts below mean - FACTOR * std; repeatable (default 0.65)."),
    ] = None,
    scorer: Annotated[
        str,
        typer.Option(
            help="histogram, softmax, variance, kurtosis, nf4-error, random, reverse, first, last."
        ),
    ] = "histogram",
    granularity: Annotated[str, typer.Option(help="block or tensor.")] = "block",
    target_bpw: Annotated[
        float | None, typer.Option(help="Bits per weight of the whole model, never exceeded.")
    ] = None,
    target_size: Annotated[
        str | None, typer.Option(help="Size of the whole model, such as 5GB or 4.5GiB.")
    ] = None,
    target: Annotated[
        str, typer.Option("--for", help="Storage to count sizes for: nf4, nf4-double, gguf.")
    ] = "nf4",
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="Output file, or a directory (trailing /).")
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Of the random scorer; repeatable, one plan per seed (default 0)."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Threads (default: all processors).")] = None,
    device: Annotated[str | None, typer.Option(help="cuda counts on the GPU.")] = None,
    cache: Annotated[bool, typer.Option(help="Use and keep the analysis cache.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Decide which blocks stay raw and which get 8 or 4 bits; one plan per factor and seed."""
    from ewq.cli.progress import terminal_progress
    from ewq.planning.analysis import analyze, check_choices

    size_bytes = None if target_size is None else parse_size(target_size)
    if factor and (target_bpw is not None or size_bytes is not None):
        raise InputError("give --factor or a target, not both")
    if target_bpw is not None and size_bytes is not None:
        raise InputError("give --target-bpw or --target-size, not both")
    if seed and scorer != "random":
        raise InputError(f"--seed is for --scorer random; {scorer} draws nothing")
    check_choices(scorer, granularity, target)
    factors: list[float | None] = [*factor] if factor else [None]
    seeds: list[int | None] = [*seed] if seed else [None]
    drafts = list(product(factors, seeds))
    paths = _paths(out, drafts)
    analysis = analyze(
        model, cache=cache, progress=terminal_progress(), workers=workers, device=device
    )
    plans = [
        analysis.plan(
            one,
            target_bpw=target_bpw,
            target_size_bytes=size_bytes,
            scorer=scorer,
            granularity=granularity,
            target=target,
            seed=drawn or 0,
        )
        for one, drawn in drafts
    ]
    _deliver(analysis, plans, paths, as_json)


UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Bytes of ``5GB`` (10**9), ``4.5GiB`` (2**30), ``800MB`` or a plain number.

    Raises:
        InputError: not a size.
    """
    number = text.strip().upper()
    unit = next((unit for unit in sorted(UNITS, key=len)[::-1] if number.endswith(unit)), "")
    try:
        size_bytes = int(float(number.removesuffix(unit)) * UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        size_bytes = -1
    if size_bytes < 0:
        raise InputError(f"invalid size {text!r}: expected a size such as 5GB, 4.5GiB or 800MB")
    return size_bytes


Draft = tuple[float | None, int | None]
"""Factor and seed of one plan, where they are given."""


def _paths(out: str | None, drafts: list[Draft]) -> list[Path | None]:
    """Where each plan goes; a folder gets one file per factor and seed."""
    if out is None:
        return [None] * len(drafts)
    if out.endswith("/") or Path(out).is_dir():
        paths = [Path(out) / f"{_name(*draft)}.json" for draft in drafts]
        if len(set(paths)) < len(paths):
            raise InputError("the same plan is asked for twice; give each factor and seed once")
        return list(paths)
    if len(drafts) > 1:
        raise InputError(f"{len(drafts)} plans need a folder, not a file: -o {out}/")
    return [Path(out)]


def _name(factor: float | None, seed: int | None) -> str:
    """``plan``, ``plan-0.65``, ``plan-random-1``."""
    by_factor = "" if factor is None else f"-{factor:g}"
    by_seed = "" if seed is None else f"-random-{seed}"
    return f"plan{by_factor}{by_seed}"


def _deliver(
    analysis: Analysis, plans: list[QuantizationPlan], paths: list[Path | None], as_json: bool
) -> None:
    from ewq.cli.plan_view import plan_lines
    from ewq.planning.plan import write_plan
    from ewq.report.escaping import terminal_line

    for one, path in zip(plans, paths, strict=True):
        if path is not None:
            write_plan(one, path)
    if as_json:
        documents = [one.to_json() for one in plans]
        print(json.dumps(documents[0] if len(documents) == 1 else documents, indent=1))
        return
    for one, path in zip(plans, paths, strict=True):
        for line in plan_lines(one, analysis.footprint.numel):
            print(terminal_line(line))
        if path is not None:
            print(f"written to {path}")
