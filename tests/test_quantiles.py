import numpy as np
import pytest
from scipy.stats import beta

from ewq.errors import MeasurementError
from ewq.stats import quantile


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_error_is_the_spread_over_repeated_samples(share):
    rng = np.random.default_rng(0)
    samples = rng.exponential(size=(400, 2000))
    values = [quantile(sample, share)[0] for sample in samples]
    errors = [quantile(sample, share)[1] for sample in samples]
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.25)


def test_value_is_numpys_quantile():
    values = [5.0, 1.0, 2.0, 9.0, 4.0]
    assert quantile(values, 0.1)[0] == pytest.approx(np.quantile(values, 0.1))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_five_rounds_are_enough_for_an_error(share):
    _, stderr = quantile([1.0, 1.1, 0.9, 1.05, 0.95], share)
    assert 0.01 < stderr < 0.1


def test_equal_values_have_no_spread():
    assert quantile([3.0] * 7, 0.9) == (3.0, 0.0)


@pytest.mark.parametrize(("values", "share"), [([1.0], 0.5), ([1.0, 2.0], 1.0)], ids=["n", "share"])
def test_too_little_is_an_error(values, share):
    with pytest.raises(MeasurementError, match="quantile"):
        quantile(values, share)


def test_two_values_are_enough_for_an_error():
    value, stderr = quantile([1.0, 3.0], 0.5)
    assert value == 2.0
    assert 0 < stderr <= 1.0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_error_is_the_spread_of_order_statistics(share):
    """Maritz and Jarrett, with the beta distribution of scipy instead of its integral."""
    ordered = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    edges = beta.cdf(np.arange(6) / 5, 6 * share, 6 * (1 - share))
    weights = np.diff(edges)
    first, second = weights @ ordered, weights @ ordered**2
    assert quantile(ordered[::-1], share)[1] == pytest.approx((second - first**2) ** 0.5)
