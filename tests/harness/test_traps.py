"""The traps of pytest-benchmark as a gate, by their numbers in docs/ci.md, on fake models.

Each test plants what the trap hides and shows that it is found.
"""

import importlib.util
import json
import sys
from xml.etree import ElementTree

import pytest
import transformers.modeling_utils  # noqa: F401 - torch parts of it cannot be imported twice

from tests.harness.fakes import REPOSITORY, set_behaviour

TWO = ("--ewq-variants", "fp16,ewq-0.5")
SAVE = ("--benchmark-autosave",)
AGAINST_NEWEST = (*SAVE, "--ewq-baseline", "newest")
QUICK = ("-k", "memory or perplexity")
MEMORY = ("-k", "memory")
EWQ = "ewq-0.5"
# pytest-benchmark speaks in warnings; the project of fakes turns warnings into errors.
TOLD_NOT_RAISED = ("-W", "default::pytest_benchmark.logger.PytestBenchmarkWarning")


@pytest.fixture
def plant(project):
    """Change how the fake variants behave."""

    def change(**behaviour):
        set_behaviour(project.path, **{EWQ: behaviour})

    return change


def run_files(project):
    return sorted(project.path.glob(".benchmarks/*/*.json"))


def document(project):
    """The newest stored run; NaN in it is no JSON and fails."""
    text = run_files(project)[-1].read_text()
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in stored JSON"))


def records(project):
    found = (bench["extra_info"]["ewq"] for bench in document(project)["benchmarks"])
    return {(each["variant"], each["task"]): each for each in found}


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# Traps 1 and 2: pytest-benchmark never looks at what it stores beside times, and shows today's.
PLANTED = {
    "perplexity": "perplexity: 643.",
    "divergence": "kld_mean: 0 -> 0.",
    "memory": "weights_bytes: 1e+06 -> 1.1e+06 bytes (+1e+05, +10.00%)",
    "throughput": "decode_tokens_per_s: 100 -> 33.3333 tokens/s (-66.7, -66.67%)",
}


def test_planted_regressions_each_fail_their_test_with_both_values(bench, project, plant):
    tasks = ("-k", " or ".join(PLANTED))
    bench(*TWO, *tasks, *SAVE).assert_outcomes(passed=2 * len(PLANTED))
    plant(noise=0.5, weights_bytes=1_100_000, step_s=0.002)
    result = bench(*TWO, *tasks, *AGAINST_NEWEST)

    result.assert_outcomes(passed=len(PLANTED), failed=len(PLANTED))
    for task, start in PLANTED.items():
        reasons = records(project)[EWQ, task]["reasons"]
        told = [r for r in reasons if r["text"].startswith(f"against the baseline, {start}")]
        assert told, reasons
        assert told[0]["text"].endswith("worse")
        assert told[0]["statistic"].startswith("tolerance")


def test_the_same_again_passes_and_an_improvement_is_told(bench, project, plant):
    plant(noise=0.5, weights_bytes=1_100_000)
    bench(*TWO, *QUICK, *SAVE).assert_outcomes(passed=4)
    bench(*TWO, *QUICK, *AGAINST_NEWEST).assert_outcomes(passed=4)
    verdicts = {record["verdict"] for record in records(project).values()}
    plant(noise=0.1, weights_bytes=1_000_000)
    bench(*TWO, *QUICK, *AGAINST_NEWEST).assert_outcomes(passed=4)

    assert verdicts == {"pass"}
    assert records(project)[EWQ, "memory"]["verdict"] == "improved"
    assert records(project)[EWQ, "perplexity"]["verdict"] == "improved"


def test_benchmark_compare_gates_like_ewq_baseline(bench, project, plant):
    bench(*TWO, *MEMORY, *SAVE).assert_outcomes(passed=2)
    plant(weights_bytes=1_100_000)
    result = bench(*TWO, *MEMORY, "--benchmark-compare", *TOLD_NOT_RAISED)

    result.assert_outcomes(passed=1, failed=1)


def test_limits_of_the_thresholds_file_fail_without_any_baseline(bench, project, plant):
    plant(noise=0.5)
    (project.path / "benchmarks" / "thresholds.toml").write_text(
        "[default.divergence]\nkld_mean = {max = 0.001}\nrms_delta_p = {max = 1.0}\n"
    )
    result = bench(*TWO, "-k", "divergence", *SAVE)

    result.assert_outcomes(passed=1, failed=1)
    record = records(project)[EWQ, "divergence"]
    result.stdout.fnmatch_lines(["gates: 1 fail, 1 not gated, by *benchmarks?thresholds.toml"])
    assert record["verdict"] == "fail"
    assert "kld_mean" in record["reasons"][0]["text"]
    assert "is beyond max 0.001" in record["reasons"][0]["text"]


