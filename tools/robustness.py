"""Every odd folder with every command: a figure, or one line and an exit code; never a traceback.

    python tools/robustness.py docs/robustness.md [NAME ...]

The commands run in this process, one after the other, which takes about ten minutes: a benchmark
run is the smoke tier's weights and perplexity of the reference.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from ewq.cli import main as ewq_main
from tools.odd_folders import NAMES, ODD, make_odd

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
USAGE = 2
PYTEST_USAGE = 4
LONGEST_CELL = 160
TABLES = 0.01
"""Share that bitsandbytes' constant tables, which plans do not count, may add."""


@dataclass(frozen=True)
class Answer:
    """What one command said of one folder."""

    text: str
    bytes: int | None = None
    """Of the model's weights, unquantized, where the command says so."""
    good: bool = True
    """A figure, or one line with the exit code of bad input."""


def run_ewq(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of one ``ewq`` command in this process."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["ewq", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            ewq_main()
            code = 0
        except SystemExit as done:
            code = int(done.code or 0)
    return code, out.getvalue(), err.getvalue()


def refusal(code: int, err: str) -> Answer:
    """The line of a command that refused."""
    lines = [line for line in err.splitlines() if line.startswith("ewq: ")]
    good = code == USAGE and len(lines) == 1
    return Answer(lines[-1].removeprefix("ewq: ") if lines else f"exit {code}: {err}", good=good)


def plan(folder: Path, work: Path) -> Answer:
    """``ewq plan``: the size of a plan that leaves everything raw."""
    code, out, err = run_ewq("plan", "--factor", "0.65", "--json", "--no-cache", "--", str(folder))
    if code:
        return refusal(code, err)
    from ewq.planning.analysis import analyze
    from ewq.variants import Precision

    raw = analyze(folder, cache=False).uniform_plan(Precision.RAW).size_bytes
    return Answer(f"{json.loads(out)['size_bytes']:,} of {raw:,} bytes", raw)


def quantize(folder: Path, work: Path) -> Answer:
    """``ewq quantize``: bytes as written, against bytes as planned."""
    target = str(work / "quantized")
    code, out, err = run_ewq(
        "quantize", "--factor", "0.65", "--json", "-o", target, "--", str(folder)
    )
    if code:
        return refusal(code, err)
    said = json.loads(out)
    made, planned = said["weights_bytes"], said["planned_bytes"]
    return Answer(f"{made:,} of {planned:,} bytes", good=abs(made - planned) <= TABLES * planned)


def export(folder: Path, work: Path) -> Answer:
    """``ewq export --type F16``: parameters in 16 bits."""
    target = str(work / "model.gguf")
    code, out, err = run_ewq("export", "--type", "F16", "--json", "-o", target, "--", str(folder))
    if code:
        return refusal(code, err)
    said = json.loads(out)
    return Answer(f"{said['parameters']:,} parameters", 2 * said["parameters"])


def benchmark(folder: Path, work: Path) -> Answer:
    """``pytest benchmarks``: the reference's weights and perplexity."""
    stored = work / "run.json"
    arguments = [
        str(BENCHMARKS),
        *("-c", os.devnull, f"--rootdir={work}", "-p", "ewq.pytest_plugin"),
        *(f"--benchmark-json={stored}", f"--ewq-model={folder}"),
        *("--ewq-tier=smoke", "--ewq-variants=fp16", "-k", "memory or perplexity"),
        *("-q", "-p", "no:cacheprovider", "--no-header"),
        f"--benchmark-storage=file://{work / 'storage'}",
    ]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), in_folder(work):
        code = int(pytest.main(arguments))
    if code == 0:
        return figures(stored)
    said = out.getvalue() + err.getvalue()
    if code == PYTEST_USAGE:
        lines = set(re.findall(r"ewq: (.*?)(?: !)?$", said, re.MULTILINE))
        return Answer("; ".join(lines) or said[-1500:], good=len(lines) == 1)
    failed = set(re.findall(r"^not measured: fp16: (.*)$", said, re.MULTILINE))
    failed |= set(re.findall(r"another exception occurred:\n(.*)$", said, re.MULTILINE))
    good = bool(failed) and "Traceback" not in said and "\nE  " not in said
    return Answer("not measured: " + "; ".join(failed) if good else said[-1500:], good=good)


