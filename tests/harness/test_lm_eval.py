"""Tasks of lm-evaluation-harness in a run of fakes: found, measured, paired, gated."""

import sys

import pytest

from ewq.data.lm_eval import _manager
from tests.harness.fakes import set_behaviour
from tests.harness.test_plugin import TWO, records
from tests.tasks.lm_eval_tasks import choices, write_task

needs_lm_eval = pytest.mark.skipif("not __import__('importlib').util.find_spec('lm_eval')")
LIMIT = '[default.lm_eval-own]\n"delta/brier_score" = {max = -1}\n'


@pytest.fixture
def own(project, monkeypatch):
    """A task file in the project; what lm-eval caches of it is the project's too."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(project.path / "datasets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    things = [f"thing {i}" for i in range(40)]
    return write_task(project.path, "multiple_choice", choices(things)).name


def test_names_are_collected_once_for_each_variant(bench, own):
    result = bench(*TWO, "--ewq-lm-eval", f"hellaswag,{own}", "--collect-only", "-q")
    for variant in ("fp16", "ewq-0.5"):
        for member in ("hellaswag", "own"):
            result.stdout.fnmatch_lines([f"*test_lm_eval[[]{variant}-{member}]"])
    none = bench(*TWO, "--collect-only", "-q")
    none.stdout.no_fnmatch_line("*test_lm_eval*")


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("nowhere.yaml", "*--ewq-lm-eval nowhere.yaml: no such file"),
        ("own.yaml,own", "*own.yaml and own make one lm_eval-own: rename one"),
    ],
)
def test_names_that_mean_nothing_are_refused_before_collection(bench, own, named, reason):
    result = bench(*TWO, "--ewq-lm-eval", named)
    assert result.ret == 4
    result.stderr.fnmatch_lines([reason])


def test_without_lm_eval_the_run_ends_with_what_to_install(bench, project, own, monkeypatch):
    _manager.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    result = bench(*TWO, "-k", "lm_eval", "--ewq-lm-eval", own)
    assert result.ret == 4
    result.stdout.fnmatch_lines(["*--ewq-lm-eval needs lm_eval*: pip install 'ewq[[]lm-eval]'*"])
    assert not (project.path / "loads.txt").exists()


@needs_lm_eval
def test_variants_are_measured_paired_and_gated(bench, project, own):
    set_behaviour(project.path, **{"ewq-0.5": {"noise": 3.0}})
    (project.path / "benchmarks" / "thresholds.toml").write_text(LIMIT)
    asked = (*TWO, "-k", "lm_eval", "--ewq-lm-eval", own)
    result = bench(*asked, subprocess="forked", save=True)
    result.assert_outcomes(passed=1, failed=1)
    found = records(project)
    base, other = (found[variant, "lm_eval-own"] for variant in ("fp16", "ewq-0.5"))
    assert len(base["items"]["rows"]) == 3 * 8, "the smoke tier asks eight documents"
    values = [each["metrics"]["brier_score"]["value"] for each in (base, other)]
    assert "delta/brier_score" not in base["metrics"]
    assert values[1] != values[0]
    assert other["metrics"]["delta/brier_score"]["value"] == pytest.approx(values[1] - values[0])
    assert "delta/brier_score" in str(other["reasons"])
    data = project.path / "own.jsonl"
    data.write_text(data.read_text().replace("thing", "object"))
    again = bench(*asked, "--ewq-require-baseline", subprocess="forked", save=True)
    again.stdout.fnmatch_lines(["*no baseline to gate against*setting lm_eval-own data was*"])
    assert again.ret == 4
