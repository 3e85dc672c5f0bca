"""``ewq sweep``: many models, one report; what is stored is not measured again."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ewq.storage.journal import JOURNAL
from tests.make_runs import record, stored_run

SWEEP = """
models = ["large", "small"]
variants = ["fp16", "ewq-0.65"]
options = ["--ewq-tier", "smoke"]
settings = [[], ["--ewq-dtype", "float16"]]
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The runs that were started; models in ``fails`` store nothing, in ``partial`` half."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    module = sys.modules["ewq.cli.bench"]
    monkeypatch.setattr(module, "_weights_bytes", {"large": 9, "small": 1}.__getitem__)
    seen = SimpleNamespace(commands=[], fails=(), partial=())

    def run(command, stdin, check):
        seen.commands.append(command)
        storage = next(o for o in command if o.startswith("--benchmark-storage=file://"))
        folder = Path(storage.removeprefix("--benchmark-storage=file://"))
        model = next(o for o in command if o.startswith("--ewq-model")).split("=")[1]
        folder.mkdir(parents=True, exist_ok=True)
        if model in seen.fails:
            (folder / JOURNAL).touch()
        else:
            complete = model not in seen.partial
            stored_run(
                folder, [record(model=model)], number=1 + complete, session={"complete": complete}
            )

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def models(commands):
    return [each.split("=")[1] for c in commands for each in c if each.startswith("--ewq-model")]


def test_every_model_and_setting_is_run_the_smallest_first_and_reported(ewq, started, tmp_path):
    said = ewq("sweep", "sweep.toml", "-o", "sweep.md")
    assert said.code == 0
    assert models(started.commands) == ["small", "small", "large", "large"]
    assert "--ewq-variants=fp16,ewq-0.65" in started.commands[0]
    assert ["float16" in command for command in started.commands] == [False, True] * 2
    text = (tmp_path / "sweep.md").read_text()
    headings = [line.split()[1] for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["What", "small", "small", "large", "large"]


def test_a_sweep_goes_on_with_what_is_missing(ewq, started):
    started.fails = ("large",)
    said = ewq("sweep", "sweep.toml")
    assert said.code == 3
    assert "2 runs are incomplete (see above): run the sweep again" in said.err
    started.fails, started.commands[:] = (), []
    assert ewq("sweep", "sweep.toml").code == 0
    assert models(started.commands) == ["large", "large"]
    assert all("--ewq-resume" in command for command in started.commands)
    started.commands.clear()
    assert ewq("sweep", "sweep.toml", "-o", "sweep.json").code == 0
    assert started.commands == []
    assert len(json.loads(Path("sweep.json").read_text())["runs"]) == 4


def test_what_a_run_with_failures_measured_is_reported_and_the_rest_is_tried_again(ewq, started):
    started.partial = ("large",)
    said = ewq("sweep", "sweep.toml", "-o", "sweep.md")
    assert said.code == 3
    text = Path("sweep.md").read_text()
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert sum("(incomplete)" in line for line in headings) == 2
    assert "## large (incomplete)" in headings
    started.partial, started.commands[:] = (), []
    assert ewq("sweep", "sweep.toml", "-o", "sweep.md").code == 0
    assert models(started.commands) == ["large", "large"]
    assert "(incomplete)" not in Path("sweep.md").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [("models = 3", "models"), ("model = []", "lacks keys: models"), ("models = [", "is no sweep")],
)
def test_a_file_that_is_no_sweep_is_one_line(ewq, started, tmp_path, text, said):
    (tmp_path / "sweep.toml").write_text(text)
    result = ewq("sweep", "sweep.toml")
    assert result.code == 2
    assert said in result.err
    assert len(result.err.splitlines()) == 1
    assert started.commands == []
