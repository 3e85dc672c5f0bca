"""``ewq bench`` in a repository and in an empty folder; ``ewq init`` in one's own project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ewq.cli.bench import TEMPLATES, pytest_command
from ewq.gating.thresholds import load_thresholds
from ewq.pytest_door import pytest_load_initial_conftests
from ewq.variants import default_names
from tests.test_gpu_gate import ROOT

CARRIED = str(ROOT / "benchmarks")


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def executed(monkeypatch):
    """The commands that would have taken this process's place."""
    commands = []
    monkeypatch.setattr(os, "execv", lambda _, command: commands.append(command))
    return commands


def test_a_model_becomes_an_option_and_the_rest_is_pytests(ewq, empty, executed):
    ewq("bench", "org/model", "-k", "fp16 or ewq", "--ewq-tier", "smoke", "-x", "-h", "--help")
    plugin = ["-p", "ewq.pytest_plugin", f"--rootdir={empty}", "-Wignore::DeprecationWarning"]
    asked = ["-k", "fp16 or ewq", "--ewq-tier", "smoke", "-x", "-h", "--help"]
    [command] = executed
    assert command == [
        sys.executable,
        "-m",
        "pytest",
        *plugin,
        CARRIED,
        "--ewq-model=org/model",
        *asked,
    ]


@pytest.mark.parametrize("arguments", [[], ["-k", "ewq"], ["--ewq-model", "m"]])
def test_without_a_model_first_nothing_is_taken_for_one(empty, arguments):
    assert pytest_command(arguments) == [*pytest_command([]), *arguments]


def test_a_folder_with_benchmarks_of_its_own_runs_those(empty):
    (empty / "benchmarks").mkdir()
    assert CARRIED in pytest_command([])
    (empty / "benchmarks" / "thresholds.toml").touch()
    assert CARRIED not in pytest_command([])
    assert "benchmarks/" in pytest_command([])


def test_it_really_collects_in_an_empty_folder_and_ends_as_pytest_does(empty):
    command = [sys.executable, "-m", "ewq", "bench", "-k", "ewq-0.65 and memory", "--ewq-dry-run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "2 measurements: 1 tasks on 2 variants (ewq-0.65, gguf-ewq-0.65)" in done.stdout
    assert done.returncode == 0
    failed = subprocess.run([*command[:-1], "--nonsense"], capture_output=True, env=environment)
    assert failed.returncode == 4


class Plugins:
    """In place of a pytest configuration: what was imported into it."""

    def __init__(self):
        self.pluginmanager, self.imported = self, []

    def import_plugin(self, name):
        self.imported.append(name)


@pytest.mark.parametrize("name", ["ewq.benchmarks", "ewq.benchmarks.test_mmlu::test_mmlu"])
def test_the_plugin_is_there_where_the_benchmarks_are_named_and_nowhere_else(name):
    named, other = Plugins(), Plugins()
    pytest_load_initial_conftests(named, ["--pyargs", name, "-q"])
    pytest_load_initial_conftests(other, ["tests/", "-k", "not ewq.benchmarks2", "benchmarks"])
    assert named.imported == ["ewq.pytest_plugin"]
    assert other.imported == []


def test_init_writes_a_project_that_pytest_can_run(ewq, empty):
    said = ewq("init", "mine")
    assert said.code == 0
    for path in TEMPLATES:
        assert str(Path("mine") / path) in said.out
    load_thresholds(empty / "mine" / "benchmarks" / "thresholds.toml", default_names(["0.65"]))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks/", "-k", "fp16", "--ewq-dry-run"],
        cwd=empty / "mine",
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert "4 measurements: 4 tasks on 1 variants (fp16)" in done.stdout


def test_init_overwrites_nothing(ewq, empty):
    assert ewq("init").code == 0
    before = {path: path.read_bytes() for path in empty.rglob("*") if path.is_file()}
    (empty / ".github" / "workflows" / "ewq.yml").unlink()
    said = ewq("init")
    assert said.code == 2
    assert "benchmarks/test_quality.py exists, and nothing is overwritten" in said.err
    after = {path: path.read_bytes() for path in empty.rglob("*") if path.is_file()}
    assert after.items() <= before.items()


def test_init_into_a_name_that_cannot_be_is_one_line(ewq, empty):
    said = ewq("init", "n" * 300)
    assert said.code == 2
    assert "File name too long" in said.err
    assert list(empty.iterdir()) == []


def test_a_conftest_that_is_there_is_left_to_its_owner(ewq, empty):
    (empty / "conftest.py").write_text("import os\n")
    said = ewq("init")
    assert said.code == 2
    assert 'add pytest_plugins = ["ewq.pytest_plugin"] to it' in said.err
    assert [path.name for path in empty.iterdir()] == ["conftest.py"]
    own = 'pytest_plugins = ["ewq.pytest_plugin"]  # mine\n'
    (empty / "conftest.py").write_text(own)
    assert ewq("init").code == 0
    assert (empty / "conftest.py").read_text() == own


def test_a_project_with_a_configuration_of_pytest_gets_no_second_one(ewq, empty):
    (empty / "pyproject.toml").touch()
    ewq("init")
    assert not (empty / "pytest.ini").exists()
