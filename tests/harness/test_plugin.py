"""The harness as a user meets it, on fake models."""

import json
import sys
from types import SimpleNamespace

import pytest

from ewq.checkpoint.embedded import fixture_path
from ewq.harness.session import RunData
from ewq.harness.state import PluginState
from ewq.instruments.processor_wait import ProcessorWait
from ewq.tasks.tiers import TIERS, tier_sizes
from tests.harness.fakes import TASKS, set_behaviour

CARRIED_QUESTIONS = 288
TWO = ("--ewq-variants", "fp16,ewq-0.5")


def stored(project):
    """The newest stored run."""
    files = sorted(project.path.glob(".benchmarks/*/*.json"))
    return json.loads(files[-1].read_text())


def records(project):
    return {
        (r["variant"], r["task"]): r
        for r in (b["extra_info"]["ewq"] for b in stored(project)["benchmarks"])
    }


def loads(project):
    return (project.path / "loads.txt").read_text().split()


def test_each_variant_is_measured_by_every_task_and_stored(bench, project):
    set_behaviour(project.path, **{"ewq-0.5": {"noise": 0.3}})
    result = bench(*TWO, "--benchmark-autosave")
    result.assert_outcomes(passed=2 * TASKS + 1)
    found = records(project)
    assert len(found) == 2 * TASKS + 1
    assert found["ewq-0.5", "perplexity"]["metrics"]["ln_ppl_ratio"]["value"] > 0
    assert found["ewq-0.5", "divergence"]["metrics"]["kld_mean"]["value"] > 0.001
    assert found["fp16", "divergence"]["metrics"]["kld_mean"]["value"] < 1e-6
    assert stored(project)["ewq"]["complete"] is True


def test_letters_of_a_baseline_are_asked_though_the_reference_guesses_now(bench, project):
    select = ("-k", "mmlu and not cloze")
    bench(*TWO, *select, "--benchmark-autosave").assert_outcomes(passed=2)
    set_behaviour(project.path, **{"*": {"guesses": True}})
    result = bench(*TWO, *select, "--benchmark-compare")
    assert result.parseoutcomes().get("skipped", 0) == 0


def test_rows_are_told_as_variants_end_past_the_capture_of_output(bench, project):
    result = bench(*TWO, "-k", "memory or divergence", subprocess="forked")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        ["ewq: fp16: GB 0.00100, *KLD 0.00 ±0.00*", "ewq: ewq-0.5: GB 0.00100,*"]
    )


@pytest.mark.parametrize(
    ("selected", "outcome"),
    [("mmlu or noise", {"passed": 3, "skipped": 2}), ("ewq and mmlu", {"passed": 1, "skipped": 1})],
)
def test_letters_are_not_asked_of_variants_of_a_model_that_guesses(
    bench, project, selected, outcome
):
    set_behaviour(project.path, fp16={"guesses": True})
    result = bench(*TWO, "-k", selected, "--benchmark-autosave")
    result.assert_outcomes(**outcome)
    result.stdout.fnmatch_lines(
        ["not measured: ewq-0.5: fp16 answers MMLU's letters at chance, so mmlu says nothing"]
    )
    assert ("fp16", "noise_floor") not in records(project)
    assert ("ewq-0.5", "mmlu") not in records(project)
    assert ("ewq-0.5", "mmlu_cloze") in records(project)
    assert stored(project)["ewq"]["complete"] is True


def test_each_variant_loads_once_across_all_files(bench, project):
    bench(*TWO).assert_outcomes(passed=2 * TASKS + 1)
    assert loads(project) == ["fp16", "ewq-0.5"]


