import pytest
import torch

from ewq.backends.log_softmax import log_softmax


@pytest.mark.parametrize("vocabulary", [96, 262_144])
def test_it_is_exact_to_float32_whatever_the_vocabulary(vocabulary):
    logits = 3 * torch.randn((8, vocabulary), generator=torch.Generator().manual_seed(1))
    exact = logits.double().log_softmax(-1)
    assert (log_softmax(logits) - exact).abs().max() < 5e-6


def test_it_leaves_the_logits_as_they_are():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    log_softmax(logits)
    assert logits.tolist() == [[1.0, 2.0, 3.0]]
