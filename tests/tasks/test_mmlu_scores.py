import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from ewq.data.mmlu import MmluData, Question
from ewq.errors import MeasurementError
from ewq.gating.gates import judge
from ewq.gating.thresholds import Limit, Test
from ewq.measurement import DoubtKind, TaskResult
from ewq.record import Verdict
from ewq.tasks.mmlu_scores import (
    accuracy_metrics,
    chance_doubts,
    pack_items,
    pair,
    require_finite,
)
from tests.make_runs import letters, record

SUBJECTS = {"anatomy": 4, "marketing": 6}
ITEMS = "AbCd" + "AAAbbb"


def result(items, **changes):
    settings = {"data": "d", "shots": 5, "prompt": "p", "subjects": [["anatomy", 4], ["x", 6]]}
    return TaskResult("mmlu", settings | changes, {}, letters(items))


def data_with_answers(answers):
    questions = [Question("anatomy", "?", ("a", "b", "c", "d"), answer) for answer in answers]
    return MmluData(tuple(questions), {}, "made up")


def test_micro_weighs_questions_and_macro_weighs_subjects():
    metrics = accuracy_metrics("A" * 4 + "b" * 6, SUBJECTS)
    assert metrics["accuracy"].value == pytest.approx(0.4)
    assert metrics["accuracy_macro"].value == pytest.approx(0.5)
    assert metrics["accuracy"].n == 10


def test_the_error_is_pooled_over_subjects():
    right = [np.array([1, 0, 1, 0]), np.array([1, 1, 1, 0, 0, 0])]
    squares = sum((len(r) - 1) * r.var(ddof=1) for r in right)
    expected = math.sqrt(squares / (10 - 2) / 10)
    assert accuracy_metrics(ITEMS, SUBJECTS)["accuracy"].stderr == pytest.approx(expected)


def test_the_macro_error_is_that_of_a_mean_of_subjects():
    errors = [math.sqrt(0.25 / 3), math.sqrt(0.25 / 5)]
    expected = math.hypot(*errors) / 2
    assert accuracy_metrics(ITEMS, SUBJECTS)["accuracy_macro"].stderr == pytest.approx(expected)


@pytest.mark.parametrize("items", ["A", "Ab", "AB"])
def test_one_question_a_subject_still_has_an_error(items):
    metrics = accuracy_metrics(items, {str(i): 1 for i in range(len(items))})
    assert metrics["accuracy"].stderr > 0


def test_each_group_has_its_own_pooled_error():
    subjects = {"anatomy": 4, "marketing": 6, "virology": 2, "cheese": 2}
    metrics = accuracy_metrics(ITEMS + "Ab" + "AA", subjects)
    other = metrics["accuracy/other"]
    squares = 5 * (0.25 * 6 / 5) + 1 * (0.25 * 2 / 1)
    assert (other.value, other.n) == (pytest.approx(0.5), 8)
    assert other.stderr == pytest.approx(math.sqrt(squares / (8 - 2) / 8))
    stem = metrics["accuracy/stem"]
    assert (stem.value, stem.n, stem.stderr) == (0.5, 4, pytest.approx(math.sqrt(0.25 / 3)))
    assert not [name for name in metrics if name.startswith("accuracy/") and "ungrouped" in name]


def test_a_group_of_hardly_one_question_a_subject_is_not_certain():
    """Two right answers of one subject say nothing about eighteen others."""
    stem = ["abstract_algebra", "anatomy", "astronomy", "college_biology", "college_chemistry"]
    metrics = accuracy_metrics("AbAbAA", {name: 1 + (name == stem[-1]) for name in stem})
    assert metrics["accuracy/stem"].stderr == pytest.approx(math.sqrt(4 / 6 * 2 / 6 / 5))


def test_answered_letters_add_up_and_have_no_direction():
    metrics = accuracy_metrics(ITEMS, SUBJECTS)
    shares = [metrics[f"answered_{letter}"] for letter in "ABCD"]
    assert sum(share.value for share in shares) == pytest.approx(1.0)
    assert [share.value for share in shares] == [0.4, 0.4, 0.1, 0.1]
    assert {share.higher_is_better for share in shares} == {None}


def test_subjects_outside_mmlu_are_in_no_group():
    assert not [name for name in accuracy_metrics("Aa", {"cheese": 2}) if "/" in name]


@pytest.mark.parametrize(
    ("right", "at_chance"), [(40, False), (24, True), (0, True)], ids=["all", "half", "none"]
)
def test_chance_is_what_a_constant_answer_scores(right, at_chance):
    data = data_with_answers([i % 4 if i >= 20 else 3 for i in range(40)])
    predicted = [q.answer if i < right else (q.answer + 1) % 4 for i, q in enumerate(data.test)]
    doubts = chance_doubts(pack_items(predicted, data), data)
    assert bool(doubts) == at_chance
    if at_chance:
        assert "always answering D scores 0.625" in doubts[0].text
        assert (doubts[0].kind, doubts[0].figures["constant"]) == (DoubtKind.CHANCE, 0.625)


