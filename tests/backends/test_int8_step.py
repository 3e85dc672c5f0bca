"""LLM.int8 in fixed shapes is bitsandbytes' own product, whatever the outliers."""

import pytest
import torch
from bitsandbytes.nn import Linear8bitLt

from ewq.backends import int8_step
from ewq.backends.int8_step import DecoderUnsupported, StaticInt8, int8_product

IN, OUT = 96, 40


def layer(dtype, bias=True, threshold=6.0):
    torch.manual_seed(0)
    plain = torch.nn.Linear(IN, OUT, bias=bias, dtype=dtype)
    made = Linear8bitLt(IN, OUT, bias=bias, has_fp16_weights=False, threshold=threshold)
    made.load_state_dict(plain.state_dict())
    made = made.to("cpu").eval()
    made(torch.zeros(1, IN, dtype=dtype) + 0.1)
    return made


def inputs(rows, dtype, outliers):
    x = torch.randn(rows, 1, IN, generator=torch.Generator().manual_seed(rows), dtype=torch.float32)
    for index, column in enumerate(outliers):
        x[index % rows, 0, column] = 7.0 + index
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("outliers", [[], [3], [90, 5, 17, 4]], ids=len)
@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_it_is_the_same_product(rows, outliers, dtype):
    module, x = layer(dtype), inputs(rows, dtype, outliers)
    exceeded = torch.zeros((), dtype=torch.bool)
    expected = module(x)
    found = int8_product(module, exceeded, x)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert not exceeded


@torch.no_grad()
def test_more_outlier_columns_than_are_computed_are_noticed(monkeypatch):
    monkeypatch.setattr(int8_step, "OUTLIER_COLUMNS", 2)
    model = Model(layer(torch.float32))
    static = StaticInt8(model)
    with static.in_force():
        model(inputs(1, torch.float32, [1, 2]))
    static.check()
    with static.in_force():
        model(inputs(1, torch.float32, [1, 2, 3]))
    with pytest.raises(DecoderUnsupported, match="more than 2 columns"):
        static.check()
    static.reset()
    static.check()


@torch.no_grad()
def test_the_first_outlier_columns_are_taken_once_each():
    """The first column among them: places left over must not count it again."""
    module, x = layer(torch.float32), inputs(1, torch.float32, [0, 1])
    exceeded = torch.zeros((), dtype=torch.bool)
    torch.testing.assert_close(int8_product(module, exceeded, x), module(x))
    module.bias = None
    torch.testing.assert_close(int8_product(module, exceeded, x), module(x))


@torch.no_grad()
def test_a_module_that_never_computed_can_be_recorded():
    torch.manual_seed(0)
    fresh = Linear8bitLt(IN, OUT, has_fp16_weights=False, threshold=6.0)
    fresh.load_state_dict(torch.nn.Linear(IN, OUT).state_dict())
    model = Model(fresh.to("cpu").eval())
    assert fresh.state.CB is None
    x = inputs(1, torch.float32, [3])
    with StaticInt8(model).in_force():
        found = model(x)
    torch.testing.assert_close(found, fresh(x))


@torch.no_grad()
def test_modules_compute_as_before_once_it_is_not_in_force():
    module = layer(torch.float32)
    static = StaticInt8(Model(module))
    with static.in_force():
        assert "forward" in vars(module)
    assert "forward" not in vars(module)


def test_without_a_threshold_bitsandbytes_own_product_serves():
    module = layer(torch.float32, threshold=0.0)
    with StaticInt8(Model(module)).in_force():
        assert "forward" not in vars(module)


class Model(torch.nn.Module):
    device = torch.device("cpu")

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)
