"""Error-compensating rounding: valid tensors whose products with the inputs are closer."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gguf.models import require_gguf

require_gguf()

from ewq.gguf.gptq import CODED, codes_of, round_matrix  # noqa: E402
from ewq.gguf.rounding import block_size, pack, rounded, unpack  # noqa: E402

ROWS, COLUMNS = 24, 512
BITS = {"Q2_K": 2, "Q3_K": 3, "Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q6_K": 6, "Q8_0": 8}
"""Bits of a value's code; 4 elsewhere."""


@pytest.fixture(scope="module")
def weight():
    return np.random.default_rng(1).standard_normal((ROWS, COLUMNS)).astype(np.float32)


@pytest.fixture(scope="module")
def moments():
    """Of correlated inputs of very different size."""
    rng = np.random.default_rng(2)
    mixed = rng.standard_normal((2048, COLUMNS)) @ rng.standard_normal((COLUMNS, COLUMNS))
    inputs = (mixed * rng.uniform(0.1, 1, COLUMNS)).astype(np.float32)
    return inputs.T @ inputs / len(inputs)


def output_error(values, weight, moments):
    """Mean squared change of the products with the inputs."""
    change = values - weight
    return float(np.einsum("ij,jk,ik->", change, moments, change))


@pytest.mark.parametrize("type_name", sorted(CODED))
def test_products_change_by_less_than_with_ggml_and_its_importance(type_name, weight, moments):
    ours = unpack(round_matrix(weight, moments, type_name), type_name)
    theirs = rounded(weight, type_name, moments.diagonal())
    assert output_error(ours, weight, moments) < 0.75 * output_error(theirs, weight, moments)


def test_codebooks_are_compensated_block_by_block(weight, moments):
    ours = unpack(round_matrix(weight, moments, "IQ3_S"), "IQ3_S")
    theirs = rounded(weight, "IQ3_S", moments.diagonal())
    assert output_error(ours, weight, moments) < 0.95 * output_error(theirs, weight, moments)


@pytest.mark.parametrize("type_name", sorted(CODED))
def test_codes_are_found_where_they_lie(type_name):
    codes = codes_of(type_name)
    bits = BITS.get(type_name, 4)
    assert codes.places.shape == (block_size(type_name), bits)
    assert len(np.unique(codes.places)) == codes.places.size
    assert sorted(codes.order) == list(range(2**bits))
    assert codes.levels[0] == 0
    assert codes.levels[-1] == 1
    assert (np.diff(codes.levels) > 0).all()


@pytest.mark.parametrize("type_name", sorted(CODED))
def test_without_correlations_every_value_takes_the_nearest_of_its_levels(type_name):
    size = block_size(type_name)
    weight = np.random.default_rng(3).standard_normal((4, size)).astype(np.float32)
    packed = round_matrix(weight, np.eye(size, dtype=np.float32), type_name)
    # Scales are ggml's own, so every level of a block can be written down.
    own = pack(weight, type_name, np.ones(size, np.float32))
    codes = codes_of(type_name)
    levels = np.stack([codes.filled(own, code) for code in range(len(codes.order))])
    nearest = np.abs(levels - weight).min(axis=0)
    np.testing.assert_allclose(np.abs(unpack(packed, type_name) - weight), nearest, atol=1e-6)


def test_columns_that_were_never_used_are_no_obstacle(weight, moments):
    unused = moments.copy()
    unused[:40] = unused[:, :40] = 0
    packed = round_matrix(weight, unused, "Q4_0")
    assert np.abs(unpack(packed, "Q4_0") - weight)[:, :32].max() < 0.5
    zeros = unpack(round_matrix(weight, np.zeros_like(moments), "Q4_0"), "Q4_0")
    assert np.linalg.norm(zeros - weight) < 0.15 * np.linalg.norm(weight)


def test_rows_do_not_depend_on_each_other(weight, moments):
    many = np.tile(weight, (50, 1))
    whole = round_matrix(many, moments, "Q4_K")
    np.testing.assert_array_equal(whole[-ROWS:], round_matrix(weight, moments, "Q4_K"))