def test_limits_beside_benchmarks_that_lie_elsewhere_count(project):
    (project.path / "benchmarks").rename(project.path / "carried")
    (project.path / "carried" / "thresholds.toml").write_text("[default.divergence]\n")
    plugin = ("-p", "ewq.pytest_plugin", "carried", "--ewq-tier", "smoke", "--ewq-no-save")
    result = project.runpytest(*plugin, "-p", "no:cacheprovider", "-k", "fp16 and memory")
    result.stdout.fnmatch_lines(["gates: * by *carried?thresholds.toml"])


def test_a_gated_metric_that_is_not_measured_fails(bench, project):
    (project.path / "benchmarks" / "thresholds.toml").write_text(
        '[default.perplexity]\n"perplexity/none-such" = {max = 1.0}\n'
    )
    result = bench(*TWO, "-k", "perplexity")

    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*perplexity/none-such: missing metric, gated by max 1*"])


def test_accuracy_at_chance_is_inconclusive_and_never_green(bench, project, plant):
    plant(guesses=True)
    (project.path / "benchmarks" / "thresholds.toml").write_text(
        '[default.mmlu]\naccuracy_delta = {min = -0.9, test = "mcnemar"}\n'
    )
    bench(*TWO, "-k", "test_mmlu.py and not cloze", *SAVE).assert_outcomes(passed=2)

    record = records(project)[EWQ, "mmlu"]
    assert record["verdict"] == "inconclusive"
    assert "chance level" in record["reasons"][0]["statistic"]


def test_trap_3_neither_partial_nor_failed_runs_become_the_baseline(bench, project, plant):
    bench(*TWO, *MEMORY, *SAVE).assert_outcomes(passed=2)
    plant(weights_bytes=1_100_000)
    for _ in range(2):
        # The second failure shows that the first did not become the baseline (trap 6).
        bench(*TWO, *MEMORY, *AGAINST_NEWEST).assert_outcomes(passed=1, failed=1)
    plant(error="out of memory")
    bench(*TWO, *MEMORY, *SAVE).assert_outcomes(passed=1, failed=1)
    plant(weights_bytes=1_100_000)
    bench(*TWO, "-k", "fp16 and memory", *SAVE).assert_outcomes(passed=1)
    bench(*TWO, *MEMORY, *AGAINST_NEWEST).assert_outcomes(passed=1, failed=1)

    assert len(run_files(project)) == 6


def test_trap_4_a_missing_baseline_is_told_and_can_be_required(bench, project):
    bench(*TWO, *QUICK, *AGAINST_NEWEST).assert_outcomes(passed=4)
    assert {record["verdict"] for record in records(project).values()} == {"no-baseline"}

    (project.path / "loads.txt").unlink()
    run_files(project)[-1].unlink()
    required = bench(*TWO, *QUICK, *AGAINST_NEWEST, "--ewq-require-baseline", *TOLD_NOT_RAISED)
    assert required.ret == 4
    required.stdout.fnmatch_lines(["*no baseline to gate against: there is no stored run*"])
    assert not (project.path / "loads.txt").exists()


def test_trap_5_another_machine_is_not_comparable_and_never_a_regression(bench, project, plant):
    bench(*TWO, *QUICK, *SAVE).assert_outcomes(passed=4)
    stored = document(project)["machine_info"]
    assert stored["ewq"]["device"] == "cpu"
    assert not [key for key in stored["cpu"] if key.startswith("hz_actual")]

    edit(run_files(project)[0], lambda run: run["machine_info"]["ewq"].update(cpu="Foreign"))
    plant(weights_bytes=9_000_000)
    result = bench(*TWO, *QUICK, *AGAINST_NEWEST)
    result.assert_outcomes(passed=4)
    assert "another cpu: Foreign" in records(project)[EWQ, "memory"]["reasons"][0]["text"]


def test_trap_6_what_a_failed_gate_measured_is_stored_with_its_verdict(bench, project, plant):
    plant(noise=0.5)
    (project.path / "benchmarks" / "thresholds.toml").write_text(
        "[default.divergence]\nkld_mean = {max = 0.001}\n"
    )
    bench(*TWO, "-k", "divergence", *SAVE)

    run = document(project)["ewq"]
    assert run["verdicts"][f"{EWQ}/divergence"] == "fail"
    assert run["complete"] is True


