"""``ewq compare``: two stored runs, every metric, one exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ewq.cli.report import STDOUT, Storage, writer

THRESHOLDS = Path("benchmarks/thresholds.toml")


def compare(
    baseline: Annotated[
        str,
        typer.Argument(
            help="A stored run: file, number in the storage, commit or branch; or `newest` or "
            "`ancestor` for the newest suitable run or that of the nearest ancestor commit."
        ),
    ],
    current: Annotated[
        str | None, typer.Argument(help="The run in question; the newest stored one by default.")
    ] = None,
    format_: Annotated[
        Literal["md", "json", "html"] | None,
        typer.Option("--format", help="By default as the output's name ends, or md."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A file instead of standard output.")
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(
            help=f"Thresholds file whose tolerances apply (default: {THRESHOLDS} where it exists)."
        ),
    ] = None,
    storage: Storage = ".benchmarks",
) -> None:
    """Compare two runs: exit 0 without a regression, 1 with one, 2 if not comparable."""
    from ewq.gating.baseline import ANCESTOR, NEWEST, baseline_of
    from ewq.gating.compare import compare_runs
    from ewq.gating.thresholds import BUILT_IN, load_thresholds
    from ewq.report.comparison import FORMATS
    from ewq.report.formats import format_of
    from ewq.storage.runs import newest_run, resolve_run, storage_path

    chosen = format_ or format_of(output, FORMATS, "md")
    write = writer(output or STDOUT)
    folder = storage_path(storage)
    after = resolve_run(current, folder) if current else newest_run(folder)
    if baseline in (NEWEST, ANCESTOR):
        before = baseline_of(after, baseline, folder, Path())
    else:
        before = resolve_run(baseline, folder)
    if thresholds is None and THRESHOLDS.is_file():
        # What pytest applies by itself: both must judge alike.
        thresholds = THRESHOLDS
    variants = {variant for run in (before, after) for variant, _ in run.records}
    limits = load_thresholds(thresholds, variants) if thresholds else BUILT_IN
    comparison = compare_runs(before, after, limits)
    write(FORMATS[chosen](comparison))
    raise typer.Exit(comparison.exit_code)
