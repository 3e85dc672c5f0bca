"""The multiple-choice knapsack against brute force, and on plans of real size."""

import itertools
import random

import pytest

from ewq.planning.knapsack import Choice, choose


def totals(groups, plan):
    chosen = [group[choice] for group, choice in zip(groups, plan, strict=True)]
    return sum(c.cost for c in chosen), sum(c.weight for c in chosen)


def least_cost(groups, limit):
    """By trying all plans; ``None`` where none fits."""
    plans = itertools.product(*(range(len(group)) for group in groups))
    fitting = [cost for cost, weight in (totals(groups, p) for p in plans) if weight <= limit]
    return min(fitting, default=None)


def drawn(source, whole_costs):
    cost = (lambda: source.randrange(10)) if whole_costs else source.random
    return [
        [Choice(float(cost()), float(source.randrange(1, 12))) for _ in range(source.randint(1, 4))]
        for _ in range(source.randint(1, 6))
    ]


@pytest.mark.parametrize("whole_costs", [False, True])
def test_equals_brute_force(whole_costs):
    source = random.Random(3)
    refused = 0
    for _ in range(400):
        groups, limit = drawn(source, whole_costs), float(source.randrange(2, 45))
        found = choose(groups, limit)
        expected = least_cost(groups, limit)
        if expected is None:
            refused += 1
            assert found is None
            continue
        cost, weight = totals(groups, found)
        assert weight <= limit
        assert cost == pytest.approx(expected, abs=1e-9)
    assert 0 < refused < 400


def test_takes_the_cheapest_of_all_where_everything_fits():
    groups = [[Choice(2, 1), Choice(0, 9)], [Choice(5, 1)], [Choice(1, 4), Choice(3, 2)]]
    assert choose(groups, 100) == [1, 0, 0]


def test_a_single_plan_that_just_fits_is_found_and_one_byte_less_is_refused():
    groups = [[Choice(1, 3)], [Choice(4, 5), Choice(1, 8)]]
    assert choose(groups, 8) == [0, 0]
    assert choose(groups, 7) is None


def types_of(source, values):
    """Twenty types of one tensor: bits and an error that falls with them."""
    sensitivity = source.lognormvariate(0, 1.5)
    bits = [2 + 14 * k / 19 for k in range(20)]
    return [
        Choice(sensitivity * values * 4**-b * source.uniform(0.9, 1.1), float(int(values * b / 8)))
        for b in bits
    ]


def test_a_thousand_tensors_of_twenty_types_fit_the_budget_to_the_last_promille():
    source = random.Random(5)
    sizes = [source.choice([2**20, 2**22, 7 * 2**20]) for _ in range(1000)]
    groups = [types_of(source, values) for values in sizes]
    limit = sum(4.8 * values / 8 for values in sizes)
    cost, weight = totals(groups, choose(groups, limit))
    assert 0.999 * limit <= weight <= limit
    # Turned round, the least weight at that cost is that weight, or one of the same cost.
    turned = [[Choice(c.weight, c.cost) for c in group] for group in groups]
    least, at_cost = totals(turned, choose(turned, cost * (1 + 1e-12)))
    assert least <= weight
    assert at_cost <= cost * (1 + 1e-9)
