"""What is told before a run on a GPU, and what is refused; the GPU is a stand-in."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ewq.errors import InputError
from ewq.harness import budget
from ewq.harness.budget import budget_line
from ewq.harness.session import RunData
from ewq.harness.subject import Placement, Subject
from ewq.tasks.tiers import tier_sizes
from ewq.variants import find_variant
from tests.harness.fakes import REPOSITORY, write_project
from tests.harness.warm_pytest import WarmPytest

TINY = Path(__file__).parent.parent.parent / "fixtures" / "tiny-llama"
GPU = Placement("cuda:0", "float32")
ALL = ["fp16", "ewq-0.65", "bnb-nf4", "gguf-q8_0"]


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """``cuda:0`` is the CPU, with as much memory free as a test says."""
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(budget, "SIDE", 32)
    monkeypatch.setattr(budget, "gpus_of", lambda name: ["cpu"] if name != "cpu" else [])

    def free(nbytes):
        monkeypatch.setattr(budget, "free_memory", lambda _: (nbytes, 2 * nbytes))

    free(10**9)
    return free


def session(*names, tasks=("perplexity", "memory"), placement=GPU, done=()):
    options = SimpleNamespace(variant=find_variant, tier="smoke", mmlu="", texts="")
    return SimpleNamespace(
        subject=Subject("tiny", str(TINY)),
        placement=placement,
        options=options,
        data=RunData(options, tier_sizes("smoke", "cpu")),
        selected=tuple((name, task) for name in names for task in tasks),
        journal=SimpleNamespace(completed=dict.fromkeys(done)),
    )


def test_one_line_says_what_a_run_takes(gpu):
    line = budget_line(session(*ALL))
    size = 4 * session().subject.footprint.numel / 1e9
    assert "\n" not in line
    assert f"loads 4 variants; the largest, fp16 takes {size:.1f}GB of 1.0GB free on cuda:0" in line
    assert re.search(r"up to \d\.\dGB of disk, at least \d+\.\d min$", line)


def test_a_cpu_is_told_nothing(gpu):
    assert budget_line(session(*ALL, placement=Placement("cpu", "float32"))) == ""


def test_what_an_interrupted_run_has_measured_counts_no_more(gpu):
    done = [("fp16", "perplexity"), ("fp16", "memory")]
    assert "loads 1 variants; the largest, bnb-nf4" in budget_line(
        session("fp16", "bnb-nf4", done=done)
    )
    assert budget_line(session("fp16", done=done)) == ""


def test_weights_that_exceed_the_memory_are_refused_with_those_that_do_not(gpu):
    whole = 4 * session().subject.footprint.numel
    gpu(whole - 1)
    with pytest.raises(InputError) as caught:
        budget_line(session(*ALL))
    said = str(caught.value)
    assert "leave out fp16; ewq-0.65, bnb-nf4, gguf-q8_0 would fit" in said
    assert "ewq plan MODEL --target-vram" in said
    assert "\n" not in said
    gpu(whole)
    assert budget_line(session(*ALL))


def test_where_nothing_fits_that_is_said(gpu):
    gpu(1000)
    with pytest.raises(InputError, match="leave out fp16, bnb-nf4; nothing else would fit"):
        budget_line(session("fp16", "bnb-nf4"))


def test_files_that_exceed_the_disk_are_refused(gpu, monkeypatch):
    numel = session().subject.footprint.numel
    made = numel + 2 * numel  # 8 bits, from a file of 16
    usage = SimpleNamespace(free=made - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"GB free; set EWQ_CACHE to a folder with space"):
        budget_line(session("gguf-q8_0"))
    usage.free = made
    assert budget_line(session("gguf-q8_0"))
    # What was made before needs no room.
    cached = Path(str(budget.cache_dir("gguf")), "tiny-q8_0.gguf")
    cached.parent.mkdir(parents=True)
    cached.write_bytes(bytes(1000))
    usage.free = made - 1000
    assert budget_line(session("gguf-q8_0"))


def test_files_are_held_against_the_disk_that_they_go_to(gpu, monkeypatch, tmp_path):
    """Where the folder of GGUF files is a link, that of its target."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "memory").mkdir()
    (tmp_path / "cache" / "gguf").symlink_to(tmp_path / "memory")
    free = {tmp_path / "cache" / "gguf": 10**9}
    monkeypatch.setattr(shutil, "disk_usage", lambda at: SimpleNamespace(free=free.get(at, 0)))
    assert budget_line(session("gguf-q8_0"))


def test_of_random_weights_only_speed_and_memory_count(gpu, monkeypatch):
    run = session("fp16", tasks=("divergence", "mmlu", "memory"))
    run.subject = replace(run.subject, is_dummy=True)
    monkeypatch.setattr(RunData, "texts", None)
    monkeypatch.setattr(RunData, "mmlu", None)
    assert "up to 0.0GB of disk" in budget_line(run)


def test_the_references_distributions_need_the_disk(gpu, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    assert budget_line(session("fp16"))
    with pytest.raises(InputError, match="needs at least"):
        budget_line(session("fp16", tasks=("divergence",)))


def test_a_run_that_cannot_fit_ends_before_anything_is_loaded(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    write_project(pytester.path)
    free = 4 * session().subject.footprint.numel - 1
    (pytester.path / "conftest.py").write_text(
        "import ewq.harness.budget as budget\n"
        "budget.gpus_of = lambda name: ['cpu']\n"
        f"budget.free_memory = lambda name: ({free}, 10**9)\n"
    )
    monkeypatch.setattr(pytester, "popen", WarmPytest)
    result = pytester.runpytest_subprocess(
        *("-p", "ewq.pytest_plugin", "benchmarks", "-k", "memory", "-p", "no:cacheprovider"),
        *("--ewq-tier", "smoke", "--ewq-device", "cpu", "--ewq-variants", "fp16,bnb-nf4"),
    )
    assert result.ret == 4
    result.stdout.fnmatch_lines(["*ewq: fp16 takes *leave out fp16; bnb-nf4 would fit*"])
    assert not list(pytester.path.glob(".benchmarks/**/[0-9]*.json"))
