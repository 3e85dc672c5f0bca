"""Prefill and decode speed, and time to first token."""

import pytest


@pytest.mark.task("throughput")
@pytest.mark.benchmark(disable_gc=True)
def test_throughput(variant, measure):
    """Synchronised clocks, fixed lengths; the ratio to FP16 of the same session."""
    measure()
