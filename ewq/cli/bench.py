"""``ewq bench``, ``sweep``, ``init`` and ``ab``: the benchmarks from anywhere, on many models, in a
project of one's own, and the speeds of two commits or two variants, measured in turns.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer

from ewq.codec import decode
from ewq.errors import EwqError, InputError
from ewq.files import check_output, content_key, write_text
from ewq.progress import NO_PROGRESS
from ewq.record import Record
from ewq.storage.environment import git_lines
from ewq.storage.journal import JOURNAL
from ewq.storage.runs import STORAGE, Run, read_storage
from ewq.tasks.table import figure_of
from ewq.variants import find_variant

PLUGIN, CARRIED = "ewq.pytest_plugin", "ewq.benchmarks"
OWN = Path("benchmarks")
THRESHOLDS = OWN / "thresholds.toml"
CONFTEST = Path("conftest.py")
TEMPLATES = {
    CONFTEST: "conftest.py.txt",
    OWN / "test_quality.py": "test_quality.py.txt",
    THRESHOLDS: "thresholds.toml.txt",
    Path(".github/workflows/ewq.yml"): "workflow.yml.txt",
}
"""What ``ewq init`` writes, and what it is written from."""
Sides = list[tuple[str, str, Path]]


def bench(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [PYTEST OPTIONS]...",
            help="A model first (default: the embedded one), then pytest's options and ewq's; "
            "`ewq bench -h` lists them.",
        ),
    ] = None,
) -> None:
    """Run the benchmarks through pytest: this folder's own, else those that ewq carries."""
    sys.stdout.flush()
    # In place of this process: exit codes and signals are pytest's own.
    os.execv(sys.executable, pytest_command(arguments or []))


def pytest_command(arguments: list[str], folder: Path = Path()) -> list[str]:
    """pytest with what to run, where, and ``arguments`` with a model first as an option."""
    model = [f"--ewq-model={each}" for each in arguments[:1] if not each.startswith("-")]
    # What libraries announce to their own developers says nothing about a model.
    fixed = ["-p", PLUGIN, f"--rootdir={folder.absolute()}", "-Wignore::DeprecationWarning"]
    if (folder / THRESHOLDS).is_file():
        benchmarks = [f"{OWN}/"]
    elif find_spec(CARRIED):
        benchmarks = ["--pyargs", CARRIED]
    else:
        benchmarks = [str(Path(__file__).parents[2] / OWN)]
    command = [sys.executable, "-m", "pytest", *fixed, *benchmarks]
    return [*command, *model, *arguments[len(model) :]]


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file says: a run for each model and each of the settings."""

    models: tuple[str, ...]
    variants: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    settings: tuple[tuple[str, ...], ...] = ((),)


def sweep(
    file: Annotated[Path, typer.Argument(help="A TOML file: models, variants, options, settings.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The report: .html, .md or .json.")
    ] = Path("ewq-sweep.html"),
    storage: Annotated[Path, typer.Option(help="A folder for all runs.")] = STORAGE / "sweep",
) -> None:
    """Run the benchmarks on many models, the smallest first, and report on all of them at once."""
    from ewq.report.formats import FORMATS, format_of
    from ewq.report.sections import sweep_page

    write = FORMATS[format_of(output, ("html", "md", "json"), "html")]
    check_output(output)
    asked, found, unfinished = _read_sweep(file), [], 0
    variants = [f"--ewq-variants={','.join(asked.variants)}"] * bool(asked.variants)
    models = sorted(asked.models, key=_weights_bytes)
    for model, settings in product(models, asked.settings):
        arguments = [f"--ewq-model={model}", *variants, *asked.options, *settings]
        folder, name = storage / content_key(arguments)[:16], " ".join((model, *settings))
        if not ((run := _best(folder)) and run.complete):
            print(f"ewq: sweep: {name}", file=sys.stderr, flush=True)
            kept = ["--ewq-resume"] * (folder / JOURNAL).is_file()
            command = pytest_command([*arguments, *_stored_in(folder), *kept])
            subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
            run = _best(folder)
        complete = run is not None and run.complete
        unfinished += not complete
        found += [(name if complete else f"{name} (incomplete)", run)] if run else []
    if found:
        print(f"wrote {write_text(output, write(sweep_page(found)))}", file=sys.stderr)
    if unfinished:
        raise EwqError(f"{unfinished} runs are incomplete (see above): run the sweep again")


def _read_sweep(file: Path) -> Sweep:
    try:
        return decode(Sweep, tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file} is no sweep: {error}") from error


def _weights_bytes(model: str) -> int:
    """Of a model's tensors, which tells whether it can be read before anything is measured."""
    from ewq.harness.subject import find_subject

    tensors = find_subject(model, "quick", "cpu", NO_PROGRESS).checkpoint.tensors.values()
    return sum(each.nbytes for each in tensors)


def _stored_in(storage: Path) -> list[str]:
    return ["--benchmark-autosave", f"--benchmark-storage={storage.resolve().as_uri()}"]


def _best(storage: Path) -> Run | None:
    """The newest complete run in a folder, else the newest one."""
    runs = read_storage(storage)[0]
    return next((run for run in runs if run.complete), next(iter(runs), None))


