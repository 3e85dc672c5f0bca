"""A plan among random plans of its size, on figures worked by hand."""

import math

import pytest

from ewq.measurement import Items
from ewq.report.rows import Estimate, reported_run, variant_rows
from ewq.report.sections import plans
from ewq.report.sections.plans import (
    ControlComparison,
    compare_with_controls,
    rank_among_random,
    scorer,
)
from ewq.storage.runs import read_run
from tests.make_runs import metric, record, stored_run

UNDECIDED = "undecided: needs 19 random plans"


def made(variant, kld, scorer="histogram", size=100.0, rule="target_bpw"):
    """The two records of a variant that say how far it diverges and how it was planned."""
    memory = {"weights_bytes": metric(size, better=False, unit="bytes")}
    plan = {"plan": {"scorer": scorer, "rule": {"kind": rule}}}
    figures = {"kld_mean": metric(kld, stderr=0.1, better=False, unit="nats")}
    return [
        record("memory", variant, memory, side=plan),
        record("divergence", variant, figures),
    ]


def rows(*variants):
    return variant_rows([each for records in variants for each in records])


def chances(count, first=10.0):
    return [made(f"ewq-random-{n}", first + n, "random") for n in range(count)]


def test_rank_and_p_among_four_random_plans():
    (found,) = rank_among_random(rows(made("ewq-a", 11.5), *chances(4)))
    assert found.random_klds_nats == (10.0, 11.0, 12.0, 13.0)
    assert found.beaten == 2
    assert found.p_values == pytest.approx((3 / 5, 3 / 5))
    assert found.outcome == UNDECIDED


@pytest.mark.parametrize(
    ("kld", "outcome"),
    [(1.0, "better than chance"), (99.0, "worse than chance"), (20.5, "no different from chance")],
)
def test_nineteen_random_plans_decide_at_five_percent(kld, outcome):
    (found,) = rank_among_random(rows(made("ewq-a", kld), *chances(19)))
    assert found.outcome == outcome


def test_eighteen_random_plans_decide_nothing_even_where_all_are_beaten():
    (found,) = rank_among_random(rows(made("ewq-a", 1.0), *chances(18)))
    assert found.beaten == 18
    assert found.outcome.startswith("undecided")


def test_a_tie_counts_for_neither_side():
    (found,) = rank_among_random(rows(made("ewq-a", 10.0), made("ewq-random-1", 10.0, "random")))
    assert (found.beaten, found.p_values) == (0, (1.0, 1.0))


def test_only_plans_of_the_same_size_and_engine_are_rivals():
    others = [
        made("ewq-random-large", 1.0, "random", size=101.0),
        made("gguf-ewq-random", 1.0, "random"),
        made("ewq-random-1", 2.0, "random", size=100.4),
    ]
    (found,) = rank_among_random(rows(made("ewq-a", 1.5), *others))
    assert found.random_klds_nats == (2.0,)


def test_uniform_plans_are_no_rivals_and_are_not_ranked():
    uniform = made("bnb-int8", 1.0, rule="uniform")
    assert rank_among_random(rows(uniform, *chances(3))) == []
    assert scorer(rows(uniform)[0]) is None


def test_the_section_is_left_out_without_random_plans_and_shown_with_them(tmp_path):
    alone, several = made("ewq-a", 0.01), [made("ewq-random-1", 0.012, "random")]
    run = read_run(stored_run(tmp_path / "alone", alone))
    assert plans.controls(reported_run([run])) is None
    together = alone + [each for records in several for each in records]
    section = plans.controls(reported_run([read_run(stored_run(tmp_path / "two", together))]))
    table = section.parts[-1]
    assert table.rows == (
        (
            "ewq-a",
            "0.01",
            "1",
            "0.012",
            "0.012 to 0.012",
            "1 of 1",
            "0.50",
            UNDECIDED,
        ),
    )


@pytest.mark.parametrize(
    ("size_percent", "perplexity", "certain", "outcome"),
    [
        (-10, -20.0, True, "plan no larger and better"),
        (0, -20.0, True, "plan no larger and better"),
        (20, -20.0, True, "size against quality"),
        (20, 25.0, True, "control no larger and better"),
        (-10, 25.0, True, "size against quality"),
        (-10, -20.0, False, "perplexity undecided"),
    ],
)
def test_a_plan_or_control_wins_only_with_certainty(size_percent, perplexity, certain, outcome):
    found = ControlComparison("plan", "control", size_percent, Estimate(perplexity), certain)
    assert found.outcome == outcome


def scored(variant, nats):
    """A variant of 100 bytes whose four documents score ``2 + nats`` a token."""
    nlls = [2.0 + each for each in nats]
    items = {
        "domain": ["code"] * 4,
        "nll": [100 * nll for nll in nlls],
        "tokens": [100] * 4,
        "bytes": [400] * 4,
        "document": [0, 1, 2, 3],
    }
    value = math.exp(sum(nlls) / len(nlls))
    figures = {"perplexity": metric(value, stderr=0.1, better=False, unit="ratio")}
    size = {"weights_bytes": metric(100.0, better=False, unit="bytes")}
    texts = record("perplexity", variant, figures, items=Items(items))
    return [texts, record("memory", variant, size)]


CONTROL = scored("bnb-nf4", (0, 0, 0, 0))


def test_perplexities_are_paired_with_the_error_of_their_ratio():
    """Items differ by 0.1 nats a token, but for one of four documents that differs by 0.2."""
    (found,) = compare_with_controls(rows(CONTROL, scored("ewq-0.5", (0.1, 0.1, 0.1, 0.2))))
    ratio = math.exp(0.125)
    assert found.perplexity.value == pytest.approx(100 * (ratio - 1))
    assert found.perplexity.stderr == pytest.approx(100 * ratio * 0.025)
    assert (found.size_percent, found.outcome) == (0, "control no larger and better")


def test_many_pairs_need_stronger_evidence_each():
    """The one-sided p of t(3) at 2.95 errors is 0.03: enough for one pair, not for three."""
    plans = [scored(f"ewq-0.{n}", (0.1, 0.1, 0.1, 0.305)) for n in (5, 6, 7)]
    assert [pair.certain for pair in compare_with_controls(rows(CONTROL, plans[0]))] == [True]
    assert [pair.certain for pair in compare_with_controls(rows(CONTROL, *plans))] == [False] * 3