def test_a_model_is_freed_before_the_next_loads_even_after_a_failing_test(bench, project):
    conftest = project.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + """
import gc, weakref
from tests.harness import fakes
alive = weakref.WeakSet()

@pytest.fixture(scope="session")
def ewq_loader():
    def load(variant, subject, placement):
        gc.collect()
        assert not alive, "the previous model is still in memory"
        loaded = fakes.load_fake(variant, subject, placement)
        alive.add(loaded.model)
        return loaded
    return load
"""
    )
    (project.path / "benchmarks/test_zz_failing.py").write_text(
        """
import pytest

@pytest.mark.task("memory")
def test_fails_holding_the_model(variant, benchmark):
    model = variant.model
    benchmark.pedantic(lambda: None)
    assert not model.info, "a failure whose traceback holds the model"
"""
    )
    # A process of its own: inside this one pytester would keep the failures' tracebacks.
    names = "fp16,ewq-1.0,ewq-0.5"
    result = bench("--ewq-variants", names, "-k", "memory or failing", subprocess="forked")
    result.assert_outcomes(passed=3, failed=3)


def test_a_failing_variant_leaves_the_others(bench, project):
    set_behaviour(project.path, **{"ewq-0.5": {"error": "needs 9 GB, 2 GB are free"}})
    result = bench("--ewq-variants", "fp16,ewq-0.5,ewq-1.0", "--benchmark-autosave")
    result.assert_outcomes(passed=2 * TASKS + 1, failed=TASKS)
    result.stdout.fnmatch_lines(["*not measured: ewq-0.5: needs 9 GB, 2 GB are free*"])
    assert loads(project).count("ewq-0.5") == 1
    run = stored(project)
    assert run["ewq"]["complete"] is False
    assert {b["params"]["variant"] for b in run["benchmarks"]} == {"fp16", "ewq-1.0"}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("ewq", {"ewq-0.5", "gguf-ewq-0.65"}),
        ("fp16", {"fp16"}),
        ("gguf", {"gguf-f16", "gguf-ewq-0.65"}),
        ("fp16 or ewq", {"fp16", "ewq-0.5", "gguf-ewq-0.65"}),
    ],
)
def test_expressions_select_what_they_say(bench, project, expression, expected):
    names = "fp16,ewq-0.5,bnb-nf4,gguf-f16,gguf-ewq-0.65"
    result = bench("--ewq-variants", names, "-k", expression, "--collect-only", "-q")
    shown = {line.split("[")[1].rstrip("]") for line in result.outlines if "[" in line}
    assert shown == expected


def test_without_the_reference_selected_it_is_measured_once_and_marked(bench, project):
    set_behaviour(project.path, **{"ewq-0.5": {"noise": 0.3}})
    result = bench(*TWO, "-k", "ewq", "--benchmark-autosave")
    result.assert_outcomes(passed=TASKS)
    assert loads(project) == ["fp16", "ewq-0.5"]
    perplexity = records(project)["ewq-0.5", "perplexity"]
    assert perplexity["metrics"]["ln_ppl_ratio"]["value"] > 0
    assert any("reference was measured" in note for note in perplexity["notes"])


def test_a_reference_that_does_not_load_takes_away_only_the_paired_figures(bench, project):
    set_behaviour(project.path, fp16={"error": "needs 90 GB, 24 GB are free"})
    result = bench(*TWO, "-k", "ewq", "--benchmark-autosave")
    result.assert_outcomes(passed=TASKS - 1, failed=1)
    result.stdout.fnmatch_lines(["*no distributions of the reference*needs 90 GB, 24 GB are free*"])
    assert loads(project).count("fp16") == 1
    perplexity = records(project)["ewq-0.5", "perplexity"]
    assert "ln_ppl_ratio" not in perplexity["metrics"]
    assert any("needs 90 GB" in note for note in perplexity["notes"])