def init(
    folder: Annotated[Path, typer.Argument(help="The project (default: this folder).")] = Path(),
) -> None:
    """Set up benchmarks in a project of your own: conftest, tests, limits, GitHub workflow."""
    templates = {folder / path: name for path, name in TEMPLATES.items()}
    for path in templates:
        check_output(path)
    if (conftest := folder / CONFTEST).exists():
        if PLUGIN not in conftest.read_text(encoding="utf-8"):
            line = f'pytest_plugins = ["{PLUGIN}"]'
            raise InputError(f"{conftest} exists: add {line} to it and run this again")
        del templates[conftest]
    if taken := [path for path in templates if path.exists()]:
        raise InputError(f"{taken[0]} exists, and nothing is overwritten: remove it or rename it")
    for path, name in templates.items():
        text = Path(__file__).with_name("project") / name
        print(write_text(path, text.read_text(encoding="utf-8")))
    configs = ("pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg")
    if not any((folder / name).exists() for name in configs):
        print(write_text(folder / "pytest.ini", "[pytest]\n"))
    print("next: add .benchmarks/ to .gitignore, then run `pytest benchmarks/ -k ewq`")


def ab(
    a: Annotated[str, typer.Argument(help="A commit of this repository, a variant or a plan.")],
    b: Annotated[str, typer.Argument(help="Another of the same kind.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PYTEST OPTIONS]...", help="Such as --ewq-model; after the rest."),
    ] = None,
    pairs: Annotated[
        int, typer.Option(min=2, help="Measurements of each; an even number cancels a drift.")
    ] = 4,
    variant: Annotated[str, typer.Option(help="What is measured of commits.")] = "fp16",
) -> None:
    """Compare the speeds of two commits or variants, measured in turns: A B, B A, A B, ..."""
    with (
        tempfile.TemporaryDirectory(prefix="ewq-ab-") as scratch,
        _sides((a, b), variant, Path(scratch)) as sides,
    ):
        measured: tuple[list[Record], list[Record]] = ([], [])
        for pair in range(pairs):
            for which in (0, 1) if pair % 2 == 0 else (1, 0):
                storage = Path(scratch, f"{pair}-{which}")
                measured[which].append(_measured(*sides[which], storage, options or ()))
            print(f"ewq: pair {pair + 1} of {pairs} measured", file=sys.stderr, flush=True)
    for line in lines((a, b), measured):
        print(line)


@contextmanager
def _sides(names: tuple[str, str], variant: str, scratch: Path) -> Iterator[Sides]:
    """Each side's name, variant and the folder whose code measures it, commits' as worktrees."""
    try:
        _ = [find_variant(name) for name in names]
        commits = None
    except InputError as error:
        commits = [git_lines(Path(), "rev-parse", "--verify", f"{n}^{{commit}}") for n in names]
        if not all(commits):
            raise InputError(f"{' and '.join(names)} are not two commits; {error}") from error
    if commits is None:
        yield [(name, name, Path()) for name in names]
        return
    (inside,) = git_lines(Path(), "rev-parse", "--show-prefix") or [""]
    trees = [scratch / "a", scratch / "b"]
    try:
        for name, tree, commit in zip(names, trees, commits, strict=True):
            if git_lines(Path(), "worktree", "add", "--detach", str(tree), *commit or ()) is None:
                raise EwqError(f"git cannot check out {name}: see `git worktree add`")
        yield [(n, variant, tree / inside) for n, tree in zip(names, trees, strict=True)]
    finally:
        for tree in trees:
            git_lines(Path(), "worktree", "remove", "--force", str(tree))


def _measured(
    name: str, variant: str, folder: Path, storage: Path, options: Sequence[str]
) -> Record:
    """The throughput of one side, from a process of its own; whatever its gates say."""
    asked = ["-q", "-k", "throughput", "--ewq-tier", "smoke", "--ewq-variants", variant]
    paths = [str(folder.resolve()), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        pytest_command([*asked, *_stored_in(storage), *options], folder),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    stored = [record for run in read_storage(storage)[0] for record in run.records.values()]
    if found := [record for record in stored if record.task == "throughput"]:
        return found[0]
    said = (line for line in (done.stderr + done.stdout).splitlines() if line.strip())
    raise EwqError(f"{name} was not measured: {' | '.join([*said][-3:]) or 'no reason given'}")


def lines(names: Sequence[str], measured: tuple[Sequence[Record], Sequence[Record]]) -> list[str]:
    """Each speed's :func:`ewq.stats.paired_ratio`; an InputError where that would say nothing."""
    from ewq.gating.change import doubt_about, incomparable
    from ewq.stats import paired_ratio

    before, after = measured[0][0], measured[1][0]
    if reasons := incomparable(before, after) if before.variant == after.variant else ():
        raise InputError(f"{' and '.join(names)} cannot be compared: {'; '.join(reasons)}")
    found = [f"A: {names[0]}, B: {names[1]}"]
    for metric in after.metrics:
        figure = figure_of("throughput", metric)
        if figure and figure.tolerance and not figure.paired and metric in before.metrics:
            speeds = [[record.metrics[metric].value for record in side] for side in measured]
            ratio, (low, high) = paired_ratio(*speeds)
            doubts = (doubt_about(metric, record) for side in measured for record in side)
            doubt = next((f", in doubt: {doubt.text}" for doubt in doubts if doubt), "")
            differs = doubt or ("" if low <= 1 <= high else ", a difference")
            means = " and ".join(f"{fmean(side):.4g}" for side in speeds)
            ratios = f"B / A {ratio:.3f}, 95 % {low:.3f} to {high:.3f}"
            found.append(f"{metric}: {means}; {ratios}{differs}")
    return found
