"""``ewq plan`` and ``ewq diff`` as a user meets them: stdout, stderr, exit code, files."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ewq.errors import InputError
from ewq.planning.plan import read_plan
from ewq.variants import parse_size
from tests.architectures import build


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llama")
    build("llama", torch.bfloat16).save_pretrained(folder)
    return str(folder)


def test_a_plan_is_shown_as_a_strip_with_its_size(ewq, model: str):
    said = ewq("plan", model)

    assert (said.code, said.err) == (0, "")
    assert "factor 0.65, scorer histogram, by block" in said.out
    assert "█" in said.out
    assert "bits per weight" in said.out


def test_json_is_one_plan_and_nothing_else(ewq, model: str, tmp_path: Path):
    said = ewq("plan", model, "--json", "-o", str(tmp_path / "plan.json"))

    assert json.loads(said.out) == json.loads((tmp_path / "plan.json").read_text())
    assert said.err == ""


def test_several_factors_share_one_analysis_and_one_document(ewq, model: str, tmp_path: Path):
    said = ewq(
        "plan", model, "--factor", "0.5", "--factor", "1", "--json", "-o", f"{tmp_path}/plans/"
    )

    documents = json.loads(said.out)
    assert [document["rule"]["factor"] for document in documents] == [0.5, 1.0]
    written = sorted(path.name for path in (tmp_path / "plans").iterdir())
    assert written == ["plan-0.5.json", "plan-1.json"]


def test_several_seeds_are_several_draws_of_one_size(ewq, model: str, tmp_path: Path):
    drawing = ("--scorer", "random", "--target-bpw", "12", "--seed", "1", "--seed", "2")
    said = ewq("plan", model, *drawing, "--json", "-o", f"{tmp_path}/draws/")

    documents = json.loads(said.out)
    assert [document["rule"]["seed"] for document in documents] == [1, 2]
    assert len({document["size_bytes"] for document in documents}) == 1
    written = sorted(path.name for path in (tmp_path / "draws").iterdir())
    assert written == ["plan-random-1.json", "plan-random-2.json"]


BUDGETS = [
    ("--target-bpw", "12", "bits_per_weight", 12),
    ("--target-size", "41KB", "size_bytes", 41_000),
]


@pytest.mark.parametrize(("option", "budget", "key", "most"), BUDGETS)
def test_a_budget_is_not_exceeded(ewq, model: str, option: str, budget: str, key: str, most: int):
    raw = json.loads(ewq("plan", model, "--target-bpw", "16", "--json").out)
    plan = json.loads(ewq("plan", model, option, budget, "--json").out)

    assert plan[key] <= most < raw[key]


REFUSED = {
    "target too small": (("--target-bpw", "1"), "bits per weight) is out of reach: this model"),
    "two rules": (
        ("--factor", "1", "--target-bpw", "8"),
        "give only one of --factor, --target-bpw",
    ),
    "two targets": (("--target-size", "1GB", "--target-bpw", "8"), "give only one of --factor"),
    "no size": (("--target-size", "large"), "invalid size 'large': expected a size such as 5GB"),
    "scorer": (("--scorer", "luck"), "unknown scorer 'luck'; known: histogram"),
    "granularity": (("--granularity", "row"), "unknown granularity 'row'; known: block, tensor"),
    "format": (("--for", "awq"), "unknown target format 'awq'; known: nf4"),
    "factor": (("--factor", "-1"), "invalid factor -1.0: expected a number"),
    "two plans, one file": (
        ("--factor", "1", "--factor", "2", "-o", "x.json"),
        "2 plans need a folder",
    ),
    "bits not a number": (("--target-bpw", "nan"), "invalid target of nan bits"),
    "a seed for no draw": (("--seed", "1"), "--seed is for --scorer random"),
    "the same plan twice": (
        ("--factor", "1", "--factor", "1.0", "-o", "x/"),
        "the same plan is asked for twice",
    ),
    "device": (("--device", "abacus"), "cannot compute on 'abacus'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_use_is_one_line_and_exit_2(ewq, model: str, case: str):
    arguments, message = REFUSED[case]

    said = ewq("plan", model, *arguments, "--json")

    assert (said.code, said.out) == (2, "")
    assert message in said.err
    if said.err.startswith("ewq:"):
        assert said.err.count("\n") == 1


def test_a_missing_model_is_one_line_and_exit_2(ewq, tmp_path: Path):
    said = ewq("plan", str(tmp_path / "nowhere"))

    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "no such folder or file" in said.err


def test_an_output_folder_that_cannot_be_written_is_one_line_and_exit_3(ewq, model: str):
    if not Path("/sys").is_dir():
        pytest.skip("needs a folder where even root cannot write")

    said = ewq("plan", model, "-o", "/sys/plan.json")

    assert (said.code, said.out) == (3, "")
    assert said.err == "ewq: cannot write /sys/plan.json: Permission denied\n"


SIZES = {
    "5GB": 5 * 10**9,
    "4.5GiB": 4_831_838_208,
    "800mb": 800 * 10**6,
    "3 KiB": 3072,
    "123": 123,
    "7B": 7,
}


@pytest.mark.parametrize("text", SIZES)
def test_sizes_are_read_with_their_units(text: str):
    assert parse_size(text) == SIZES[text]


@pytest.mark.parametrize("text", ["", "GB", "five", "-", "1TBB", "nan", "inf", "-3GB"])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(InputError, match="invalid size"):
        parse_size(text)


def test_diff_draws_a_strip_per_plan_and_lists_moves(ewq, model: str, tmp_path: Path):
    for scorer in ("first", "last"):
        path = tmp_path / f"{scorer}.json"
        ewq("plan", model, "--target-bpw", "12", "--scorer", scorer, "-o", str(path))

    said = ewq("diff", str(tmp_path / "first.json"), str(tmp_path / "last.json"))

    lines = said.out.splitlines()
    strips = [line.split()[1] for line in lines[:2]]
    assert strips[0] == strips[1][::-1] != strips[1]
    assert "2 of 2 blocks change precision:" in said.out
    assert "model.layers.0: raw -> " in said.out


def test_strips_stay_whole_in_80_columns(ewq, tmp_path: Path):
    paths = [tmp_path / f"{name}-with-a-rather-long-name.json" for name in ("one", "another")]
    for path in paths:
        path.write_text(json.dumps({"plan": {str(index): "4-bit" for index in range(126)}}))

    lines = ewq("diff", *map(str, paths)).out.splitlines()

    strips = [line for line in lines if "▁▁" in line]
    assert len(strips) == 6
    assert max(map(len, strips)) <= 80
    assert sum(line.count("▁") for line in strips) == 2 * 126


def test_a_choice_that_does_not_exist_is_refused_before_anything_is_measured(
    ewq, model: str, monkeypatch: pytest.MonkeyPatch
):
    def measured(*_: object, **__: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("ewq.planning.analysis.analyze", measured)

    assert ewq("plan", model, "--scorer", "luck").code == 2
    assert ewq("plan", model, "--for", "awq").code == 2


def test_the_proof_of_concepts_plan_round_trips_through_diff(ewq, tmp_path: Path):
    poc = {"0": "raw", "1": "4-bit", "2": "8-bit", "3": "raw"}
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    paths[0].write_text(json.dumps({"plan": poc}))
    paths[1].write_text(json.dumps({"plan": {**poc, "3": "4-bit"}}))

    said = ewq("diff", *map(str, paths), "--json")

    ours = {"raw": "raw", "4bit": "4-bit", "8bit": "8-bit"}
    shown = json.loads(said.out)
    assert {key: ours[of] for key, of in shown["plans"][0]["plan"].items()} == poc
    assert [move["name"] for move in shown["moves"]] == ["block 3"]
    assert ewq("diff", *map(str, paths)).out.splitlines()[0].split()[1] == "█▁▄█"


def test_diff_of_the_same_file_twice_is_refused(ewq, tmp_path: Path):
    said = ewq("diff", str(tmp_path / "a.json"), str(tmp_path / "a.json"))

    assert (said.code, said.out) == (2, "")
    assert "given twice" in said.err


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ewq", *arguments]


def test_running_out_of_space_leaves_the_old_plan(model: str, tmp_path: Path):
    """The kernel refuses to let a file grow, as it does on a full disk."""
    path = tmp_path / "plan.json"
    path.write_text("old")
    subprocess.run(command("plan", model), check=True, capture_output=True)

    done = subprocess.run(
        command("plan", model, "-o", str(path)),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)),
    )

    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"ewq: cannot write {path}")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


INTERRUPTED = """
import os, signal, sys
from ewq.cli import main

