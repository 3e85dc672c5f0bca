"""The ``ewq`` command: the only place that prints; each command imports heavy libraries itself."""

import io
import re
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from ewq.cli.bench import ab, bench, init, sweep
from ewq.cli.doctor import cache, doctor
from ewq.cli.export import export, quantize
from ewq.cli.fit import fit, imatrix
from ewq.cli.plan import diff, plan
from ewq.cli.report import compare, history, report
from ewq.errors import EwqError, InputError
from ewq.files import cached_kinds, caches_made
from ewq.instruments.processor_wait import wait_without_spinning
from ewq.report.document import terminal_line
from ewq.version import __version__

EXAMPLES: Mapping[Callable[..., None], str] = {
    plan: "ewq plan Qwen/Qwen3-8B --target-size 9GB -o plan.json",
    fit: "ewq fit Qwen/Qwen3-8B --size 5GB --versus Q4_K_M -o qwen3-8b-5gb.gguf",
    imatrix: "ewq imatrix Qwen/Qwen3-8B -o qwen3-8b.imatrix.gguf",
    diff: "ewq diff plan-1.json plan-0.65.json",
    quantize: "ewq quantize Qwen/Qwen3-8B --plan plan.json -o qwen3-8b-ewq",
    export: "ewq export Qwen/Qwen3-8B --type Q4_K_M -o qwen3-8b.gguf",
    bench: 'ewq bench Qwen/Qwen3-8B -k "fp16 or ewq" --ewq-tier smoke',
    sweep: "ewq sweep sweep.toml -o sweep.html",
    compare: "ewq compare ancestor -o comment.md",
    report: "ewq report -o report.html",
    history: "ewq history kld_mean decode_tokens_per_s --gate",
    ab: "ewq ab main HEAD --ewq-model Qwen/Qwen3-8B",
    init: "ewq init my-project",
    doctor: "ewq doctor",
    cache: "ewq cache clean gguf",
}
"""Every command, in the order of the help, with a call that shows what it is for."""
PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""How options that are another program's are taken."""


class Command(TyperCommand):
    """A command whose help says what its options mean, and nothing of Python's types."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """``MODEL [OPTIONS]``."""
        taken = [param for param in self.params if param.param_type_name == "argument"]
        return [*map(_named, taken), "[OPTIONS]"]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Arguments and options, one list."""
        with formatter.section("Options"):
            formatter.write_dl([_described(param) for param in self.get_params(ctx)])


def _named(argument: Any) -> str:
    """``MODEL``, or ``[RUNS]`` where it may be left out."""
    name = argument.name.upper() + "..." * (argument.nargs != 1)
    return str(argument.metavar or (name if argument.required else f"[{name}]"))


def _described(param: Any) -> tuple[str, str]:
    """``-o, --output FILE`` and what it does, with its default where that is a value."""
    said = param.help or ""
    if param.param_type_name == "argument":
        return _named(param), said
    names = ", ".join([*sorted(param.opts, key=len), *param.secondary_opts])
    if param.is_flag:
        return names, said
    choices = "|".join(map(str, param.type_descriptor.choices or ()))
    value = param.metavar or choices or param.opts[-1].split("-")[-1].upper()
    if param.show_default and param.default not in (None, ""):
        said += f" (default: {param.default})"
    return f"{names} {value}", said


app = typer.Typer(
    name="ewq",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    subcommand_metavar="COMMAND",
)
for command, example in EXAMPLES.items():
    app.command(
        command.__name__,
        cls=Command,
        short_help=re.split("[:;,]", command.__doc__ or "")[0],
        epilog=f"Example: {example}",
        context_settings=PASSED_ON if command in (ab, bench) else None,
    )(command)


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
        sys.exit(_run(sys.argv[1:] or ["--help"]))
    except EwqError as error:
        print(terminal_line(f"ewq: {error}"), file=sys.stderr)
        sys.exit(error.exit_code)


def _run(arguments: list[str]) -> int:
    """The exit code; bad use is one line, as other bad input is."""
    kept = cached_kinds()
    try:
        status = app(arguments, prog_name="ewq", standalone_mode=False) or 0
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        said = error.format_message().replace("Value error, ", "").rstrip(".")
        where = context.command_path if context else "ewq"
        raise InputError(f"{said[:1].lower()}{said[1:]}; see {where} --help") from error
    if said := caches_made(kept):
        print(f"ewq: {said}", file=sys.stderr)
    return int(status)
