"""``ewq report``: stored runs as a page to look at."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How the report is written."""

    HTML = "html"
    MD = "md"
    JSON = "json"


DEFAULT_PAGE = Path("ewq-report.html")
STDOUT = Path("-")


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
        typer.Option("--format", help="How to write it; by default as -o's name ends, or html."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help=f"Where to write it, - for standard output; by default {DEFAULT_PAGE} for html, "
            "else standard output.",
            show_default=False,
        ),
    ] = None,
    storage: Annotated[Path, typer.Option(help="pytest-benchmark's storage folder.")] = Path(
        ".benchmarks"
    ),
) -> None:
    """Show one or more stored runs as a self-contained page, Markdown or JSON."""
    from ewq.report.formats import FORMATS
    from ewq.report.page import make_page
    from ewq.storage.runs import newest_run, resolve_run

    chosen = format_ or _by_suffix(output)
    found = [resolve_run(text, storage) for text in runs or ()] or [newest_run(storage)]
    page = make_page(list({run.path.resolve(): run for run in found}.values()))
    text = FORMATS[chosen.value](page)
    target = output or (DEFAULT_PAGE if chosen is Format.HTML else STDOUT)
    if target == STDOUT:
        typer.echo(text, nl=False)
    else:
        _write(target, text)
        print(f"wrote {target} ({len(text.encode()) / 1e6:.1f} MB)", file=sys.stderr)


_SUFFIXES = {
    ".html": Format.HTML,
    ".htm": Format.HTML,
    ".md": Format.MD,
    ".json": Format.JSON,
}


def _by_suffix(output: Path | None) -> Format:
    return _SUFFIXES.get(output.suffix.lower(), Format.HTML) if output else Format.HTML


def _write(path: Path, text: str) -> None:
    from ewq.errors import EwqError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EwqError(f"cannot write {path}: {error.strerror}") from error