def test_traps_7_9_12_and_24_rounds_tables_grouping_and_percentiles(bench, project):
    # Grouping by a parameter crashes pytest-benchmark where one benchmark lacks it.
    grouped = ("--benchmark-group-by=param:variant",)
    bench(*TWO, "-k", "memory or throughput", *SAVE, *grouped).assert_outcomes(passed=4)
    stored = document(project)["benchmarks"]
    speed = records(project)[EWQ, "throughput"]["metrics"]

    assert {each["group"] for each in stored} == {"memory", "throughput"}
    assert {each["stats"]["rounds"] for each in stored if each["group"] == "memory"} == {1}
    for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "ttft_s"):
        assert {f"{name}_p10", f"{name}_p90"} <= set(speed)


def test_trap_11_a_nan_is_a_failed_measurement_and_the_stored_json_is_valid(bench, project, plant):
    plant(noise=float("inf"))
    result = bench(*TWO, *QUICK, *SAVE)

    result.assert_outcomes(passed=3, failed=1)
    assert (EWQ, "perplexity") not in records(project)
    assert f"{EWQ}/perplexity" in document(project)["ewq"]["failed"]
    assert {each["params"]["variant"] for each in document(project)["benchmarks"]} == {"fp16", EWQ}


def test_trap_13_history_survives_a_renamed_file(bench, project, plant):
    bench(*TWO, *MEMORY, *SAVE).assert_outcomes(passed=2)
    (project.path / "benchmarks/test_memory.py").rename(project.path / "benchmarks/test_ram.py")
    plant(weights_bytes=1_100_000)
    bench(*TWO, *MEMORY, *AGAINST_NEWEST).assert_outcomes(passed=1, failed=1)


def test_trap_16_a_disabled_benchmark_says_that_nothing_is_stored(bench, project):
    result = bench(*TWO, *QUICK, *SAVE, "--benchmark-disable", "--junitxml=junit.xml")

    result.assert_outcomes(passed=4)
    assert not run_files(project)
    told = "benchmarks are disabled: nothing is stored or gated"
    result.stdout.fnmatch_lines([f"ewq: {told}", f"gates: {told}"])
    report = ElementTree.parse(project.path / "junit.xml")
    verdicts = [each for each in report.iter("property") if each.get("name") == "ewq_verdict"]
    assert {each.get("value") for each in verdicts} == {"no-baseline"}


def test_trap_16_a_disabled_run_leaves_the_journal_of_an_interrupted_one_alone(bench, project):
    bench(*TWO, "-k", "fp16 and memory")
    journal = project.path / ".benchmarks" / "journal.sqlite"
    before = journal.read_bytes()
    bench(*TWO, *MEMORY, "--benchmark-disable").assert_outcomes(passed=2)
    refused = bench(*TWO, *MEMORY, "--benchmark-disable", "--ewq-resume")

    assert journal.read_bytes() == before
    assert refused.ret == 4
    refused.stdout.fnmatch_lines(["*nothing to resume: benchmarks are disabled*"])


def test_trap_15_gates_under_xdist_are_not_silently_green(bench, project, plant):
    if importlib.util.find_spec("xdist") is None:
        pytest.skip("pytest-xdist is not installed")
    bench(*TWO, *MEMORY, *SAVE)
    plant(weights_bytes=1_100_000)
    result = bench(*TWO, *MEMORY, *AGAINST_NEWEST, "-n", "1", subprocess="forked")
    assert result.ret != 0

    ungated = bench(*TWO, *MEMORY, "-n", "1", *TOLD_NOT_RAISED, subprocess="forked")
    ungated.assert_outcomes(passed=2)
    ungated.stdout.fnmatch_lines(["*gates: *disabled under xdist*nothing is stored or gated*"])


def test_traps_10_and_17_junit_shows_the_failed_test_and_ewq_compare_exits_1(bench, project, plant):
    bench(*TWO, *MEMORY, *SAVE)
    plant(weights_bytes=1_100_000)
    bench(*TWO, *MEMORY, *AGAINST_NEWEST, "--junitxml=junit.xml")
    assert project.run(sys.executable, "-m", "ewq", "compare", "1", "2").ret == 1

    report = ElementTree.parse(project.path / "junit.xml")
    (case,) = report.findall(f".//testcase[@name='test_memory[{EWQ}]']")
    properties = {each.get("name"): each.get("value") for each in case.iter("property")}

    assert "weights_bytes" in case.find("failure").get("message")
    assert properties["ewq_verdict"] == "fail"
    assert properties["ewq_weights_bytes"] == "1100000.0"
    assert "1e+06 -> 1.1e+06" in properties["ewq_reasons"]


