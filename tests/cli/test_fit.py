"""``ewq fit``, ``ewq imatrix`` and ``ewq plan --scorer fisher`` on the tiny model."""

import json
import re
from functools import partial

import pytest
import typer
from typer.testing import CliRunner

from ewq.checkpoint.embedded import fixture_path
from ewq.checkpoint.gguf_header import read_header
from ewq.checkpoint.opening import open_checkpoint
from ewq.cli.fit import fit, imatrix
from ewq.cli.plan import plan
from ewq.errors import InputError
from ewq.fit.prepare import converted
from ewq.gguf.imatrix import read_imatrix
from ewq.planning.sizes import find_card
from ewq.progress import NO_PROGRESS
from ewq.sensitivity import calibration
from tests.gguf.models import require_converter, shared_gguf
from tests.session import alone
from tools.odd_folders import make_odd

SHORT = ("--sequences", 4, "--sequence-tokens", 64)
LIKE = ("--like", "Q4_K_M", "--sequences", 16, "--sequence-tokens", 256, "--text-tokens", 96)
TINY = fixture_path("tiny-llama")


@pytest.fixture(scope="module")
def call():
    require_converter()
    with alone("gguf"):
        converted(open_checkpoint(TINY))
    app = typer.Typer()
    for command in (fit, imatrix, plan):
        app.command(command.__name__)(command)

    def call(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def short(monkeypatch):
    """Plans by few short sequences, which ``ewq plan`` has no options for."""
    less = partial(calibration.Calibrating, sequences=4, tokens=64)
    monkeypatch.setattr(calibration, "Calibrating", less)


@pytest.fixture(scope="module")
def like_a_recipe(call, tmp_path_factory):
    """A file no larger than a recipe's, and what was told of it."""
    out = tmp_path_factory.mktemp("like") / "fit.gguf"
    result = call("fit", TINY, *LIKE, "--versus", "Q4_K_M", "-o", out, "--json")
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout)


def refusal(result):
    assert isinstance(result.exception, InputError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_the_file_is_no_larger_than_the_recipe_and_closer_to_the_model(like_a_recipe):
    out, told = like_a_recipe
    own, rival = told["measured"]
    assert own["bytes"] == out.stat().st_size <= rival["bytes"]
    assert own["metrics"]["kld_mean"]["value"] < 0.9 * rival["metrics"]["kld_mean"]["value"]
    stored = {tensor.name: tensor.dtype for tensor in read_header(out).tensors}
    assert stored == told["plan"]["weights"]
    assert re.search(r"fit\.gguf \(0\.\d+ MB\) diverges .* by 0\.\d+ ± 0\.\d+", told["sentence"])
    expected = told["plan"]["expected_kld"]["value"]
    assert own["metrics"]["kld_mean"]["value"] == pytest.approx(expected, rel=0.5)


def test_errors_that_cancel_leave_a_file_of_the_same_size_closer_to_the_model(
    call, tmp_path, like_a_recipe
):
    nearest = like_a_recipe[1]["measured"][0]
    out = tmp_path / "gptq.gguf"
    result = call("fit", TINY, *LIKE, "-o", out, "--rounding", "gptq", "--json")
    assert result.exit_code == 0, result.output
    [gptq] = json.loads(result.stdout)["measured"]
    assert gptq["bytes"] == nearest["bytes"]
    before, after = (one["metrics"]["kld_mean"]["value"] for one in (nearest, gptq))
    assert after < before


def test_errors_cancel_in_gguf_files_only(call, tmp_path):
    options = ("--bpw", 6, "--engine", "bitsandbytes", "--rounding", "gptq", "-o", tmp_path / "o")
    assert "leave it out for bitsandbytes" in refusal(call("fit", TINY, *options))


def test_a_size_is_that_of_the_whole_file(call, tmp_path):
    out = tmp_path / "fit.gguf"
    result = call("fit", TINY, "--size", "420KB", "-o", out, *SHORT, "--text-tokens", 64)
    assert result.exit_code == 0, result.output
    assert 400_000 < out.stat().st_size <= 420_000
    assert result.stdout.splitlines()[-1].startswith("fit.gguf (0.4")


def test_bitsandbytes_gets_a_folder_that_transformers_opens(call, tmp_path):
    out = tmp_path / "folder"
    result = call(
        *("fit", TINY, "--bpw", "13", "--engine", "bitsandbytes", "-o", out, *SHORT),
        *("--text-tokens", 64, "--json"),
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["plan"]["target"] == "bitsandbytes"
    assert (out / "model.safetensors").is_file()
    [own] = told["measured"]
    assert 0 < own["metrics"]["kld_mean"]["value"] < 0.1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "give exactly one of"),
        (("--size", "1MB", "--bpw", "5"), "give exactly one of"),
        (("--size", "90KB"), "out of reach: this model takes"),
        (("--kld", "-1"), "invalid target of -1"),
        (("--like", "Q9_9"), "no type 'Q9_9'"),
        (("--like", "Q4_K_M", "--engine", "bitsandbytes"), "of llama.cpp's recipes"),
        (("--bpw", "5", "--engine", "onnx"), "unknown target 'onnx'"),
        (("--bpw", "5", "--calibration", "nowhere"), "no texts at nowhere"),
        (("--bpw", "5", "--calibration", str(fixture_path("texts"))), "calibrate on other text"),
        (("--bpw", "5", "--device", "tpu", "--no-cache"), "cannot compute on 'tpu'"),
    ],
)
def test_bad_use_is_one_line_and_writes_nothing(call, tmp_path, arguments, reason):
    out = tmp_path / "out.gguf"
    assert reason in refusal(call("fit", TINY, "-o", out, *SHORT, *arguments))
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_told_before_anything_starts(call, tmp_path, monkeypatch):
    import psutil

    class Memory:
        available = 1000
        total = 2000

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    result = call("fit", TINY, "--bpw", "6", "-o", tmp_path / "x.gguf", "--no-cache")
    assert "takes about 0.0 GB of memory on cpu" in refusal(result)


