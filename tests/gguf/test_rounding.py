"""ggml's own rounding in memory against files that llama.cpp's quantizer wrote."""

import numpy as np
import pytest

from ewq.errors import InputError
from ewq.gguf.rounding import divides, rounded
from tests.gguf.models import require_gguf, shared_gguf


def tensor_values(path, name):
    from gguf import GGUFReader, dequantize

    tensor = next(t for t in GGUFReader(path).tensors if t.name == name)
    return dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


@pytest.mark.parametrize(
    ("recipe", "type_name"), [("Q8_0", "Q8_0"), ("Q4_K_S", "Q4_K"), ("Q2_K", "Q2_K")]
)
def test_values_are_those_of_the_file_bit_by_bit(deep, deep_base, recipe, type_name):
    name = "blk.3.ffn_up.weight"
    in_memory = rounded(tensor_values(deep_base, name), type_name)
    in_file = tensor_values(shared_gguf(deep, recipe), name)
    np.testing.assert_array_equal(in_memory, in_file)


def test_importance_moves_the_error_to_columns_that_matter_less():
    require_gguf()
    values = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    importance = np.ones(256, np.float32)
    importance[:16] = 1000
    plain = ((rounded(values, "Q4_0") - values) ** 2)[:, :16].sum()
    weighted = ((rounded(values, "Q4_0", importance) - values) ** 2)[:, :16].sum()
    assert weighted < 0.9 * plain


def test_rows_that_do_not_divide_are_refused():
    require_gguf()
    assert not divides("Q4_K", 288)
    assert divides("Q5_0", 288)
    with pytest.raises(InputError, match="288 values cannot be stored as Q4_K"):
        rounded(np.zeros((2, 288), np.float32), "Q4_K")
