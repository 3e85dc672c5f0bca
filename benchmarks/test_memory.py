"""What the weights weigh, and what running takes."""

import pytest


@pytest.mark.task("memory")
def test_memory(variant, measure):
    """One instrument for every engine on a device."""
    measure()
