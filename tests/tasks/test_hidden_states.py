"""References of transformers models: hidden states where their head is known, else in full."""

from contextlib import closing

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from ewq.backends.transformers import TransformersModel
from ewq.data.distributions import Head
from ewq.data.windows import make_windows
from ewq.tasks import divergence
from tests.backends.tiny_models import HEADS, WIDTHS, gemma3, gemma3n, gpt2, llama
from tests.tasks.numpy_model import CharTokenizer
from tests.tasks.test_divergence import DEFINITION, TEXTS


def cohere():
    return CohereForCausalLM(CohereConfig(**WIDTHS | HEADS, logit_scale=0.3, pad_token_id=0))


def granite():
    return GraniteForCausalLM(GraniteConfig(**WIDTHS | HEADS, logits_scaling=3.0))


def phi():
    """A head with a bias, which is not zero here."""
    model = PhiForCausalLM(PhiConfig(**WIDTHS | HEADS))
    torch.nn.init.normal_(model.lm_head.bias)
    return model


ARCHITECTURES = [llama, gemma3, gemma3n, gpt2, cohere, granite, phi]


def make(architecture, dtype=torch.float32):
    torch.manual_seed(7)
    return TransformersModel(architecture().to(dtype), CharTokenizer(adds_bos=True))


def record(model, folder, **options):
    return divergence.record_reference(model, TEXTS, folder, DEFINITION, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_does_not_diverge_from_its_hidden_states(tmp_path, architecture, dtype):
    model = make(architecture, dtype)
    with closing(record(model, tmp_path)) as reference:
        assert reference.head is not None
        assert (reference.rows.dtype, reference.rows.width) == (dtype, 32)
        result = divergence.run(model, reference)
    assert abs(result.metrics["kld_mean"].value) < 1e-6
    assert abs(result.side["kld_max"]) < 1e-6
    assert result.metrics["top1_agreement"].value == 1.0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_give_what_full_distributions_give(tmp_path, architecture, monkeypatch):
    model, other = make(architecture), make(architecture)
    noise = torch.Generator().manual_seed(3)
    for weight in other._model.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=noise)
    with closing(record(model, tmp_path)) as reference:
        model.close()
        found = divergence.run(other, reference)
    monkeypatch.setattr(TransformersModel, "head", None)
    with closing(record(make(architecture), tmp_path)) as reference:
        assert reference.rows.width == 96
        full = divergence.run(other, reference)
    assert full.metrics["kld_mean"].value > 1e-3
    for name, metric in full.metrics.items():
        assert found.metrics[name].value == pytest.approx(metric.value, rel=1e-4, abs=1e-6)


def test_what_was_compared_on_the_way_is_not_computed_again(tmp_path, monkeypatch):
    model = make(llama)
    with closing(record(model, tmp_path)) as reference:
        monkeypatch.setattr(TransformersModel, "logprobs", None)
        result = divergence.run(model, reference)
        assert abs(result.metrics["kld_mean"].value) < 1e-6
        assert result.metrics["kld_mean"].n == reference.rows.count
        with pytest.raises(TypeError):  # Another model, even an equal one, is measured.
            divergence.run(make(llama), reference)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda head: Head(head.weight, scale=1.1),
        lambda head: Head(head.weight[:90]),
        lambda _: None,
    ],
)
def test_a_head_that_gives_other_distributions_is_not_used(tmp_path, wrong, monkeypatch):
    model = make(gemma3)
    window = make_windows(TEXTS, model.tokenizer, DEFINITION)[0]
    assert divergence.working_head(model, window) is not None
    monkeypatch.setattr(TransformersModel, "head", wrong(model.head))
    assert divergence.working_head(model, window) is None
    with closing(record(model, tmp_path)) as reference:
        assert reference.head is None
        result = divergence.run(model, reference)
    assert result.metrics["kld_mean"].value == 0.0