def test_trap_18_the_plugin_works_from_another_folder(project, monkeypatch):
    monkeypatch.chdir(project.mkdir("elsewhere"))
    folder = str(project.path / "benchmarks")
    plugins = ("-p", "ewq.pytest_plugin", "-p", "no:cacheprovider")

    result = project.runpytest(*plugins, folder, *TWO, *MEMORY, "--ewq-tier", "smoke")

    result.assert_outcomes(passed=2)


def test_trap_20_whatever_orders_the_tests_each_variant_loads_once(bench, project):
    conftest = project.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + "\n\ndef pytest_collection_modifyitems(items):\n"
        + "    items.sort(key=lambda item: (item.name.split('[')[0], item.name[::-1]))\n"
    )
    bench(*TWO, *QUICK).assert_outcomes(passed=4)

    assert (project.path / "loads.txt").read_text().split() == ["fp16", EWQ]


def test_every_trap_has_its_row_in_the_guide():
    rows = (REPOSITORY / "docs" / "ci.md").read_text().splitlines()
    numbers = {row.split("|")[1].strip() for row in rows if row.startswith("| ")}

    assert {str(number) for number in range(1, 25)} <= numbers


FOREIGN_MACHINES = {
    "another machine": {"node": "elsewhere", "ewq": {"device": "cuda:0", "gpu": "L4"}},
    "null": None,
    "a list": [1],
}


@pytest.mark.parametrize("machine", FOREIGN_MACHINES.values(), ids=FOREIGN_MACHINES.keys())
@pytest.mark.parametrize("outside", [False, True], ids=["inside", "outside"])
def test_a_stored_run_of_another_machine_is_no_crash(
    bench, project, tmp_path_factory, machine, outside
):
    """pytest-benchmark compares machines itself, by a path relative to the working folder."""
    storage = tmp_path_factory.mktemp("elsewhere") if outside else project.path / "runs"
    where = f"--benchmark-storage=file://{storage}"
    bench(*TWO, *MEMORY, *SAVE, where).assert_outcomes(passed=2)
    (path,) = storage.glob("*/*.json")
    edit(path, lambda run: run.update(machine_info=machine))
    result = bench(*TWO, *MEMORY, where, "--benchmark-compare", *TOLD_NOT_RAISED)

    result.assert_outcomes(passed=2)
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()


def test_rows_that_pytest_benchmark_cannot_compare_are_left_out(bench, project):
    bench(*TWO, *MEMORY, *SAVE).assert_outcomes(passed=2)

    def damage(run):
        del run["benchmarks"][0]["fullname"]
        run["benchmarks"][1]["stats"]["median"] = "fast"

    edit(run_files(project)[0], damage)
    bench(*TWO, *MEMORY, "--benchmark-compare", *TOLD_NOT_RAISED).assert_outcomes(passed=2)


def test_a_mistyped_task_ends_the_run_before_a_model_is_loaded(bench, project):
    (project.path / "benchmarks" / "test_mistyped.py").write_text(
        "import pytest\n\n@pytest.mark.task('memroy')\n"
        "def test_mistyped(variant, measure):\n    measure()\n"
    )
    result = bench(*TWO, *MEMORY[:1], "memory or mistyped")

    assert result.ret == 4
    assert "unknown task 'memroy'; known: mmlu" in result.stdout.str() + result.stderr.str()
    assert not (project.path / "loads.txt").exists()


def test_a_mistyped_variant_ends_the_run_before_a_model_is_loaded(bench, project):
    (project.path / "benchmarks" / "test_mistyped.py").write_text(
        "import pytest\n\n@pytest.mark.task('memory')\n"
        "@pytest.mark.parametrize('variant', ['bnb-nf5'], indirect=True)\n"
        "def test_mistyped(variant, measure):\n    measure()\n"
    )
    result = bench(*TWO, *MEMORY[:1], "memory or mistyped")

    assert result.ret == 4
    assert "unknown variant 'bnb-nf5'; known: fp16" in result.stdout.str() + result.stderr.str()
    assert not (project.path / "loads.txt").exists()
