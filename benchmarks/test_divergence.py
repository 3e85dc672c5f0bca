"""How far the output distributions move from FP16's."""

import pytest


@pytest.mark.task("divergence")
def test_divergence(variant, measure):
    """Mean KLD, top-1 agreement and RMS delta p on the same tokens."""
    measure()
