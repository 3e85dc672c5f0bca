"""Recommendations are made where the statistics support them, and only there."""

from dataclasses import replace

import pytest

from ewq.measurement import Metric
from ewq.record import Verdict
from ewq.report.recommendations import losses, recommendations
from ewq.report.rows import variant_rows
from tests.make_runs import CHANCE, THROTTLED, record

NEAR, SMALL, SMALLEST, FASTEST = (
    "Near-lossless", "Small loss", "Smallest", "Fastest",
)  # fmt: skip


def variant(name, size, ln_ratio=None, stderr=0.001, *, mmlu=None, speed=None, **changes):
    """Records of one variant; ``mmlu`` is ``(delta, stderr)``, ``speed`` ``(value, stderr)``."""
    records = [record("memory", name, {"weights_bytes": Metric(size * 1e9, "bytes", False, 1)})]
    if ln_ratio is not None:
        paired = {"ln_ppl_ratio": Metric(ln_ratio, "nats", False, 5000, stderr)}
        records.append(record("perplexity", name, paired, **changes))
    if mmlu:
        delta = {"accuracy_delta": Metric(mmlu[0], "fraction", True, 1000, mmlu[1])}
        records.append(record("mmlu", name, delta))
    if speed:
        value, error = speed
        rate = {"decode_tokens_per_s": Metric(value, "tokens/s", True, 10, error)}
        records.append(record("throughput", name, rate, **changes))
    return records


def recommended(*variants, need):
    records = [each for group in (variant("fp16", 2.0), *variants) for each in group]
    return {each.need: each for each in recommendations(variant_rows(records))}.get(need)


@pytest.mark.parametrize(
    ("variants", "taken"),
    [
        pytest.param([variant("ewq-0.65", 1.0, 0.004)], "ewq-0.65", id="shown within"),
        pytest.param([variant("ewq-0.65", 1.0, 0.009)], None, id="within, but not certainly"),
        pytest.param([variant("ewq-0.65", 1.0, 0.05)], None, id="beyond"),
        pytest.param(
            [variant("ewq-1.0", 1.5, 0.001), variant("ewq-0.5", 1.0, 0.004)], "ewq-0.5",
            id="the smaller of two",
        ),
        pytest.param(
            [variant("ewq-1.0", 1.5, 0.001), variant("ewq-0.5", 1.0, 0.0095)], "ewq-1.0",
            id="a smaller one undecided",
        ),
        pytest.param(
            [variant("ewq-0.5", 1.0, 0.004, mmlu=(-0.05, 0.005))], None, id="MMLU disproves it"
        ),
        pytest.param(
            [variant("ewq-0.5", 1.0, 0.004, mmlu=(-0.02, 0.03))], "ewq-0.5", id="MMLU says nothing"
        ),
        pytest.param([variant("ewq-0.5", 1.0, mmlu=(0.0, 0.003))], "ewq-0.5", id="MMLU alone"),
        pytest.param([variant("ewq-0.5", 1.0, mmlu=(0.0, 0.03))], None, id="MMLU alone, too wide"),
        pytest.param(
            [variant("ewq-0.5", 1.0, 0.004, stderr=None)], "nothing said", id="no standard error"
        ),
        pytest.param([variant("gguf-f16", 2.0, 0.0)], "nothing said", id="nothing quantized"),
    ],
)  # fmt: skip
def test_near_lossless(variants, taken):
    found = recommended(*variants, need=NEAR)
    assert (found.variant if found else "nothing said") == taken


def test_many_variants_need_stronger_evidence_each():
    one = variant("ewq-0.65", 1.0, 0.0075)
    others = [variant(f"ewq-0.{n}", 1.5 + n / 100, 0.05) for n in range(10, 20)]
    assert recommended(one, need=NEAR).variant == "ewq-0.65"
    assert recommended(one, *others, need=NEAR).variant is None


def test_what_stays_open_is_named():
    found = recommended(variant("ewq-1.0", 1.5, 0.001), variant("ewq-0.5", 1.0, 0.0095), need=NEAR)
    assert found.sentence == "ewq-1.0 (1.50 GB, 25 % smaller than FP16): perplexity +0.10 ±0.10 %."
    assert found.details == (
        "ewq-1.0 is the smallest shown to stay within 1 % of FP16's perplexity. "
        "Undecided: ewq-0.5 (perplexity +0.95 ±0.10 %)."
    )


