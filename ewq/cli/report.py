"""``ewq report``: stored runs as a page to look at."""

from __future__ import annotations

import stat
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

STDOUT = Path("-")


class Format(StrEnum):
    """How the report is written."""

    HTML = "html"
    MD = "md"
    JSON = "json"
    CSV = "csv"


DEFAULT_PAGE = Path("ewq-report.html")


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
        Format | None,
        typer.Option("--format", help="By default as the output's name ends, or html."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help=f"A file, or - for standard output. Default: {DEFAULT_PAGE} for html, else -.",
            show_default=False,
        ),
    ] = None,
    storage: Annotated[
        str, typer.Option(help="pytest-benchmark's storage: a folder or a file:// URI.")
    ] = ".benchmarks",
) -> None:
    """Show one or more stored runs as a self-contained page, Markdown, JSON or CSV."""
    from ewq.report.formats import FORMATS, format_of
    from ewq.report.page import make_page
    from ewq.storage.runs import newest_run, resolve_run, storage_path

    chosen = format_ or Format(format_of(output, list(Format), Format.HTML))
    target = output or (DEFAULT_PAGE if chosen is Format.HTML else STDOUT)
    check_target(target)
    folder = storage_path(storage)
    found = [resolve_run(text, folder) for text in runs or ()] or [newest_run(folder)]
    page = make_page(list({run.path.resolve(): run for run in found}.values()))
    text = FORMATS[chosen.value](page)
    write_output(text, target)
    if target != STDOUT:
        print(f"wrote {target} ({len(text.encode()) / 1e6:.1f} MB)", file=sys.stderr)


def _is_stream(target: Path) -> bool:
    """Whether it is written to, not replaced: standard output, a device or a pipe."""
    try:
        mode = target.stat().st_mode
    except (OSError, ValueError):
        return target == STDOUT
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def check_target(target: Path) -> None:
    """Refuse a file that could not be written, before any work for it.

    Raises:
        InputError: see :func:`ewq.files.check_output`.
    """
    from ewq.files import check_output

    if not _is_stream(target):
        check_output(target)


def write_output(text: str, target: Path) -> None:
    """Write a document as UTF-8, whatever the encoding of the terminal.

    Raises:
        EwqError: the file cannot be written.
    """
    from ewq.files import write_text

    if target == STDOUT:
        typer.echo(text.encode(), nl=False)
    elif _is_stream(target):
        target.write_text(text, encoding="utf-8")
    else:
        write_text(target, text)