def test_divergence_is_measured_where_it_is_asked_for(bench, project):
    set_behaviour(project.path, **{"ewq-0.5": {"noise": 0.3}})
    asked = ("--ewq-depth", "128,9000", "--ewq-chat", "-rs", "--benchmark-autosave")
    result = bench(*TWO, "-k", "divergence_at", *asked)
    result.assert_outcomes(passed=2, skipped=4)
    result.stdout.fnmatch_lines_random(
        [
            "*depth of 9000 tokens exceeds the model's context of 8192*",
            "*no samples drawn by fake: its own answers are not measured*",
        ]
    )
    found = records(project)
    assert found["fp16", "divergence_at-128"]["metrics"]["kld_mean"]["value"] == 0.0
    assert found["ewq-0.5", "divergence_at-128"]["metrics"]["kld_mean"]["value"] > 0.01
    alone = bench(*TWO, "-k", "ewq-0.5 and divergence_at", *asked)
    alone.assert_outcomes(passed=1, skipped=2)
    assert (
        records(project)["ewq-0.5", "divergence_at-128"]["metrics"]
        == (found["ewq-0.5", "divergence_at-128"]["metrics"])
    )
    bench(*TWO, "-k", "divergence_at").assert_outcomes()


@pytest.mark.parametrize("depth", ["deep", "4096,1", "-5"])
def test_a_depth_that_is_no_number_of_tokens_ends_the_run(bench, depth):
    result = bench(*TWO, f"--ewq-depth={depth}")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*--ewq-depth*give numbers of tokens, such as 4096,32768*"])


def test_a_stored_reference_is_used_again(bench, project):
    bench(*TWO).assert_outcomes(passed=2 * TASKS + 1)
    result = bench(*TWO, "-k", "ewq-0 and perplexity", "--benchmark-autosave")
    result.assert_outcomes(passed=1)
    assert loads(project) == ["fp16", "ewq-0.5", "ewq-0.5"]
    notes = records(project)["ewq-0.5", "perplexity"]["notes"]
    assert any("stored result" in note for note in notes)


def test_resume_measures_only_what_is_missing(bench, project):
    set_behaviour(project.path, **{"ewq-0.5": {"kill": "SIGKILL"}})
    bench(*TWO, "--benchmark-autosave", subprocess="forked")
    assert not list(project.path.glob(".benchmarks/*/*.json"))
    set_behaviour(project.path, **{"ewq-0.5": {"noise": 0.3}})
    bench(*TWO, "--benchmark-autosave", "--ewq-resume").assert_outcomes(passed=2 * TASKS + 1)
    # The reference loads again only to record its distributions, which are not journalled.
    assert loads(project).count("fp16") <= 2
    assert len(records(project)) == 2 * TASKS + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ewq-variants", "fp17"], "*unknown variant 'fp17'; known: fp16, *"),
        (["--ewq-factors", "big"], "*invalid factor 'big': expected a number*"),
        (["--ewq-tier", "huge"], "*--ewq-tier 'huge': choose one of smoke, quick, full*"),
        (["--ewq-mmlu", "nowhere"], "*--ewq-mmlu nowhere: no such file or folder*"),
        (["--ewq-calibration", "nowhere"], "*--ewq-calibration nowhere: no such file or folder*"),
        (["--ewq-device", "cuda:7"], "*cuda:7*"),
    ],
    ids=["variant", "factor", "tier", "mmlu", "calibration", "device"],
)
def test_bad_options_end_with_one_line_and_exit_code_4(bench, arguments, message):
    result = bench(*arguments)
    assert result.ret == 4
    (result.stderr if result.errlines else result.stdout).fnmatch_lines([message])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_an_empty_data_folder_is_said_in_one_line_before_a_model_is_loaded(bench, project):
    project.mkdir("empty")
    result = bench(*TWO, "--ewq-texts", "empty")
    assert result.ret == 4
    result.stdout.fnmatch_lines(["*empty holds no texts*"])
    assert not (project.path / "loads.txt").exists()
    assert "Traceback" not in result.stdout.str()


REAL_SUBJECT = """
import pytest
from tests.harness.fakes import load_fake

@pytest.fixture(scope="session")
def ewq_loader():
    return load_fake
"""


