"""``ewq ab``: two variants or two commits of a project of fakes, in child processes."""

import importlib
import json
import subprocess
from pathlib import Path

import pytest

from ewq.errors import EwqError, InputError
from tests.harness.fakes import REPOSITORY, write_project
from tests.make_runs import NOISY, metric, record

ab = importlib.import_module("ewq.cli.bench")  # the package has a function of this name
SPEED = "decode_tokens_per_s"


def speed(value, **changes):
    return record("throughput", metrics={SPEED: metric(value, unit="tokens/s")}, **changes)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    folder = tmp_path / "project"
    folder.mkdir()
    write_project(folder)
    (folder / "benchmarks" / "thresholds.toml").touch()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def told(monkeypatch):
    """What was measured, in order; speeds come from ``speed.json`` of the side's folder."""
    asked = []

    def measured(name, variant, folder, storage, options):
        asked.append((name, variant, storage.name, *options))
        table = json.loads((folder / "speed.json").read_text())
        return speed(table[variant] * (1 + len(asked) / 1000), variant=variant)

    monkeypatch.setattr(ab, "_measured", measured)
    return asked


def git(*arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)
    return done.stdout.decode()


def test_two_variants_in_turns(ewq, project, told):
    Path("speed.json").write_text('{"fp16": 100, "ewq-0.5": 50}')
    done = ewq("ab", "--pairs", "2", "fp16", "ewq-0.5", "--ewq-dtype", "float16")

    assert [name for name, *_ in told] == ["fp16", "ewq-0.5", "ewq-0.5", "fp16"]
    assert len({storage for *_, storage, _, _ in told}) == 4
    assert {tuple(options) for _, _, _, *options in told} == {("--ewq-dtype", "float16")}
    # The drift of a thousandth each time cancels.
    assert "A: fp16, B: ewq-0.5" in done.out
    assert f"{SPEED}: 100.2 and 50.12; B / A 0.500, 95 % 0.494 to 0.506, a difference" in done.out


def test_two_commits_by_their_own_code(ewq, project, told):
    git("init", "-q", "..")
    for value in (100, 80):
        Path("speed.json").write_text(json.dumps({"ewq-0.5": value}))
        git("add", "-A")
        git("commit", "-qm", "x")
    Path("speed.json").unlink()
    done = ewq("ab", "--variant", "ewq-0.5", "--pairs", "4", "HEAD~", "HEAD")

    assert [name for name, *_ in told] == ["HEAD~", "HEAD", "HEAD", "HEAD~"] * 2
    assert "B / A 0.800" in done.out
    assert len(git("worktree", "list").splitlines()) == 1


def test_plan_files_are_given_by_path_and_a_failure_while_measuring_is_its_own(
    ewq, project, monkeypatch
):
    for name in ("a.json", "b.json"):
        Path(name).write_text("{}")

    def fails(name, variant, folder, storage, options):
        raise InputError(f"damaged: {variant}")

    monkeypatch.setattr(ab, "_measured", fails)
    done = ewq("ab", "a.json", "gguf:b.json")
    assert (done.code, done.err) == (2, "ewq: damaged: a.json\n")


def test_neither_variant_nor_commit_is_bad_use(ewq, project, told):
    done = ewq("ab", "fp16", "nonsense")
    assert done.code == 2
    assert "fp16 and nonsense are not two commits; unknown variant 'nonsense'" in done.err


def test_commits_of_different_protocols_are_not_compared():
    sides = [[speed(1.0, settings={"rounds": rounds})] * 2 for rounds in (3, 5)]
    with pytest.raises(EwqError, match="cannot be compared: setting rounds was 3, is 5"):
        ab.lines(("a", "b"), tuple(sides))


def test_a_doubtful_clock_is_said_instead_of_a_difference():
    sides = [speed(1.0), speed(1.01)], [speed(2.0), speed(2.01, doubts=NOISY)]
    assert ab.lines(("a", "b"), sides)[1].endswith(", in doubt: times of decode vary by 20%")


def test_a_side_is_measured_in_a_process_of_its_own(project, tmp_path):
    options = ["-p", "no:cacheprovider"]
    found = ab._measured("fp16", "fp16", project, tmp_path / "storage", options)
    assert found.key == ("fp16", "throughput")
    assert found.metrics[SPEED].value == pytest.approx(100)
    assert not (project / ".benchmarks").exists()


def test_a_side_that_cannot_be_measured_ends_it_with_the_reason(project, tmp_path):
    with pytest.raises(EwqError, match=r"fp16 was not measured: .*--no-such-option"):
        ab._measured("fp16", "fp16", project, tmp_path / "storage", ["--no-such-option"])
