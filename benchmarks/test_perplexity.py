"""Perplexity and bits per byte, per domain and overall."""

import pytest


@pytest.mark.task("perplexity")
def test_perplexity(variant, measure):
    """Paired with FP16 window by window."""
    measure()
