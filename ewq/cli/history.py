"""``ewq history``: the newest stored run against those before it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ewq.cli.report import STDOUT, Storage, writer


def history(
    metrics: Annotated[
        list[str] | None,
        typer.Argument(
            help="Metrics of the newest run, such as decode_tokens_per_s or mmlu/accuracy; by "
            "default perplexity, KLD, MMLU, decoding speed and size.",
            show_default=False,
        ),
    ] = None,
    last: Annotated[
        int, typer.Option(min=3, help="Earlier runs that say what is expected of the newest.")
    ] = 10,
    gate: Annotated[
        bool,
        typer.Option(
            "--gate",
            help="Exit 1 if a figure is worse than expected, 2 if no line has 3 runs "
            "before the newest.",
        ),
    ] = False,
    format_: Annotated[
        Literal["md", "html", "json", "csv"] | None,
        typer.Option("--format", help="By default as the output's name ends, or md."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A file instead of standard output.")
    ] = None,
    storage: Storage = ".benchmarks",
) -> None:
    """Follow metrics over comparable stored runs: what is expected next, where levels changed."""
    from ewq.gating.trend import history_of
    from ewq.report.formats import format_of
    from ewq.report.sections.history import FORMATS, TRACKED, headline, history_page
    from ewq.storage.runs import read_storage, storage_path

    chosen = format_ or format_of(output, FORMATS, "md")
    write = writer(output or STDOUT)
    runs, damaged = read_storage(storage_path(storage))
    found = history_of(runs, metrics or TRACKED, last, strict=bool(metrics))
    write(FORMATS[chosen](history_page(found)))
    for sentence in damaged:
        print(f"ewq: left out: {sentence}", file=sys.stderr)
    if gate:
        print(f"ewq: {headline(found)}", file=sys.stderr)
        raise typer.Exit(found.exit_code)
