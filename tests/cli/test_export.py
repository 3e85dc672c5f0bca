import json
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from ewq.checkpoint.embedded import fixture_path
from ewq.cli.export import export
from ewq.errors import InputError
from tests.gguf.models import require_converter, require_gguf
from tests.gguf.writer import F16, gguf_bytes, number_pair, string_pair

PAIRS = (string_pair("general.architecture", "llama"), number_pair("llama.block_count", 2))


@pytest.fixture
def call():
    require_gguf()
    app = typer.Typer()
    app.command()(export)

    def call(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def source(tmp_path):
    data = gguf_bytes(PAIRS, (("blk.1.attn_q.weight", (64, 2), F16, 0),), b"\0" * 256)
    path = tmp_path / "in.gguf"
    path.write_bytes(data)
    return path


def test_the_command_is_printed_and_nothing_written(call, source, tmp_path):
    out = tmp_path / "out.gguf"
    result = call(source, "--type", "q4_k_m", "-o", out, "--print-command")
    assert result.exit_code == 0
    assert result.stdout.split() == ["llama-quantize", "\\", str(source), str(out), "Q4_K_M"]
    assert not out.exists()


def test_json_is_one_document(call, source, tmp_path):
    out = tmp_path / "out.gguf"
    result = call(source, "--type", "F16", "-o", out, "--print-command", "--json")
    assert "llama-quantize" in json.loads(result.stdout)["command"]


def test_rounding_has_no_command_of_llama_cpp(call, tmp_path):
    arguments = ("--type", "Q4_0", "-o", tmp_path / "out.gguf", "--print-command")
    result = call(fixture_path("tiny-llama"), *arguments, "--rounding", "gptq")
    assert isinstance(result.exception, InputError)
    assert "cannot do --rounding gptq" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "exactly one of --type"),
        (("--type", "Q8_0", "--types", "raw=F16"), "--types needs --plan"),
        (("--type", "Q77"), "no type 'Q77'"),
        (("--type", "Q8_0", "--types", "raw"), "expected raw=F16"),
        (("--type", "Q8_0", "--rounding", "gptq"), "needs the Hugging Face folder"),
        (("--type", "Q8_0", "--calibration", "a.txt"), "with --rounding gptq only"),
        (("--type", "Q8_0", "--factor", "0.65"), "give only one of --type, --plan, --factor"),
        (("--target-bpw", "6", "--target-size", "1MB"), "give only one of"),
        (("--target-size", "much"), "expected a size such as 5GB"),
        (("--factor", "1", "--types", "raw"), "expected raw=F16"),
    ],
    ids=[
        *("neither type nor plan", "types without plan", "unknown type", "malformed types"),
        *("rounding of a file", "calibration for nothing", "type and rule", "two rules"),
        *("no size", "malformed types with a rule"),
    ],
)
def test_bad_use_is_an_input_error(call, source, tmp_path, arguments, reason):
    result = call(source, *arguments, "-o", tmp_path / "out.gguf")
    assert isinstance(result.exception, InputError)
    assert reason in str(result.exception)
    assert not (tmp_path / "out.gguf").exists()


def test_a_size_makes_the_plan_that_a_file_of_it_takes(call, tmp_path):
    require_converter()
    out, tiny = tmp_path / "out.gguf", fixture_path("tiny-llama")
    result = call(tiny, "--target-size", "0.6MB", "-o", out, "--json")
    assert result.exit_code == 0, result.output
    stored = sum(json.loads(result.stdout)["bytes_by_type"].values())
    assert 550_000 < stored <= 600_000
    whole = call(tiny, "--factor", "0.65", "-o", tmp_path / "factor.gguf", "--json")
    assert (
        json.loads(whole.stdout)["bits_per_weight"] > json.loads(result.stdout)["bits_per_weight"]
    )


def test_an_output_that_cannot_be_written_is_refused_before_anything_else(call, tmp_path):
    result = call("no/such-model", "--type", "Q77", "-o", tmp_path / ("a" * 300))
    assert isinstance(result.exception, InputError)
    assert "File name too long" in str(result.exception)


def test_an_ending_in_capitals_is_a_gguf_file(call, source, tmp_path):
    capitals = source.rename(tmp_path / "IN.GGUF")
    result = call(capitals, "--type", "q4_k_m", "-o", tmp_path / "out.gguf", "--print-command")
    assert result.stdout.split()[-3:] == [str(capitals), str(tmp_path / "out.gguf"), "Q4_K_M"]


def test_a_terminal_that_lacks_a_letter_gets_it_escaped(source, tmp_path):
    command = [sys.executable, "-m", "ewq", "export", str(source), "--type", "Q8_0"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "mô.gguf"), "--print-command"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert rb"m\xf4.gguf" in done.stdout
