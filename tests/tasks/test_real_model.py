"""Perplexity, divergence and samples of a real transformers model against plain forward passes."""

import math
from contextlib import closing

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ewq.backends.transformers import TransformersModel
from ewq.data.texts import Document, text_set
from ewq.data.windows import DEFINITIONS, make_windows
from ewq.tasks import divergence, perplexity, samples
from tests.tasks.numpy_model import VOCABULARY, CharTokenizer

TEXTS = text_set(
    [
        Document("prose", "1", "it was a dark night, and the rain fell.\nnobody came " * 2),
        Document("viet", "1", "trơi đê, ăn cơm chưa\nâm " * 3),
    ]
)


def tiny_llama(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def llama():
    return tiny_llama(0)


@pytest.fixture
def model(llama):
    return TransformersModel(llama, CharTokenizer(adds_bos=True))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_perplexity_agrees_with_single_forward_passes(llama, model, name):
    definition = DEFINITIONS[name].with_window(24)
    nll = []
    for window in make_windows(TEXTS, model.tokenizer, definition):
        with torch.inference_mode():
            logprobs = llama(torch.tensor([window.ids])).logits[0].double().log_softmax(-1)
        nll += [
            -float(logprobs[position - 1, window.ids[position]])
            for position in range(window.start, len(window.ids))
        ]
    metric = perplexity.run(model, TEXTS, definition).metrics["perplexity"]
    assert metric.value == pytest.approx(math.exp(math.fsum(nll) / len(nll)), rel=1e-5, abs=1e-4)
    assert metric.n == len(nll)


def test_divergence_is_nothing_from_itself_and_something_from_another(model, tmp_path):
    definition = DEFINITIONS["disjoint"].with_window(24)
    other = TransformersModel(tiny_llama(1), CharTokenizer(adds_bos=True))
    with closing(divergence.record_reference(model, TEXTS, tmp_path, definition)) as reference:
        itself, far = (divergence.run(m, reference) for m in (model, other))
    assert abs(itself.metrics["kld_mean"].value) < 1e-6
    assert far.metrics["kld_mean"].value > 0.1


def test_a_model_repeats_its_own_samples(model):
    prompts = {"greeting": "hello there", "question": "is it"}
    runs = [samples.run(model, new_tokens=12, prompts=prompts) for _ in range(2)]
    assert runs[0] == runs[1]
    assert samples.pair(*runs)["samples_token_agreement"].value == 1.0
