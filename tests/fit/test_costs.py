"""Costs: the weighted squared rounding error, and what drawing rows does to it."""

import numpy as np
import pytest

from ewq.fit.costs import PlannedTensor, measure_costs
from ewq.sensitivity.measure import Matrix, Sensitivity

ROWS, COLUMNS, TOKENS = 300, 64, 1000


class Stored:
    """Two experts' matrices in memory."""

    name = "experts"

    def __init__(self):
        draw = np.random.default_rng(1)
        self.values = draw.standard_normal((2, ROWS, COLUMNS)).astype(np.float32)

    def read(self, expert, rows):
        return self.values[expert][rows]


def coarse(values, type_name, importance):
    step = {"fine": 0.125, "coarse": 0.5, "exact": 0.0}[type_name]
    return values if not step else (np.rint(values / step) * step).astype(np.float32)


@pytest.fixture
def sensitivity():
    draw = np.random.default_rng(2)
    rows = draw.lognormal(0, 2, (2, ROWS))
    rows[0, :20] = 0
    matrix = Matrix(
        rows=rows,
        columns=draw.random((2, COLUMNS)),
        inputs=TOKENS * draw.lognormal(0, 1, (2, COLUMNS)),
        tokens=np.array([TOKENS, TOKENS]),
        input_rounding=np.zeros(1),
        squares=np.ones(4),
    )
    return Sensitivity("sha256:f", "sha256:c", TOKENS, {"experts": matrix})


@pytest.fixture
def tensor():
    types = ("fine", "coarse", "exact")
    return PlannedTensor("experts", Stored(), types, dict.fromkeys(types, 1))


def by_hand(tensor, sensitivity, type_name, rows=slice(None)):
    values = tensor.matrix.values.astype(np.float64)
    error = (coarse(tensor.matrix.values, type_name, None) - values) ** 2
    matrix = sensitivity.matrices["experts"]
    share = matrix.inputs / matrix.inputs.sum(axis=1, keepdims=True)
    cost = np.einsum("er,ec,erc->er", matrix.rows, share, error) / (2 * TOKENS)
    return cost[:, rows].sum()


def test_all_rows_give_the_weighted_error(tensor, sensitivity):
    costs = measure_costs([tensor], sensitivity, coarse, rows_drawn=10_000)["experts"]
    for type_name in ("fine", "coarse"):
        expected = by_hand(tensor, sensitivity, type_name)
        assert costs[type_name] == pytest.approx(expected, rel=1e-6)
    assert costs["exact"] == 0


def test_a_tensor_that_holds_some_of_the_rows_costs_those(tensor, sensitivity):
    part = PlannedTensor("gate", tensor.matrix, ("fine",), {"fine": 1}, rows=(100, 250))
    costs = measure_costs([part], sensitivity, coarse, rows_drawn=10_000)
    expected = by_hand(tensor, sensitivity, "fine", slice(100, 250))
    assert costs["gate"]["fine"] == pytest.approx(expected, rel=1e-6)


def test_a_draw_of_rows_is_near_the_whole(tensor, sensitivity):
    drawn = measure_costs([tensor], sensitivity, coarse, rows_drawn=64)["experts"]
    for type_name in ("fine", "coarse"):
        expected = by_hand(tensor, sensitivity, type_name)
        assert drawn[type_name] == pytest.approx(expected, rel=0.1)


def test_threads_change_nothing(tensor, sensitivity):
    one = measure_costs([tensor], sensitivity, coarse, rows_drawn=64, workers=1)
    assert measure_costs([tensor], sensitivity, coarse, rows_drawn=64, workers=4) == one


def test_the_quantizer_is_given_the_importance_of_the_expert(tensor, sensitivity):
    given = []

    def noting(values, type_name, importance):
        given.append(importance)
        return values

    measure_costs([tensor], sensitivity, noting, rows_drawn=8, workers=1)
    matrix = sensitivity.matrices["experts"]
    seen = {tuple(np.round(importance, 4)) for importance in given}
    assert seen == {tuple(np.round(row.astype(np.float32), 4)) for row in matrix.importance()}


def test_a_table_that_is_only_looked_up_has_no_importance(tensor, sensitivity):
    looked_up = Matrix(
        np.ones((2, ROWS)),
        np.ones((2, COLUMNS)),
        *(np.zeros((2, COLUMNS)), np.zeros(2), np.zeros(1), np.ones(4)),
    )
    only = Sensitivity("f", "c", TOKENS, {"experts": looked_up})
    given = set()

    def noting(values, type_name, importance):
        given.add(importance)
        return values

    measure_costs([tensor], only, noting, rows_drawn=8)
    assert given == {None}
