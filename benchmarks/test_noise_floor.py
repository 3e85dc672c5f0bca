"""What moves when nothing changes: the floor below which no difference means anything."""

import pytest


@pytest.mark.task("noise_floor")
@pytest.mark.parametrize("variant", ["fp16"], indirect=True, scope="session")
def test_noise_floor(variant, measure):
    """FP16 asked the same questions twice alike, and once in other batches."""
    measure()
