"""The Triton kernels in Triton's interpreter, against bitsandbytes' own product.

Run by ``test_int8_kernel.py`` in a process of its own: Triton decides at its import whether it
interprets.
"""

import sys

import pytest
import torch

from ewq.backends import int8_step
from ewq.backends.int8_step import StaticInt8, working_kernel
from tests.backends.test_int8_step import IN, Model, inputs, layer

CPU = torch.device("cpu")
KERNEL = "ewq.backends.int8_kernel"


@pytest.fixture(scope="module")
def kernel():
    found = working_kernel(CPU)
    assert found is not None, "the kernels do not compute what they should"
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("outliers", [[], [0], [90, 5, 17, 4], range(80)], ids=len)
@pytest.mark.parametrize("rows", [1, 3, 8])
@torch.no_grad()
def test_it_is_the_same_product_whatever_the_outliers(kernel, rows, outliers, dtype):
    module, x = layer(dtype), inputs(rows, dtype, outliers)
    found = kernel(x.reshape(rows, IN), module.state.CB, module.state.SCB, module.bias, 6.0)
    expected = module(x).reshape(rows, -1)
    assert found.dtype == expected.dtype
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


@torch.no_grad()
def test_sizes_that_fill_no_tile_and_rows_of_zeros(kernel):
    source = torch.Generator().manual_seed(3)
    weight = torch.randint(-127, 128, (37, 5000), generator=source, dtype=torch.int8)
    scales = torch.rand(37, generator=source)
    x = torch.randn(2, 5000, generator=source)
    x[1] = 0
    found = kernel(x, weight, scales, None, 6.0)
    half = x.half().float()
    largest = half.abs().amax(dim=1, keepdim=True)
    values = torch.round(half[:1] * (1 / largest[:1] * 127)).double()
    expected = (values @ weight.double().T) * scales * largest[0] * 6.200124e-05
    torch.testing.assert_close(found[:1].double(), expected, rtol=1e-5, atol=1e-5)
    assert not found[1].any()


@torch.no_grad()
def test_a_recorded_step_uses_them_and_has_no_limit_on_outliers(kernel, monkeypatch):
    monkeypatch.setattr(int8_step, "OUTLIER_COLUMNS", 2)
    model = Model(layer(torch.float32))
    x = inputs(1, torch.float32, range(20))
    static = StaticInt8(model, with_kernels=True)
    with static.in_force():
        found = model(x)
    static.check()
    torch.testing.assert_close(found, model(x))


@pytest.mark.parametrize("failure", ["wrong", "broken"])
def test_kernels_that_fail_are_left_alone_with_a_word(kernel, monkeypatch, caplog, failure):
    def bad(*arguments):
        if failure == "broken":
            raise RuntimeError("Failed to find C compiler\nmore")
        return kernel(*arguments) * 1.1

    monkeypatch.setattr(sys.modules[KERNEL], "int8_product", bad)
    working_kernel.cache_clear()
    assert working_kernel(CPU) is None
    assert ("C compiler" if failure == "broken" else "differs by 10") in caplog.text
    assert "\n" not in caplog.messages[0]
    working_kernel.cache_clear()
