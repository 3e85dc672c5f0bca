"""``ewq quantize``: a complete folder or one line of explanation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import typer
from transformers import AutoTokenizer
from typer.testing import CliRunner

from ewq.checkpoint.embedded import fixture_path
from ewq.cli.export import quantize
from ewq.errors import BackendUnavailable, CheckpointError, InputError
from ewq.instruments.memory import weights_bytes
from ewq.planning.plan import read_plan
from tests.quantizer.models import load, logits

app = typer.Typer()
app.command()(quantize)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_it_writes_everything_that_opening_and_understanding_the_model_takes(tmp_path):
    source = fixture_path("tiny-llama")

    done = run(source, "--factor", "0.65", "-o", tmp_path / "q", "--json")

    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    names = {path.name for path in (tmp_path / "q").iterdir()}
    assert {"config.json", "generation_config.json", "plan.json", "README.md"} <= names
    assert read_plan(tmp_path / "q" / "plan.json").digest == document["plan"]
    model = load(tmp_path / "q")
    assert weights_bytes(model) == document["weights_bytes"]
    assert logits(model).isfinite().all()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "q")
    original = AutoTokenizer.from_pretrained(source)
    assert tokenizer("one two")["input_ids"] == original("one two")["input_ids"]
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


def test_a_folder_in_use_is_not_touched(tmp_path):
    (tmp_path / "note.txt").write_text("mine")

    done = run(fixture_path("tiny-llama"), "--factor", "0.65", "-o", tmp_path)

    assert isinstance(done.exception, InputError)
    assert "not an empty folder" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize(
    "rules", [(), ("--factor", "0.65", "--target-bpw", "6")], ids=["none", "two"]
)
def test_it_wants_exactly_one_rule(tmp_path, rules):
    done = run(fixture_path("tiny-llama"), *rules, "-o", tmp_path / "q")

    assert isinstance(done.exception, InputError)
    assert not (tmp_path / "q").exists()


def test_a_size_is_a_rule_and_is_not_exceeded(tmp_path):
    done = run(fixture_path("tiny-llama"), "--target-size", "0.6MB", "-o", tmp_path / "q", "--json")

    assert done.exit_code == 0, done.output
    assert 500_000 < json.loads(done.stdout)["planned_bytes"] <= 600_000
    assert read_plan(tmp_path / "q" / "plan.json").rule["target_size_bytes"] == 600_000


def test_without_bitsandbytes_it_says_what_to_install(tmp_path):
    blocked = tmp_path / "bitsandbytes.py"
    blocked.write_text("raise ImportError('no such library')")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "ewq", "quantize", fixture_path("tiny-llama")]
    done = subprocess.run(
        [*command, "--factor", "0.65", "-o", tmp_path / "q"],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    [line] = done.stderr.splitlines()
    assert "no bitsandbytes (no such library): pip install bitsandbytes" in line


def companions(tmp_path):
    """The tiny Llama with what people put beside a model."""
    source = tmp_path / "model"
    shutil.copytree(fixture_path("tiny-llama"), source)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (source / "original").mkdir()
    (source / "original" / "consolidated.00.pth").write_bytes(b"weights")
    (source / "original" / "params.json").write_text("{}")
    return source


def test_sub_folders_are_kept_and_other_weights_are_named(tmp_path):
    source = companions(tmp_path)

    done = run(source, "--factor", "0.65", "-o", tmp_path / "q")

    assert done.exit_code == 0, done.output
    kept = {str(p.relative_to(tmp_path / "q")) for p in (tmp_path / "q").rglob("*.*")}
    assert {"additional_chat_templates/tool_use.jinja", "original/params.json"} <= kept
    assert "original/consolidated.00.pth" not in kept
    assert "note: not copied, other weights: original/consolidated.00.pth" in done.stdout
    assert "model.safetensors" not in done.stdout


GENERATION = {
    "contradictory": ("generation_config.json", {"do_sample": False, "temperature": 0.3}),
    "in config.json": ("config.json", {"temperature": 0.3, "repetition_penalty": 1.2}),
}


@pytest.mark.parametrize(("file", "entries"), GENERATION.values(), ids=GENERATION)
def test_generation_parameters_that_transformers_would_not_save_are_kept(tmp_path, file, entries):
    source = tmp_path / "model"
    shutil.copytree(fixture_path("tiny-llama"), source)
    before = json.loads((source / file).read_text())
    (source / file).write_text(json.dumps({**before, **entries}))
    if file == "config.json":
        (source / "generation_config.json").unlink()

    done = run(source, "--factor", "0.65", "-o", tmp_path / "q")

    assert done.exit_code == 0, done.exception
    saved = json.loads((tmp_path / "q" / "generation_config.json").read_text())
    assert {name: saved.get(name) for name in entries} == entries
    assert logits(load(tmp_path / "q")).isfinite().all()


def test_generation_parameters_that_transformers_would_not_load_are_one_line(tmp_path):
    source = tmp_path / "model"
    shutil.copytree(fixture_path("tiny-llama"), source)
    (source / "generation_config.json").write_text('{"num_beams": 1, "num_return_sequences": 4}')

    done = run(source, "--factor", "0.65", "-o", tmp_path / "q")

    assert isinstance(done.exception, CheckpointError)
    assert "num_return_sequences" in str(done.exception)
    assert "\n" not in str(done.exception)


@pytest.mark.parametrize("name", ["a" * 300, "file/q"])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_read(tmp_path, name):
    (tmp_path / "file").touch()

    done = run("no/such-model-anywhere", "--factor", "0.65", "-o", tmp_path / name)

    assert isinstance(done.exception, InputError)
    assert "cannot write" in str(done.exception)


def test_a_device_that_is_not_there_is_one_line(tmp_path):
    source = fixture_path("tiny-llama")

    done = run(source, "--factor", "0.65", "-o", tmp_path / "q", "--device", "tpu")

    assert isinstance(done.exception, BackendUnavailable), done.output
    assert "cannot compute on 'tpu'" in str(done.exception)
    assert list(tmp_path.iterdir()) == []
