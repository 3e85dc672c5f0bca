"""Greedy continuations of a few prompts, to be read."""

import pytest


@pytest.mark.task("samples")
def test_samples(variant, measure):
    """The share of tokens equal to FP16's, and the texts beside the figures."""
    measure()
