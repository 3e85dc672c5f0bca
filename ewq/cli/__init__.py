"""The ``ewq`` command: the only place that prints.

Each command is a function of a module; it imports heavy libraries itself, so ``ewq --help`` is
instant.
"""

from __future__ import annotations

import io
import signal
import sys
from typing import Annotated, NoReturn

import typer

from ewq.cli.export import export
from ewq.cli.fit import fit, imatrix
from ewq.cli.history import history
from ewq.cli.plan import diff, plan
from ewq.cli.quantize import quantize
from ewq.cli.report import compare, report
from ewq.errors import EwqError
from ewq.instruments.processor_wait import wait_without_spinning
from ewq.report.escaping import terminal_line
from ewq.version import __version__

app = typer.Typer(
    name="ewq",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (plan, fit, imatrix, diff, quantize, export, compare, report, history):
    app.command(command.__name__)(command)


def _version(asked: bool) -> None:
    if asked:
        print(f"ewq {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """How far can this language model be quantized? Plans, artefacts and evidence."""


class Interrupted(EwqError):
    """Ctrl-C; typer would swallow Python's own exception without a word."""

    exit_code = 130


def _interrupt(*_: object) -> NoReturn:
    raise Interrupted("interrupted; nothing half-written is left behind")


def main() -> None:
    """Run the command line; an :class:`EwqError` becomes one line and its exit code."""
    signal.signal(signal.SIGINT, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A path that the terminal's encoding lacks must not end finished work in a traceback.
            stream.reconfigure(errors="backslashreplace")
    wait_without_spinning()
    try:
        app()
    except EwqError as error:
        print(terminal_line(f"ewq: {error}"), file=sys.stderr)
        sys.exit(error.exit_code)
