"""What the table says of tasks, against the tasks' code and a stored run of all of them."""

from pathlib import Path

import pytest

from ewq.errors import InputError, MeasurementError
from ewq.measurement import Items, Metric
from ewq.storage.runs import read_run
from ewq.tasks.table import TASKS, Kind, Pairing, figure_of, find_task

ANSWERS = Items({"answer": "Ab"})
STORED = read_run(Path("fixtures/golden/run_schema1.json")).records


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_code_has_what_the_table_promises(task):
    assert hasattr(task.module, "prepare" if task.in_rounds else "measure")
    assert hasattr(task.module, "pair") == (task.pairing is Pairing.RESULTS)
    assert task.name == task.module.TASK


@pytest.mark.parametrize("key", STORED, ids="/".join)
def test_stored_metrics_and_items_are_as_the_table_says(key):
    record, task = STORED[key], TASKS[key[1]]
    task.check(record.metrics, record.items)
    paired = {name for name in record.metrics if task.figure(name).paired}
    assert bool(paired) == (key[0] != "fp16" and task.pairing is not Pairing.NONE) or (
        # The reference's divergence from itself is measured, not paired.
        key == ("fp16", "divergence")
    )


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_what_figures_point_at_exists(task):
    columns = {*task.item_names, *task.item_values}
    for figure in task.figures:
        if figure.mean:
            assert {figure.mean.column, figure.mean.size or figure.mean.column} <= columns
        if figure.alternative:
            assert task.figure(figure.alternative)
        if figure.tolerance:
            assert task.figure(figure.key) is figure
        assert figure.paired or figure.equal == 0.0


@pytest.mark.parametrize(
    ("task", "metric", "kind", "paired"),
    [
        ("throughput", "decode_tokens_per_s_b8_p10", Kind.CLOCK, False),
        ("throughput", "prefill_ratio_b8", Kind.CLOCK, True),
        ("memory", "load_s", Kind.CLOCK, False),
        ("memory", "weights_bytes", Kind.COUNT, False),
        ("mmlu", "accuracy/stem", Kind.CHOICE, False),
        ("mmlu", "flips", Kind.QUALITY, True),
        ("perplexity", "ln_ppl_ratio/two words", Kind.QUALITY, True),
        ("divergence", "kld_p50", Kind.QUALITY, True),
    ],
)
def test_figures_are_found_by_name(task, metric, kind, paired):
    figure = figure_of(task, metric)
    assert (figure.kind, figure.paired) == (kind, paired)


@pytest.mark.parametrize(
    ("task", "metric"),
    [("mmlu", "decode_ratio"), ("mmlu", "accuracy_"), ("memory", "load_s2"), ("chess", "elo")],
)
def test_unknown_metrics_have_no_figure(task, metric):
    assert figure_of(task, metric) is None


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"accurracy": Metric(0.5, "fraction", True, 4)}, "'accurracy', which"),
        ({"accuracy": Metric(50.0, "%", True, 4)}, "not \\('fraction', True"),
        ({"accuracy": Metric(0.5, "fraction", False, 4)}, "not \\('fraction', True"),
    ],
)
def test_metrics_that_the_table_does_not_know_are_refused(metrics, message):
    with pytest.raises(MeasurementError, match=message):
        TASKS["mmlu"].check(metrics, ANSWERS)


def test_items_that_the_table_does_not_know_are_refused():
    columns = {**ANSWERS.columns, "subject": [1, 2]}
    with pytest.raises(MeasurementError, match=r"items of \['answer', 'subject'\]"):
        TASKS["mmlu"].check({}, Items(columns))


def test_an_unknown_task_is_one_line_with_the_known_ones():
    with pytest.raises(InputError, match="unknown task 'mmul'; known: mmlu, mmlu_cloze"):
        find_task("mmul")
