"""How far the output distributions move from FP16's."""

import pytest


@pytest.mark.task("divergence")
def test_divergence(variant, measure):
    """Mean KLD, top-1 agreement and RMS delta p on the same tokens."""
    measure()


@pytest.mark.task("divergence_at")
def test_divergence_at(variant, member, measure):
    """The same deep in a context (``--ewq-depth``) and on FP16's own answers (``--ewq-chat``)."""
    measure()
