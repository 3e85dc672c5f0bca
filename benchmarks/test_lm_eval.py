"""Tasks of lm-evaluation-harness that ``--ewq-lm-eval`` names."""

import pytest


@pytest.mark.task("lm_eval")
def test_lm_eval(variant, member, measure):
    """Its own prompts, filters and metrics; paired with FP16 document by document."""
    measure()
