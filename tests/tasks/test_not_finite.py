"""A model that computes NaN has no score: argmax would call every answer A."""

import numpy as np
import pytest

from ewq.errors import MeasurementError
from ewq.tasks.mmlu_scores import require_finite


def test_nan_is_refused_and_the_question_named():
    logprobs = np.zeros((3, 4), np.float32)
    logprobs[1, 2] = np.nan
    with pytest.raises(MeasurementError, match="question 2 are not finite"):
        require_finite(logprobs, "MMLU")


def test_numbers_pass():
    require_finite(np.zeros((3, 4), np.float32), "MMLU")
