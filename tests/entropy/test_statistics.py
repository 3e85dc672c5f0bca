"""Statistics against closed forms, and against brute force in float64."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ewq.entropy import WeightStatistics
from ewq.entropy.statistics import NotFiniteError, measure_floats, measure_patterns

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
DTYPES = list(TORCH)


def measured(tensor: torch.Tensor, dtype: str, in_features: int | None = None) -> WeightStatistics:
    """Statistics of a tensor after rounding it to ``dtype``."""
    cast = tensor.to(TORCH[dtype]).reshape(-1)
    if dtype in ("BF16", "F16"):
        return measure_patterns([bits(cast)], dtype)
    return measure_floats(lambda: [cast.numpy()], in_features or cast.numel())


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.reshape(-1).view(torch.int16).numpy().view(np.uint16)


def brute_force(tensor: torch.Tensor) -> dict[str, float]:
    """Every statistic in float64 from the values themselves, by textbook formulas."""
    narrow = tensor.reshape(-1)
    as_numpy = (narrow if narrow.dtype == torch.float64 else narrow.float()).numpy()
    counts, _ = np.histogram(as_numpy, bins=256)
    shares = counts[counts > 0] / counts.sum()
    wide = narrow.double()
    logs = wide - torch.logsumexp(wide, 0)
    deviation = wide - wide.mean()
    variance = float((deviation**2).mean())
    return {
        "minimum": float(wide.min()),
        "maximum": float(wide.max()),
        "mean": float(wide.mean()),
        "variance": variance,
        "kurtosis": float((deviation**4).mean()) / variance**2 if variance else 0.0,
        "histogram_entropy": float(-np.sum(shares * np.log2(shares))),
        "softmax_entropy": float(-(logs.exp() * logs).sum()),
    }


def assert_equal(found: WeightStatistics, expected: dict[str, float], tolerance: float) -> None:
    values = asdict(found)
    assert {key: values[key] for key in expected} == pytest.approx(
        expected, abs=tolerance, rel=tolerance
    )
    assert found.histogram_entropy == pytest.approx(expected["histogram_entropy"], abs=1e-12, rel=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_a_constant_weight_has_no_information(dtype: str, value: float):
    found = measured(torch.full((64, 96), value), dtype)

    assert (found.minimum, found.maximum, found.mean) == (value, value, value)
    assert (found.variance, found.kurtosis, found.histogram_entropy) == (0.0, 0.0, 0.0)
    assert found.softmax_entropy == pytest.approx(math.log(64 * 96), abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.5, 0.25, 1 / 1024])
def test_two_values_have_binary_entropy(dtype: str, share: float):
    n = 4096
    ones = int(n * share)
    found = measured(torch.cat([torch.ones(ones), torch.zeros(n - ones)]), dtype)

    mass = ones * math.e + (n - ones)
    assert found.histogram_entropy == pytest.approx(
        -share * math.log2(share) - (1 - share) * math.log2(1 - share), abs=1e-12
    )
    assert found.softmax_entropy == pytest.approx(math.log(mass) - ones * math.e / mass, abs=1e-11)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_constant_too_large_for_bins_around_it_has_no_information(dtype: str):
    """NumPy refuses to make bins from ``c - 1/2`` to ``c + 1/2`` here."""
    found = measured(torch.full((8, 64), 2.0**126), dtype)

    assert (found.histogram_entropy, found.variance, found.mean) == (0.0, 0.0, 2.0**126)


EXTREMES = {
    "neighbours": (1.0, 1.0 + 2**-23),
    "denormals": (0.0, 2.0**-149),
    "the whole range": (-3.4e38, 3.4e38),
}


@pytest.mark.parametrize("case", EXTREMES)
def test_values_that_float32_has_no_bins_for_are_binned_in_float64(case: str):
    low, high = EXTREMES[case]
    found = measured(torch.tensor([low, high, high, high]).repeat(32), "F32")

    assert found.histogram_entropy == pytest.approx(-0.75 * math.log2(0.75) + 0.5, abs=1e-12)


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_a_uniform_weight_fills_all_bins_equally(dtype: str):
    found = measured(torch.arange(256 * 64, dtype=torch.float64) / 2**14, dtype)

    assert found.histogram_entropy == pytest.approx(8.0, abs=1e-12)
    assert found.variance == pytest.approx(1 / 12, rel=1e-6)
    assert found.kurtosis == pytest.approx(1.8, rel=1e-6)


@pytest.mark.parametrize("spread", [0.01, 0.02, 0.05])
def test_small_normal_weights_lose_half_their_variance(spread: float):
    tensor = torch.randn(2**20, generator=torch.Generator().manual_seed(1)) * spread
    found = measured(tensor, "F32")

    expected = math.log(tensor.numel()) - found.variance / 2
    assert found.softmax_entropy == pytest.approx(expected, abs=2e-6)
    assert found.kurtosis == pytest.approx(3.0, abs=0.03)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_agrees_with_float64_brute_force_on_16_8_million_values(dtype: str):
    tensor = (torch.randn(4096, 4096, generator=torch.Generator().manual_seed(2)) * 0.02).to(
        TORCH[dtype]
    )

    found = measured(tensor, dtype, in_features=4096)

    assert found.numel == 16_777_216
    assert_equal(found, brute_force(tensor), 1e-9)


WEIGHTS = hnp.arrays(
    np.float32, st.integers(1, 300), elements=st.floats(-8, 8, width=16, allow_subnormal=True)
)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=60)
@given(values=WEIGHTS)
def test_any_weight_agrees_with_brute_force(dtype: str, values: np.ndarray):
    tensor = torch.from_numpy(values).to(TORCH[dtype])
    expected = brute_force(tensor)
    # A variance at the edge of float64 leaves no digits for a ratio of powers of it.
    if expected["variance"] < 1e-12:
        del expected["kurtosis"]

    assert_equal(measured(tensor, dtype), expected, 1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=30)
@given(values=WEIGHTS, seed=st.integers(0, 2**16))
def test_order_does_not_matter(dtype: str, values: np.ndarray, seed: int):
    shuffled = np.random.default_rng(seed).permutation(values)

    one = asdict(measured(torch.from_numpy(values), dtype))
    other = asdict(measured(torch.from_numpy(shuffled), dtype))

    assert one == pytest.approx(other, rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(values=WEIGHTS)
def test_entropies_stay_within_their_bounds(values: np.ndarray):
    found = measured(torch.from_numpy(values), "F16")

    assert 0 <= found.histogram_entropy <= 8
    assert -1e-12 <= found.softmax_entropy <= math.log(values.size) + 1e-12


@settings(deadline=None, max_examples=30)
@given(values=WEIGHTS, shift=st.integers(-4, 4))
def test_softmax_entropy_ignores_a_shift(values: np.ndarray, shift: int):
    wide = torch.from_numpy(values.astype(np.float64))

    assert measured(wide + shift, "F64").softmax_entropy == pytest.approx(
        measured(wide, "F64").softmax_entropy, abs=1e-9
    )


def test_folding_a_gain_into_a_weight_changes_softmax_entropy_only():
    tensor = torch.randn(256, 256, generator=torch.Generator().manual_seed(3)) * 0.02

    one, folded = measured(tensor, "F32"), measured(tensor * 8, "F32")

    assert folded.histogram_entropy == pytest.approx(one.histogram_entropy, abs=1e-12)
    assert folded.softmax_entropy < one.softmax_entropy - 0.01


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_finite_pattern_is_read_as_torch_reads_it(dtype: str):
    patterns = torch.from_numpy(np.arange(65536, dtype=np.uint16).view(np.int16))
    values = patterns.view(TORCH[dtype])
    finite = values[torch.isfinite(values.float())]

    found = measured(finite, dtype)

    wide = finite.double()
    assert (found.numel, found.minimum, found.maximum) == (len(wide), wide.min(), wide.max())
    assert found.variance == pytest.approx(float(wide.var(unbiased=False)), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(dtype: str, value: float):
    tensor = torch.zeros(1000)
    tensor[777] = value

    with pytest.raises(NotFiniteError):
        measured(tensor, dtype)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_weight_in_parts_is_measured_as_a_whole(dtype: str):
    tensor = torch.randn(4, 63, 127, generator=torch.Generator().manual_seed(6)).to(TORCH[dtype])

    assert measure_patterns(map(bits, tensor), dtype) == measured(tensor, dtype)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_torch_device_counts_the_same(dtype: str):
    tensor = (torch.randn(96, 201, generator=torch.Generator().manual_seed(7)) * 0.02).to(
        TORCH[dtype]
    )

    assert measure_patterns(map(bits, tensor), dtype, "cpu") == measured(tensor, dtype)