def figures(stored: Path) -> Answer:
    """Weights and perplexity of a stored run."""
    records = {
        entry["extra_info"]["ewq"]["task"]: entry["extra_info"]["ewq"]["metrics"]
        for entry in json.loads(stored.read_text(encoding="utf-8"))["benchmarks"]
    }
    nbytes = int(records["memory"]["weights_bytes"]["value"])
    perplexity = records["perplexity"]["perplexity"]["value"]
    return Answer(f"{nbytes:,} bytes, perplexity {perplexity:.2f}", nbytes)


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


COMMANDS: dict[str, Callable[[Path, Path], Answer]] = {
    "plan": plan,
    "quantize": quantize,
    "export": export,
    "benchmark": benchmark,
}


def answers(name: str) -> dict[str, Answer]:
    """What each command says of one odd folder."""
    found = {}
    for command, run in COMMANDS.items():
        with tempfile.TemporaryDirectory() as place:
            work = Path(place)
            folder = make_odd(name, work)
            try:
                answer = run(folder, work)
            except Exception as error:  # noqa: BLE001 - what is looked for
                answer = Answer(f"TRACEBACK {type(error).__name__}: {error}", good=False)
            if (work / "code-ran").exists():
                answer = Answer("CODE OF THE MODEL RAN", good=False)
            text = answer.text.replace(str(folder), "FOLDER").replace(place, "").replace("\n", " ")
            found[command] = Answer(text, answer.bytes, answer.good)
    return found


def two_answers(row: dict[str, Answer]) -> bool:
    """Whether commands that give a size in 16 bits disagree."""
    return len({answer.bytes for answer in row.values() if answer.bytes is not None}) > 1


def table(rows: dict[str, dict[str, Answer]]) -> Iterator[str]:
    """The document, line by line."""
    wrong = sum(not answer.good for row in rows.values() for answer in row.values())
    split = [name for name, row in rows.items() if two_answers(row)]
    yield from (
        "# Odd folders",
        "",
        "What each command says of model folders as people really have them, by",
        "`python tools/robustness.py docs/robustness.md`. A cell is a figure, or the one line that",
        "the command ends with (exit code 2, of pytest 4, or 1 where a test fails: not measured).",
        "Sizes are of all weights in 16 bits; `plan` and `quantize` use factor 0.65.",
        "",
        f"{len(rows)} folders, {len(rows) * len(COMMANDS)} cells: {wrong} neither a figure nor one "
        f"line; {len(split)} folders with two answers{': ' + ', '.join(split) if split else ''}.",
        "",
        "| folder | plan | quantize | export | benchmark |",
        "| --- | --- | --- | --- | --- |",
    )
    for name, row in rows.items():
        cells = " | ".join(cell(row[command]) for command in COMMANDS)
        yield f"| {name} | {cells} |"


def cell(answer: Answer) -> str:
    text = answer.text if len(answer.text) <= LONGEST_CELL else f"{answer.text[:LONGEST_CELL]}…"
    return ("" if answer.good else "**!** ") + text.replace("|", "\\|")


def main() -> None:
    """Try all folders, or those named, and write the table."""
    logging.disable(logging.WARNING)
    out, names = Path(sys.argv[1]), sys.argv[2:] or [*ODD, *NAMES]
    rows = {}
    for name in names:
        rows[name] = answers(name)
        for command, answer in rows[name].items():
            mark = "  " if answer.good else "! "
            sys.stderr.write(f"{mark}{name:32} {command:10} {answer.text[:200]}\n")
    out.write_text("\n".join(table(rows)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