class Interrupting:
    calls = 0
    def start(self, label, total, unit): pass
    def finish(self): pass
    def advance(self, amount):
        self.calls += 1
        if self.calls == 3:
            os.kill(os.getpid(), signal.SIGINT)

sys.modules["ewq.cli.terminal"].terminal_progress = Interrupting
sys.argv = ["ewq", "plan", *sys.argv[1:]]
main()
"""


def test_ctrl_c_ends_with_one_line_and_no_damage(tmp_path: Path):
    """A real SIGINT, sent when three weights are done and the rest is under way."""
    config = {"model_type": "llama", "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    wide = torch.zeros(1024, 1024)
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": wide.clone() for i in range(40)}
    tensors["model.embed_tokens.weight"] = torch.zeros(8, 1024)
    save_file(tensors, tmp_path / "model.safetensors")
    environment = {**os.environ, "EWQ_CACHE": str(tmp_path / "cache")}

    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path), "-o", str(tmp_path / "plan.json")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )

    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.count("\n") <= 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "plan.json").exists()
    again = subprocess.run(command("plan", str(tmp_path)), capture_output=True, env=environment)
    assert again.returncode == 0


def test_a_pipe_gets_no_progress_bar(model: str):
    done = subprocess.run(command("plan", model, "--no-cache"), capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_plan_found_in_the_cache_needs_neither_torch_nor_compiled_loops(model: str):
    code = (
        "import sys; from ewq.cli import main; sys.argv = ['ewq', 'plan', sys.argv[1]]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('loaded', sorted({'torch', 'transformers', 'numba'} & set(sys.modules)))"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True)

    assert done.stdout.splitlines()[-1] == "loaded []"


def test_a_plan_written_by_the_command_is_read_by_the_library(ewq, model: str, tmp_path: Path):
    ewq("plan", model, "-o", str(tmp_path))

    assert read_plan(tmp_path / "plan.json").model == model


@pytest.mark.parametrize("name", ["n" * 256, "file/plan.json"])
def test_an_output_that_cannot_be_is_refused_before_any_work(
    ewq, model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("ewq.planning.analysis.open_checkpoint", None)

    said = ewq("plan", model, "-o", str(tmp_path / name))

    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"ewq: cannot write {tmp_path / name}: ")


def test_a_card_is_filled_up_to_what_cache_and_activations_leave(ewq, model: str, tmp_path: Path):
    from ewq.planning.sizes import find_card
    from ewq.progress import NO_PROGRESS

    card = find_card(model, 502_000_000, 64, "gguf", NO_PROGRESS)
    assert card is not None
    most = read_plan_of(ewq, tmp_path, model, "--target-vram", "800MB", "--context", "64")
    vram = 502_000_000 - card.room + most.size_bytes - 1
    said = ewq(
        "plan",
        model,
        "--for",
        "gguf",
        "--target-vram",
        f"{vram}",
        "--context",
        "64",
        "-o",
        str(tmp_path / "less.json"),
    )
    less = read_plan(tmp_path / "less.json")
    assert less.size_bytes < most.size_bytes
    assert "64 tokens take" in said.out
    assert "does not fit" in said.out
    assert "4bit" in said.out.split("uniform: ")[1]


def read_plan_of(ewq, folder: Path, model: str, *arguments: str):
    ewq("plan", model, "--for", "gguf", *arguments, "-o", str(folder / "plan.json"))
    return read_plan(folder / "plan.json")
