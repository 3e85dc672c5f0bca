"""A plan among random plans of its size, on figures worked by hand."""

import pytest

from ewq.report.draws import draws, scorer_of
from ewq.report.rows import variant_rows
from ewq.report.sections import chance
from ewq.report.subject import reported
from ewq.storage.runs import read_run
from tests.make_runs import metric, record, stored_run

UNDECIDED = "not decided: that takes 19 draws"


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


def test_rank_median_and_p_among_four_draws():
    (found,) = draws(rows(made("ewq-a", 11.5), *chances(4)))
    assert found.random_klds_nats == (10.0, 11.0, 12.0, 13.0)
    assert found.beaten == 2
    assert found.median_kld_nats == 11.5
    assert found.p_better == pytest.approx(3 / 5)
    assert found.p_worse == pytest.approx(3 / 5)
    assert found.outcome == UNDECIDED


@pytest.mark.parametrize(
    ("kld", "outcome"),
    [(1.0, "better than chance"), (99.0, "worse than chance"), (20.5, "not told from chance")],
)
def test_nineteen_draws_decide_at_five_percent(kld, outcome):
    (found,) = draws(rows(made("ewq-a", kld), *chances(19)))
    assert found.outcome == outcome


def test_eighteen_draws_decide_nothing_even_where_all_are_beaten():
    (found,) = draws(rows(made("ewq-a", 1.0), *chances(18)))
    assert found.beaten == 18
    assert found.outcome.startswith("not decided")


def test_a_tie_counts_for_neither_side():
    (found,) = draws(rows(made("ewq-a", 10.0), made("ewq-random-1", 10.0, "random")))
    assert (found.beaten, found.p_better, found.p_worse) == (0, 1.0, 1.0)


def test_only_plans_of_the_same_size_and_engine_are_rivals():
    others = [
        made("ewq-random-large", 1.0, "random", size=101.0),
        made("gguf-ewq-random", 1.0, "random"),
        made("ewq-random-1", 2.0, "random", size=100.4),
    ]
    (found,) = draws(rows(made("ewq-a", 1.5), *others))
    assert found.random_klds_nats == (2.0,)


def test_uniform_plans_are_no_rivals_and_are_not_ranked():
    uniform = made("bnb-int8", 1.0, rule="uniform")
    assert draws(rows(uniform, *chances(3))) == []
    assert scorer_of(rows(uniform)[0]) is None


def test_the_section_is_left_out_without_random_plans_and_shown_with_them(tmp_path):
    alone, several = made("ewq-a", 0.01), [made("ewq-random-1", 0.012, "random")]
    run = read_run(stored_run(tmp_path / "alone", alone))
    assert chance.section(reported([run])) is None
    together = alone + [each for records in several for each in records]
    section = chance.section(reported([read_run(stored_run(tmp_path / "two", together))]))
    table = section.parts[-1]
    assert table.rows == (
        (
            "ewq-a",
            "10",
            "1",
            "12",
            "12 to 12",
            "1 of 1",
            "0.50",
            "not decided: that takes 19 draws",
        ),
    )
