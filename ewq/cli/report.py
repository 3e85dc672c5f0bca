"""``ewq report``, ``compare`` and ``history``: stored runs as a page, in pairs, in a row."""

import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from ewq.cli.bench import THRESHOLDS
from ewq.files import check_output, write_text
from ewq.storage.runs import newest_run, read_storage, resolve_run, storage_path

STDOUT = Path("-")
Storage = Annotated[
    str, typer.Option(help="pytest-benchmark's storage: a folder or a file:// URI.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", help="A file, or - for stdout; HTML reports go to ewq-report.html."
    ),
]
_OR_MD = typer.Option("--format", help="By default as the output's name ends, or md.")
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
        Literal[
            "html", "md", "json", "csv", "github-smaller", "github-bigger", "bencher", "model-index"
        ]
        | None,
        typer.Option("--format", help="By default as the output's name ends, or html."),
    ] = None,
    output: Output = None,
    storage: Storage = ".benchmarks",
) -> None:
    """Show one or more stored runs as a self-contained page, Markdown, JSON or CSV."""
    from ewq.report.formats import EXPORTS, FORMATS, format_of
    from ewq.report.sections import make_page

    chosen = format_ or format_of(output, FORMATS, "html")
    target = output or (_PAGE if chosen == "html" else STDOUT)
    write = writer(target)
    folder = storage_path(storage)
    found = [resolve_run(text, folder) for text in runs or ()] or [newest_run(folder)]
    page = make_page(list({run.path.resolve(): run for run in found}.values()))
    text = {**FORMATS, **EXPORTS}[chosen](page)
    write(text)
    if target != STDOUT:
        print(f"wrote {target} ({len(text.encode()) / 1e6:.1f} MB)", file=sys.stderr)


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
    format_: Annotated[Literal["md", "json", "html"] | None, _OR_MD] = None,
    output: Output = None,
    thresholds: Annotated[
        Path | None, typer.Option(help=f"File of tolerances (default: {THRESHOLDS} if it exists).")
    ] = None,
    storage: Storage = ".benchmarks",
) -> None:
    """Compare two runs: exit 0 without a regression, 1 with one, 2 if not comparable."""
    from ewq.gating.compare import ANCESTOR, NEWEST, baseline_of, compare_runs
    from ewq.gating.thresholds import BUILT_IN, load_thresholds
    from ewq.report.comparison import FORMATS
    from ewq.report.formats import format_of

    chosen = format_ or format_of(output, FORMATS, "md")
    write = writer(output or STDOUT)
    folder = storage_path(storage)
    after = resolve_run(current, folder) if current else newest_run(folder)
    if baseline in (NEWEST, ANCESTOR):
        before = baseline_of(after, baseline, folder, Path())
    else:
        before = resolve_run(baseline, folder)
    if thresholds is None and THRESHOLDS.is_file():
        thresholds = THRESHOLDS
    variants = {variant for run in (before, after) for variant, _ in run.records}
    limits = load_thresholds(thresholds, variants) if thresholds else BUILT_IN
    comparison = compare_runs(before, after, limits)
    write(FORMATS[chosen](comparison))
    raise typer.Exit(comparison.exit_code)


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
            help="Exit 1 if a figure is worse than expected, 2 if no line has 3 earlier runs.",
        ),
    ] = False,
    format_: Annotated[Literal["md", "html", "json", "csv"] | None, _OR_MD] = None,
    output: Output = None,
    storage: Storage = ".benchmarks",
) -> None:
    """Follow metrics over comparable stored runs: what is expected next, where levels changed."""
    from ewq.gating.trend import history_of
    from ewq.report.formats import format_of
    from ewq.report.sections.history import FORMATS, headline, history_page

    chosen = format_ or format_of(output, FORMATS, "md")
    write = writer(output or STDOUT)
    runs, damaged = read_storage(storage_path(storage))
    found = history_of(runs, metrics or (), last)
    write(FORMATS[chosen](history_page(found)))
    for sentence in damaged:
        print(f"ewq: left out: {sentence}", file=sys.stderr)
    if gate:
        print(f"ewq: {headline(found)}", file=sys.stderr)
        raise typer.Exit(found.exit_code)


def writer(target: Path) -> Callable[[str], object]:
    """What writes a document as UTF-8; an InputError for a file that could not be written."""
    if target == STDOUT:
        return lambda text: typer.echo(text.encode(), nl=False)
    with suppress(OSError, ValueError):
        mode = target.stat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
            return partial(target.write_text, encoding="utf-8")
    check_output(target)
    return partial(write_text, target)
