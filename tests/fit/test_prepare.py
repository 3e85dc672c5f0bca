"""What a model is calibrated on, and what is kept of it."""

import pytest

from ewq.checkpoint.embedded import fixture_path
from ewq.checkpoint.opening import open_checkpoint
from ewq.fit.prepare import calibrate
from ewq.sensitivity.calibration import Calibrating


@pytest.mark.parametrize("data_free", [False, True])
def test_no_sequence_exceeds_the_context(data_free):
    checkpoint = open_checkpoint(fixture_path("tiny-llama"))
    longest = checkpoint.config["max_position_embeddings"]
    made = calibrate(checkpoint, Calibrating(tokens=2 * longest, data_free=data_free))
    assert max(map(len, made.sequences)) == longest
