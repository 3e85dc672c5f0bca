"""``ewq bench`` and ``ewq init``: the benchmarks from anywhere, and a project of one's own."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ewq.errors import InputError
from ewq.files import check_output, write_text

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
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *pytest_arguments(arguments or [])])


def pytest_arguments(arguments: list[str]) -> list[str]:
    """Those of pytest: what to run, where, and ``arguments`` with a model first as an option."""
    model = [f"--ewq-model={each}" for each in arguments[:1] if not each.startswith("-")]
    # What libraries announce to their own developers says nothing about a model.
    fixed = ["-p", PLUGIN, f"--rootdir={Path.cwd()}", "-Wignore::DeprecationWarning"]
    return [*fixed, *_benchmarks(), *model, *arguments[len(model) :]]


def _benchmarks() -> list[str]:
    if THRESHOLDS.is_file():
        return [f"{OWN}/"]
    if find_spec(CARRIED):
        return ["--pyargs", CARRIED]
    return [str(Path(__file__).parents[2] / OWN)]


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
