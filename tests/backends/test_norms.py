"""Fused norms are transformers' own within rounding; norms of another formula are left alone."""

import pytest
import torch
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from ewq.backends import norms
from ewq.backends.norms import fused_norms

WIDTH = 96
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Gemmas(LlamaRMSNorm):
    """Gemma's formula under Llama's names."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) * (1.0 + self.weight) / self.weight


def made(kind, dtype):
    module = kind(WIDTH).to(dtype)
    torch.manual_seed(0)
    module.weight.data.uniform_(0.2, 2.0)
    return module


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
@torch.no_grad()
def test_fused_norms_round_where_transformers_does(kind, dtype):
    module = made(kind, dtype)
    x = 5 * torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    [(found, forward)] = fused_norms(torch.nn.Sequential(module))
    assert found is module
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(forward(x), module(x), rtol=eps, atol=0.0)
    # A product rounded once, which is another one, would differ in a tenth of all places.
    assert (forward(x) != module(x)).float().mean() < 0.02


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "kind",
    [GemmaRMSNorm, Gemma3RMSNorm, Gemmas, CohereLayerNorm, torch.nn.LayerNorm,
     Qwen3NextRMSNormGated],
)  # fmt: skip
def test_other_norms_are_left_alone(kind, dtype):
    assert fused_norms(torch.nn.Sequential(made(kind, dtype))) == []


def test_a_kernel_that_computes_something_else_is_not_taken(monkeypatch):
    monkeypatch.setattr(norms, "rms_norm", lambda x, *_: x)
    assert fused_norms(torch.nn.Sequential(made(LlamaRMSNorm, torch.float16))) == []
