"""``ewq plan``: decide precisions from the weights alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ewq.errors import InputError
from ewq.files import check_output
from ewq.variants import parse_size

if TYPE_CHECKING:
    from ewq.planning.analysis import Analysis
    from ewq.planning.plan import QuantizationPlan
    from ewq.sensitivity.calibration import Calibrating

    Drafting = Callable[[float | None, int | None, int | None], QuantizationPlan]


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
    target_bpw: Annotated[
        float | None, typer.Option(help="Bits per weight of the whole model, never exceeded.")
    ] = None,
    target_size: Annotated[
        str | None, typer.Option(help="Size of the whole model, such as 5GB or 4.5GiB.")
    ] = None,
    target_kld: Annotated[
        float | None,
        typer.Option(help="Smallest plan expected below so many nats per token (fisher)."),
    ] = None,
    like: Annotated[
        str | None, typer.Option(help="No larger than llama.cpp's recipe, such as Q4_K_M.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--for",
            help="Storage to count sizes for: nf4 (default), nf4-double, gguf; "
            "of fisher gguf (default) or bitsandbytes.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Text file or folder of them for fisher (default: ewq's own)."),
    ] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--output", help="Output file, or a directory (trailing /).")
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
    from ewq.planning.sizes import DEFAULT_FORMAT

    size_bytes = None if target_size is None else parse_size(target_size)
    targets = [v for v in (target_bpw, size_bytes, target_kld, like) if v is not None]
    if factor and targets:
        raise InputError("give --factor or a target, not both")
    if len(targets) > 1:
        raise InputError("give only one of --target-bpw, --target-size, --target-kld and --like")
    if seed and scorer != "random":
        raise InputError(f"--seed is for --scorer random; {scorer} draws nothing")
    measuring = _Measuring(calibration, device or "cpu", cache, scorer == HIGGS)
    if scorer in (FISHER, HIGGS):
        [path] = _paths(out, [(None, None)])
        aim = (size_bytes, target_bpw, target_kld, like)
        made, numel = measuring.plan(model, aim, target, granularity or "tensor")
        _deliver(numel, [made], [path], as_json)
        return
    granularity, target = granularity or "block", target or DEFAULT_FORMAT
    check_choices(scorer, granularity, target)
    factors: list[float | None] = [*factor] if factor else [None]
    seeds: list[int | None] = [*seed] if seed else [None]
    drafts = list(product(factors, seeds))
    paths = _paths(out, drafts)
    progress = terminal_progress()
    analysis = analyze(model, cache=cache, progress=progress, workers=workers, device=device)
    if like is not None:
        size_bytes = _size_like(analysis, like, target)

    def draft(one: float | None, drawn: int | None, size: int | None) -> QuantizationPlan:
        return analysis.plan(
            one,
            target_bpw=target_bpw,
            target_size_bytes=size,
            scorer=scorer,
            granularity=granularity,
            target=target,
            seed=drawn or 0,
        )

    drafting: Drafting = draft
    if target_kld is not None:
        drafting = measuring.smallest(analysis, target, target_kld, draft)
    plans = [drafting(one, drawn, size_bytes) for one, drawn in drafts]
    _deliver(analysis.footprint.numel, plans, paths, as_json)


@dataclass(frozen=True)
class _Measuring:
    """How sensitivity is measured, for the plans that rest on it."""

    calibration: Path | None
    device: str
    cache: bool
    data_free: bool

    @property
    def how(self) -> Calibrating:
        from ewq.cli.progress import quiet_transformers
        from ewq.sensitivity.calibration import Calibrating

        quiet_transformers()
        return Calibrating(
            self.calibration, device=self.device, cache=self.cache, data_free=self.data_free
        )

    def plan(
        self,
        model: str,
        aim: tuple[int | None, float | None, float | None, str | None],
        target: str | None,
        granularity: str,
    ) -> tuple[QuantizationPlan, int]:
        """A plan of types, and the model's number of parameters."""
        from ewq.cli.progress import terminal_progress
        from ewq.fit.run import Aim, plan_types

        return plan_types(model, Aim(*aim), target, self.how, granularity, terminal_progress())

    def smallest(self, analysis: Analysis, target: str, kld: float, draft: Drafting) -> Drafting:
        """What drafts the smallest plan of a scorer that is expected below a divergence."""
        from ewq.cli.progress import terminal_progress
        from ewq.fit.prepare import open_fitting
        from ewq.fit.run import smallest_below

        fitting = open_fitting(analysis.checkpoint, target, self.how, terminal_progress())
        return lambda one, drawn, _: smallest_below(fitting, kld, partial(draft, one, drawn))


def _size_like(analysis: Analysis, recipe: str, target: str) -> int:
    from ewq.fit.run import recipe_bytes

    if target != "gguf":
        raise InputError(f"--like {recipe} is a size of GGUF files; add --for gguf")
    return recipe_bytes(analysis.checkpoint, recipe)


FISHER, HIGGS = "fisher", "higgs"
"""The scorers whose plans are of types."""
Draft = tuple[float | None, int | None]
"""Factor and seed of one plan, where they are given."""


def _paths(out: str | None, drafts: list[Draft]) -> list[Path | None]:
    """Where each plan goes, checked before any work."""
    paths = [None] * len(drafts) if out is None else _files(out, drafts)
    for path in paths:
        if path is not None:
            check_output(path)
    return list(paths)


def _files(out: str, drafts: list[Draft]) -> list[Path]:
    """The file itself; a folder gets one per factor and seed."""
    # Unlike Path.is_dir, False of a name that is too long, which is refused later.
    if out.endswith("/") or os.path.isdir(out):  # noqa: PTH112
        paths = [Path(out) / f"{_name(*draft)}.json" for draft in drafts]
        if len(set(paths)) < len(paths):
            raise InputError("the same plan is asked for twice; give each factor and seed once")
        return paths
    if len(drafts) > 1:
        raise InputError(f"{len(drafts)} plans need a folder, not a file: -o {out}/")
    return [Path(out)]


def _name(factor: float | None, seed: int | None) -> str:
    """``plan``, ``plan-0.65``, ``plan-random-1``."""
    by_factor = "" if factor is None else f"-{factor:g}"
    by_seed = "" if seed is None else f"-random-{seed}"
    return f"plan{by_factor}{by_seed}"


def _deliver(
    numel: int, plans: list[QuantizationPlan], paths: list[Path | None], as_json: bool
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
        for line in plan_lines(one, numel):
            print(terminal_line(line))
        if path is not None:
            print(f"written to {path}")