def test_of_equal_bytes_the_better_one_is_taken():
    equal = [variant("gguf-q4_k_m", 1.0, 0.006), variant("gguf-fit-q4_k_m", 1.0, 0.002)]
    assert recommended(*equal, need=NEAR).variant == "gguf-fit-q4_k_m"
    assert recommended(*equal, need="Smallest").variant == "gguf-fit-q4_k_m"


def test_chance_level_is_no_evidence_either_way():
    records = variant("ewq-0.5", 1.0, 0.004, mmlu=(-0.05, 0.005))
    guessing = [replace(each, doubts=CHANCE) if each.task == "mmlu" else each for each in records]
    found = recommended(guessing, need=NEAR)
    assert found.variant == "ewq-0.5"
    assert "MMLU" not in found.sentence + found.details


def test_a_loss_too_few_questions_could_show_is_said_behind_the_sentence():
    found = recommended(variant("ewq-0.5", 1.0, 0.004, mmlu=(-0.02, 0.03)), need=NEAR)
    assert "MMLU" not in found.sentence
    assert "MMLU -2.0 ±3.0 points: a loss below 8.4 points could go unnoticed." in found.details


def test_failed_gates_stand_in_the_sentence():
    failed = variant("ewq-0.5", 1.0, 0.004, verdict=Verdict.FAIL)
    assert "gates fail" in recommended(failed, need=NEAR).sentence


@pytest.mark.parametrize(
    ("first", "second", "doubts", "taken"),
    [
        pytest.param((100, 1), (50, 1), (), "ewq-0.5", id="clearly"),
        pytest.param((100, 20), (90, 20), (), None, id="within noise"),
        pytest.param(
            (100, 1), (97.6, 1), (), None, id="beyond the normal's noise, not ten rounds'"
        ),
        pytest.param((100, 1), (50, 1), THROTTLED, None, id="throttled"),
    ],
)
def test_fastest(first, second, doubts, taken):
    found = recommended(
        variant("ewq-0.5", 1.0, speed=first, doubts=doubts),
        variant("ewq-1.0", 1.5, speed=second),
        need=FASTEST,
    )
    assert found.variant == taken


def test_the_fastest_of_many_needs_stronger_evidence():
    best = variant("ewq-0.5", 1.0, speed=(103, 1))
    rivals = [variant(f"ewq-0.{n}", 1.5, speed=(100, 1)) for n in (6, 7, 8)]
    assert recommended(best, rivals[0], need=FASTEST).variant == "ewq-0.5"
    assert recommended(best, *rivals, need=FASTEST).variant is None


def test_a_wider_margin_that_finds_nothing_smaller_is_not_mentioned():
    near = variant("ewq-0.65", 1.0, 0.004)
    assert recommended(near, need=SMALL) is None
    assert recommended(near, variant("ewq-0.5", 0.9, 0.03), need=SMALL).variant == "ewq-0.5"


def test_no_error_is_small_enough_to_detect_fewer_than_six_flips():
    (row,) = variant_rows(variant("ewq-0.5", 1.0, mmlu=(0.0, 1e-6)))
    assert [loss.detectable for loss in losses(row)] == ["0.6 points"]


def test_smallest_stands_with_its_cost():
    found = recommended(variant("ewq-0.5", 1.0, 0.2), variant("ewq-1.0", 1.5, 0.0), need=SMALLEST)
    assert found.variant == "ewq-0.5"
    assert "perplexity +22.14 ±0.12 %" in found.sentence


@pytest.mark.parametrize(("ln_ratio", "decided"), [(0.05, True), (0.0095, False)])
def test_it_is_decided_that_nothing_serves_only_where_nothing_is_left_open(ln_ratio, decided):
    found = recommended(variant("ewq-0.5", 1.0, ln_ratio), need=NEAR)
    assert (found.variant, found.decided) == (None, decided)


def test_one_need_has_one_limit():
    only_mmlu = variant("ewq-0.5", 0.8, mmlu=(0.0, 0.001))
    found = recommended(only_mmlu, variant("ewq-1.0", 1.5, 0.001), need=NEAR)
    assert found.variant == "ewq-1.0"
    assert "ewq-0.5" not in found.sentence


def test_a_change_that_may_be_chance_is_called_so():
    sentence = recommended(variant("ewq-0.5", 1.0, 0.2, mmlu=(0.03, 0.03)), need=SMALLEST).sentence
    assert "perplexity +22.14 ±0.12 % and MMLU +3.0 ±3.0 points (may be chance)" in sentence


def test_one_variant_supports_no_recommendation():
    assert recommendations(variant_rows(variant("fp16", 2.0))) == []