def test_factors_of_one_plan_are_measured_once_and_shown_under_all_names(bench, project):
    (project.path / "conftest.py").write_text(REAL_SUBJECT)
    names = ("ewq-0.65", "ewq-0.6501", "ewq-0.6502")
    chosen = ("--ewq-variants", ",".join(("fp16", *names)), "-k", "perplexity")
    bench(*chosen, "--benchmark-autosave").assert_outcomes(passed=4)
    assert loads(project) == ["fp16", "ewq-0.65"]
    found = [records(project)[name, "perplexity"] for name in names]
    assert [each["variant"] for each in found] == list(names)
    assert all(each["metrics"] == found[0]["metrics"] for each in found)
    assert "ewq-0.65" in " ".join(found[2]["notes"])


@pytest.mark.parametrize(
    ("names", "absent", "reason"),
    [
        ("fp16,other.gguf", None, "*other.gguf: 12 bytes are too few for a GGUF file*"),
        ("fp16,bnb-nf4", "bitsandbytes", "*bnb-nf4 needs bitsandbytes: pip install *"),
        ("fp16,gguf-q8_0", "llama_cpp", "*gguf-q8_0 needs llama.cpp: pip install *"),
    ],
)
def test_what_no_variant_could_be_loaded_with_ends_the_run_at_once(
    bench, project, monkeypatch, names, absent, reason
):
    (project.path / "conftest.py").write_text(REAL_SUBJECT)
    (project.path / "other.gguf").write_bytes(b"no such file")
    if absent:
        monkeypatch.setitem(sys.modules, absent, None)
    result = bench("--ewq-variants", names, "-k", "memory")
    assert result.ret == 4
    result.stdout.fnmatch_lines([reason])
    assert not (project.path / "loads.txt").exists()


def test_a_text_too_short_for_its_definition_ends_the_run_at_once(bench, project):
    (project.path / "conftest.py").write_text(REAL_SUBJECT)
    (project.path / "wiki.test.raw").write_text("a few words\n" * 40)
    result = bench(*TWO, "-k", "perplexity", "--ewq-texts", "wiki.test.raw")
    assert result.ret == 4
    result.stdout.fnmatch_lines(["*'wikitext2' are too short: *one papers window of 2048 tokens*"])
    assert not (project.path / "loads.txt").exists()