def test_the_importance_matrix_covers_every_matrix_but_the_embedding(call, tmp_path):
    out = tmp_path / "imatrix.gguf"
    result = call("imatrix", TINY, "-o", out, *SHORT)
    assert result.exit_code == 0, result.output
    assert "4 sequences, 256 tokens" in result.stdout
    found = read_imatrix(out)
    assert len(found) == 8 * 7 + 1
    assert len(found["blk.7.ffn_down.weight"]) == 128


def test_a_plan_of_types_is_shown_with_what_is_expected(call, tmp_path, short):
    path = tmp_path / "plan.json"
    result = call("plan", TINY, "--scorer", "fisher", "--target-kld", 0.02, "-o", path)
    assert result.exit_code == 0, result.output
    expected = re.search(r"expected divergence (0\.\d+) ± 0\.\d+ nats", result.stdout)
    assert 0.015 < float(expected[1]) <= 0.02
    assert json.loads(path.read_text())["schema"] == 2


def test_higgs_needs_no_text(call, short):
    result = call("plan", TINY, "--scorer", "higgs", "--target-bpw", 7, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["scorer"] == "higgs"
    assert found["bits_per_weight"] <= 7
    fitted = json.loads(
        call("plan", TINY, "--scorer", "fisher", "--target-bpw", 7, "--json").stdout
    )
    assert found["weights"] != fitted["weights"]


def test_other_scorers_answer_the_same_targets(call, short):
    like = call("plan", TINY, "--like", "F16", "--for", "gguf", "--json")
    assert like.exit_code == 0, like.output
    assert set(json.loads(like.stdout)["weights"].values()) == {"raw"}
    smaller = json.loads(call("plan", TINY, "--target-kld", 0.05, "--json").stdout)
    larger = json.loads(call("plan", TINY, "--target-kld", 0.002, "--json").stdout)
    assert smaller["size_bytes"] < larger["size_bytes"]
    assert smaller["scorer"] == "histogram"
    assert smaller["rule"] == {"kind": "target_kld", "target_kld": 0.05}


def test_a_recipes_size_for_another_engine_is_refused(call):
    reason = refusal(call("plan", TINY, "--like", "Q4_K_M"))
    assert "which have no size for nf4; take gguf" in reason
    like = ("--scorer", "fisher", "--for", "bitsandbytes", "--like", "Q4_K_M")
    assert "which have no size for bitsandbytes" in refusal(call("plan", TINY, *like))


@pytest.mark.parametrize("command", ["imatrix", "fit", "plan"])
@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ("more tokens than rows", "is beyond the model's 600 tokens"),
        ("quantized by GPTQ", "is quantized already (gptq)"),
        ("no tokenizer", "has no usable tokenizer: the folder has no tokenizer files"),
        ("a file", "needs the Hugging Face folder"),
    ],
)
def test_a_model_that_text_cannot_be_run_through_is_one_line(call, tmp_path, command, odd, reason):
    model = shared_gguf(TINY, "F16") if odd == "a file" else make_odd(odd, tmp_path)
    out, sequences = ("-o", tmp_path / "out.gguf"), SHORT
    more = {"imatrix": (), "fit": ("--bpw", 12), "plan": ("--scorer", "fisher", "--target-bpw", 12)}
    if command == "plan":
        sequences = ()
    assert reason in refusal(call(command, model, *out, *more[command], *sequences))
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    "arguments", [("--sequences", 0), ("--sequence-tokens", 1), ("--sequence-tokens", -1)]
)
def test_sequences_of_nothing_are_refused(call, tmp_path, arguments):
    result = call("imatrix", TINY, "-o", tmp_path / "out.gguf", *arguments)
    assert result.exit_code == 2
    assert not isinstance(result.exception, ZeroDivisionError | ValueError)


def test_on_a_card_the_file_leaves_room_for_the_context_and_the_table_says_what_fits(
    call, tmp_path
):
    whole = find_card(str(TINY), 10**9, 64, "gguf", NO_PROGRESS)
    vram = 10**9 - whole.room + 400_000
    result = call(
        *("fit", TINY, "--vram", vram, "--context", 64, "--versus", "Q8_0", *SHORT),
        *("--text-tokens", 64, "-o", tmp_path / "fit.gguf"),
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "fit.gguf").stat().st_size <= 400_000
    heading, own, rival = result.stdout.splitlines()[1:4]
    assert heading.endswith(" fits")
    assert own.endswith(" yes")
    assert rival.endswith(" no")
    assert "64 tokens take" in result.stdout


def test_a_card_and_a_size_are_two_aims(call, tmp_path):
    size = ("--size", "1MB", "-o", tmp_path / "fit.gguf")
    assert "--size or --vram" in refusal(call("fit", TINY, "--vram", "1GB", *size))
    assert "read with a card's memory" in refusal(call("fit", TINY, "--context", 64, *size))


@pytest.mark.parametrize("command", [("imatrix",), ("fit", "--bpw", "12")])
def test_what_cannot_be_converted_is_told_before_the_long_pass(
    call, tmp_path, monkeypatch, command
):
    def never(*_, **__):
        raise AssertionError("measured")

    for module in ("ewq.sensitivity.measure", "ewq.fit.prepare"):
        monkeypatch.setattr(f"{module}.measure_sensitivity", never)
    folder = make_odd("architectures are missing", tmp_path)
    name, *more = command
    reason = refusal(call(name, folder, "-o", tmp_path / "out.gguf", *more, *SHORT))
    assert "Failed to detect model architecture" in reason
