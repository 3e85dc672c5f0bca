"""Code that comes with a model never runs: not in this process, not in the converter's."""

from __future__ import annotations

import ast
import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ewq
from ewq.checkpoint.embedded import fixture_path
from ewq.checkpoint.loading import load_tokenizer
from ewq.cli import app
from ewq.errors import CheckpointError, EwqError
from ewq.gguf import convert_child
from tests.gguf.models import require_converter

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({marker!r}).touch()
class OwnTokenizer(PreTrainedTokenizerFast): pass
class OwnConfig(LlamaConfig): model_type = "own"
class OwnModel(LlamaForCausalLM): config_class = OwnConfig
"""
ASK_FOR_CODE = (
    # What the converter loads with trust_remote_code=True, by its modules.
    *("DeepseekV2ForCausalLM", "MiniMaxM2ForCausalLM", "DreamModel", "Glm4ForCausalLM"),
    *("ChatGLMModel", "NemotronHForCausalLM", "HunYuanMoEV1ForCausalLM", "KimiLinearForCausalLM"),
    *("LLaDAModelLM", "QWenLMHeadModel", "LlamaForCausalLM"),
)
RUN_ALL = """
import importlib.util, sys
from pathlib import Path
_, child_path, script, *folders = sys.argv
spec = importlib.util.spec_from_file_location("child", child_path)
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
for folder in folders:
    try:
        child.main(Path(script), [folder, "--outfile", folder + "/out.gguf"])
        print("RESULT converted", folder)
    except BaseException as error:
        print("RESULT", type(error).__name__, error, folder)
"""


def with_code(folder, marker, model_type, architecture="OwnModel"):
    """The tiny Llama with a module of its own for config, model and tokenizer."""
    shutil.copytree(fixture_path("tiny-llama"), folder)
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    change(
        folder / "config.json",
        model_type=model_type,
        architectures=[architecture],
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]},
    )
    return folder


def change(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "the code ran"


@pytest.fixture(autouse=True)
def says_yes(monkeypatch):
    """Whoever is asked whether to run the code says yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")


@pytest.fixture(params=["llama", "own"])
def folder(request, tmp_path, marker):
    """Of a type that transformers knows itself, and of one that only the code knows."""
    return with_code(tmp_path / "model", marker, request.param, "LlamaForCausalLM")


def load_model(folder):
    from ewq.backends.transformers import load_transformers

    load_transformers(folder, tokenizer=object()).close()


def load_subject(folder):
    from ewq.harness.subject import Subject

    _ = Subject("own", str(folder)).tokenizer


def quantize(folder):
    from ewq.planning.analysis import analyze
    from ewq.quantizer import EwqConfig
    from ewq.quantizer.folder import quantize_to_folder

    plan = analyze(folder, cache=False).plan(0.65)
    quantize_to_folder(folder, EwqConfig(plan), folder.parent / "quantized")


@pytest.mark.parametrize("use", [load_model, load_subject, quantize])
def test_no_way_of_loading_runs_it(folder, marker, use):
    with contextlib.suppress(EwqError):
        use(folder)
    assert not marker.exists()


SHORT = ("--sequences", "1", "--sequence-tokens", "32")
COMMANDS = {
    "plan": (),
    "quantize": ("--factor", "0.65"),
    "export": ("--type", "F16"),
    "imatrix": SHORT,
    "fit": ("--bpw", "8", "--text-tokens", "32", *SHORT),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_it(folder, marker, command, tmp_path):
    require_converter()
    arguments = [command, str(folder), "-o", str(tmp_path / "out"), *COMMANDS[command]]
    done = CliRunner().invoke(app, arguments, input="y\ny\ny\n")
    assert done.exception is None or isinstance(done.exception, SystemExit | EwqError)
    assert not marker.exists()


def test_the_converter_runs_it_for_no_family(tmp_path, marker):
    """Every family for which the converter itself asks transformers to run such code."""
    script = require_converter()
    folders = [
        with_code(tmp_path / name, marker, "own" if "Llama" in name else "llama", name)
        for name in ASK_FOR_CODE
    ]
    command = [sys.executable, "-P", "-c", RUN_ALL, convert_child.__file__, str(script)]
    done = subprocess.run(
        [*command, *map(str, folders)], input="y\n" * 99, capture_output=True, text=True
    )
    assert not marker.exists()
    results = [line for line in done.stderr.splitlines() if line.startswith("RESULT")]
    assert len(results) == len(folders), done.stderr
    assert any(convert_child.CODE_REFUSED in line for line in results), done.stderr


def calls_of(*names, but=None):
    """Where ewq calls something of these names, with the arguments that are named."""
    package = Path(ewq.__file__).parent
    return [
        (
            f"{path.relative_to(package)}:{call.lineno}",
            {w.arg: ast.unparse(w.value) for w in call.keywords},
        )
        for path in package.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).endswith(names)
        and ast.unparse(call.func) != but
    ]


def test_nothing_is_loaded_without_saying_that_code_of_models_does_not_run():
    """Left out, transformers asks on standard input whether to run it; adapters hold no code."""
    calls = calls_of(".from_pretrained", ".from_config", but="PeftModel.from_pretrained")
    assert len(calls) >= 4
    for place, said in calls:
        assert said.get("trust_remote_code") == "False", place


def test_no_child_has_the_standard_input_of_its_parent():
    calls = calls_of("subprocess.run", "subprocess.Popen")
    assert len(calls) >= 4
    for place, said in calls:
        assert said.get("stdin") in ("subprocess.DEVNULL", "pipe"), place


DAMAGED = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS pointer"),
    "cut short": (b'{"version": "1.0", "model": {"type": "BP', "cut short"),
    "unknown kind": (b'{"version": "1.0", "model": {"type": "Quantum"}}', "cannot read"),
}


@pytest.mark.parametrize(("data", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_a_tokenizer_that_cannot_be_read_is_one_line_with_the_files_name(tmp_path, data, reason):
    shutil.copytree(fixture_path("tiny-llama"), tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_tokenizer(tmp_path / "model", "my model")
    said = str(caught.value)
    assert said.startswith("my model has no usable tokenizer: ")
    assert "\n" not in said
    assert said.count("tokenizer.json") == 1