def test_collecting_imports_no_heavy_library(project):
    script = (
        "import sys, pytest\n"
        "options = ['-p', 'ewq.pytest_plugin', '--ewq-lm-eval', 'hellaswag', '--collect-only']\n"
        "pytest.main([*options, 'benchmarks', '-q'])\n"
        "heavy = {'torch', 'transformers', 'bitsandbytes', 'llama_cpp', 'lm_eval', 'datasets'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    (project.path / "conftest.py").unlink()
    assert project.run(sys.executable, "-c", script).ret == 0


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_finds_as_many_questions_as_it_asks_for(tier, device):
    options = SimpleNamespace(mmlu=str(fixture_path("mmlu")), tier=tier)
    data = RunData(options, tier_sizes(tier, device))
    asked = tier_sizes(tier, device).mmlu_questions
    assert len(data.mmlu.test) == min(asked or CARRIED_QUESTIONS, CARRIED_QUESTIONS)


def test_a_factor_has_one_name(bench):
    result = bench("--ewq-factors", "1,1.0", "-k", "memory", "--collect-only", "-q")
    assert sum("test_memory[ewq-1.0]" in line for line in result.outlines) == 1


def test_a_task_without_texts_does_not_fail_for_broken_ones(bench, project):
    project.mkdir("empty")
    result = bench(*TWO, "-k", "fp16 and memory", "--ewq-texts", "empty")
    result.assert_outcomes(passed=1)


def test_a_run_is_saved_unless_that_is_declined(bench, project):
    bench(*TWO, "-k", "memory", save=True).assert_outcomes(passed=2)
    assert set(records(project)) == {("fp16", "memory"), ("ewq-0.5", "memory")}
    result = bench(*TWO, "-k", "memory")
    result.stdout.fnmatch_lines(["not saved, as asked"])
    assert len(list(project.path.glob(".benchmarks/*/*.json"))) == 1


def test_a_dry_run_says_how_much_would_be_measured(bench, project):
    result = bench(*TWO, "-k", "memory or mmlu", "--ewq-dry-run")
    result.stdout.fnmatch_lines(["ewq: 6 measurements: 3 tasks on 2 variants (fp16, ewq-0.5)"])
    assert result.ret == 0
    assert not (project.path / "loads.txt").exists()


def test_timing_tables_are_shown_where_columns_are_asked_for(bench, project):
    table = "Name (time in *"
    bench(*TWO, "-k", "memory").stdout.no_fnmatch_line(table)
    shown = bench(*TWO, "-k", "memory", "--benchmark-columns=median,rounds")
    shown.stdout.fnmatch_lines([table])


def test_after_a_long_first_variant_it_says_how_long_all_will_take():
    state = PluginState(None, None, selected=[("fp16", "mmlu"), ("ewq-0.5", "mmlu")])
    assert state.expectation("fp16") == ""
    state.started_s -= 600
    assert state.expectation("fp16") == "ewq: fp16 took 10 min; about 20 for all 2"
    assert state.expectation("ewq-0.5") == ""


@pytest.mark.parametrize(("share", "doubted"), [(0.05, False), (0.4, True), (None, False)])
def test_a_speed_is_doubted_where_other_programs_took_the_processor(
    bench, project, monkeypatch, share, doubted
):
    monkeypatch.setattr(ProcessorWait, "share", share)
    bench(*TWO[:1], "fp16", "-k", "throughput or memory", save=True).assert_outcomes(passed=2)
    found = {key[1]: record["doubts"] for key, record in records(project).items()}

    assert not found["memory"]
    assert [doubt["kind"] for doubt in found["throughput"]] == ["busy"] * doubted
    assert not doubted or "40% of the time was spent waiting" in found["throughput"][0]["text"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("-k", "ewq-0.7"), "-k ewq-0.7 selects nothing: to measure it, add --ewq-factors 0.7"),
        (("-k", "fp16 or gguf-ewq-0.7"), "add --ewq-variants fp16,gguf-ewq-0.7"),
        ((*TWO, "-k", "bnb-nf4 or ewq-0.7"), "add --ewq-variants fp16,ewq-0.7"),
    ],
)
def test_a_variant_that_only_k_names_is_told_with_the_option_that_makes_it(bench, arguments, hint):
    assert hint in bench("--ewq-dry-run", *arguments).stdout.str()


@pytest.mark.parametrize("selection", ["ewq-0.6", "fp16 and not mmlu", "nothing-like-it"])
def test_what_k_matches_or_cannot_be_a_variant_gets_no_hint(bench, selection):
    assert "selects nothing" not in bench("--ewq-dry-run", "-k", selection).stdout.str()


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        ("f16,q8_0", ["fp16", "gguf-q8_0", "gguf-q8_0+kv-q8_0", "gguf-f16+kv-q4_0"]),
        ("Q4_0", ["fp16", "gguf-q8_0+kv-q4_0", "gguf-f16+kv-q4_0"]),
    ],
)
def test_every_gguf_variant_without_a_cache_type_takes_those_asked_for(bench, kinds, names):
    asked = ("--ewq-variants", "fp16,gguf-q8_0,gguf-f16+kv-q4_0", "--ewq-kv", kinds)
    result = bench(*asked, "-k", "memory", "--collect-only", "-q")
    result.stdout.fnmatch_lines([f"*test_memory[[]{name}]" for name in names])
    assert len([line for line in result.outlines if "test_memory[" in line]) == len(names)


def test_a_cache_type_that_there_is_none_of_ends_the_run(bench):
    result = bench("--ewq-variants", "fp16,gguf-q8_0", "--ewq-kv", "q9")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*no cache type 'q9'; give some of f16, q8_0, *"])