def test_pairing_counts_flips_both_ways():
    paired = pair(result("Ab" + "AAAAAAAA"), result("aB" + "AAAAAAaa"))
    assert paired["accuracy_delta"].value == pytest.approx(0.2)
    assert paired["flips"].value == pytest.approx(0.4)
    assert paired["mcnemar_p"].value == pytest.approx(binomtest(1, 4, 0.5).pvalue)
    assert paired["accuracy_delta"].n == 10


def test_a_result_paired_with_itself_differs_by_nothing():
    paired = pair(result(ITEMS), result(ITEMS))
    assert paired["accuracy_delta"].value == 0
    assert paired["flips"].value == 0
    assert paired["mcnemar_p"].value == 1
    assert paired["accuracy_delta"].stderr > 0


def test_a_changed_wrong_answer_is_no_flip():
    assert pair(result("b" + ITEMS[1:]), result("c" + ITEMS[1:]))["flips"].value == 0


@pytest.mark.parametrize("key", ["data", "shots", "prompt", "subjects"])
def test_results_about_other_questions_cannot_be_paired(key):
    with pytest.raises(MeasurementError, match=key):
        pair(result(ITEMS), result(ITEMS, **{key: "other"}))


def test_engines_may_differ_in_dtype_and_batches():
    other = replace(result(ITEMS, dtype="float16", batch_tokens=1))
    assert pair(result(ITEMS), other)["flips"].value == 0


ALIKE = {f"subject {number}": 2 for number in range(12)}
"""Twelve subjects of two questions, of which every other one is answered right throughout."""


def test_subjects_without_a_wrong_or_without_a_right_answer_do_not_make_certain():
    accuracy = accuracy_metrics("AAbb" * 6, ALIKE)["accuracy"]
    assert (accuracy.value, accuracy.n) == (0.5, 24)
    assert accuracy.stderr == pytest.approx((0.25 / 23) ** 0.5)


def test_a_gate_is_not_passed_on_an_error_of_nothing():
    kept = record(metrics=accuracy_metrics("AAbb" * 6, ALIKE))
    no_worse = Limit(min=0.4, test=Test.NONINFERIORITY)
    assert judge(kept, {"accuracy": no_worse}).verdict is Verdict.INCONCLUSIVE
    data = MmluData(
        tuple(Question(name, "?", ("a", "b", "c", "d"), 0) for name in ALIKE for _ in "12"),
        {},
        "made up",
    )
    assert chance_doubts("AAbb" * 6, data)


def test_subjects_of_which_some_answers_differ_keep_the_errors_of_their_own():
    mixed = accuracy_metrics("Ab" + "AAAb", {"x": 2, "y": 4})["accuracy"]
    pooled = (1 * (0.25 / 1) * 2 + 3 * (0.1875 / 3) * 4) / (6 - 2)
    assert mixed.stderr == pytest.approx((pooled / 6) ** 0.5)


def test_the_macro_error_of_one_question_a_subject_is_the_binomial_one():
    macro = accuracy_metrics("Ab" * 12, {str(number): 1 for number in range(24)})["accuracy_macro"]
    assert macro.stderr == pytest.approx((0.25 / 23) ** 0.5)


def test_a_letter_that_was_never_chosen_has_an_error():
    assert accuracy_metrics("Ab", {"x": 2})["answered_D"].stderr > 0.1


@pytest.mark.parametrize(
    ("new", "flips", "variance"),
    [(ITEMS, 0.0, 2 / 14 * 12 / 14 / 14), ("aB" + ITEMS[2:], 0.2, 0.2 * 0.8 / 9)],
    ids=["none: two more of either kind", "two of ten"],
)
def test_flips_have_the_error_of_a_share(new, flips, variance):
    found = pair(result(new), result(ITEMS))["flips"]
    assert found.value == pytest.approx(flips)
    assert found.stderr == pytest.approx(math.sqrt(variance))


def test_a_doubt_about_chance_carries_its_figures():
    (doubt,) = chance_doubts("Abbb", data_with_answers([0, 3, 3, 3]))
    error = accuracy_metrics("Abbb", {"anatomy": 4})["accuracy"].stderr
    assert doubt.figures == {"accuracy": 0.25, "stderr": error, "constant": 0.75}


def test_the_first_question_without_a_number_is_named():
    logprobs = np.zeros((4, 4), dtype=np.float32)
    logprobs[2, 1] = np.nan
    with pytest.raises(MeasurementError, match=r"question 3 are not finite \(1 such"):
        require_finite(logprobs, "MMLU")


@pytest.mark.parametrize(("right", "at_chance"), [(38, False), (30, True)])
def test_two_standard_errors_above_a_constant_answer_are_no_chance(right, at_chance):
    """38 of 100 have an error of 4.9 %: two of them above 25 %, not three."""
    data = data_with_answers([i % 4 for i in range(100)])
    predicted = [q.answer if i < right else (q.answer + 1) % 4 for i, q in enumerate(data.test)]
    assert bool(chance_doubts(pack_items(predicted, data), data)) == at_chance
