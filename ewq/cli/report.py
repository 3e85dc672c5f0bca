"""``ewq report``: stored runs as a page to look at."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from ewq.files import check_output, write_text

STDOUT = Path("-")
Storage = Annotated[
    str, typer.Option(help="pytest-benchmark's storage: a folder or a file:// URI.")
]
_PAGE = Path("ewq-report.html")


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Stored runs: files, numbers in the storage, commits or branches; the newest "
            "stored run by default. The newest is shown in detail, the others as its history.",
            show_default=False,
        ),
    ] = None,
    format_: Annotated[
        Literal["html", "md", "json", "csv"] | None,
        typer.Option("--format", help="By default as the output's name ends, or html."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help=f"A file, or - for standard output. Default: {_PAGE} for html, else -.",
            show_default=False,
        ),
    ] = None,
    storage: Storage = ".benchmarks",
) -> None:
    """Show one or more stored runs as a self-contained page, Markdown, JSON or CSV."""
    from ewq.report.formats import FORMATS, format_of
    from ewq.report.page import make_page
    from ewq.storage.runs import newest_run, resolve_run, storage_path

    chosen = format_ or format_of(output, FORMATS, "html")
    target = output or (_PAGE if chosen == "html" else STDOUT)
    write = writer(target)
    folder = storage_path(storage)
    found = [resolve_run(text, folder) for text in runs or ()] or [newest_run(folder)]
    text = FORMATS[chosen](make_page(list({run.path.resolve(): run for run in found}.values())))
    write(text)
    if target != STDOUT:
        print(f"wrote {target} ({len(text.encode()) / 1e6:.1f} MB)", file=sys.stderr)


def writer(target: Path) -> Callable[[str], object]:
    """What writes a document as UTF-8: to standard output, into a device or pipe, or as a file.

    Raises:
        InputError: a file that could not be written, before any work for it.
    """
    if target == STDOUT:
        return lambda text: typer.echo(text.encode(), nl=False)
    with suppress(OSError, ValueError):
        mode = target.stat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
            return partial(target.write_text, encoding="utf-8")
    check_output(target)
    return partial(write_text, target)
