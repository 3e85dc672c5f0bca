"""MMLU through the real engine: no way of batching may change a letter."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ewq.backends.transformers import load_transformers
from ewq.checkpoint.embedded import fixture_path
from ewq.data.mmlu import LETTERS, load_mmlu
from ewq.errors import MeasurementError
from ewq.tasks import mmlu, mmlu_cloze
from ewq.tasks.mmlu_scores import unpack_logprobs
from tests.backends.tiny_models import plain_model
from tests.tasks.mmlu_fakes import byte_tokenizer

SHOTS = 2


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(bos=True)


@pytest.fixture(scope="module")
def data():
    return first(load_mmlu(fixture_path("mmlu")), subjects=3, questions=4)


def first(data, subjects, questions):
    rows = islice(data.by_subject(), subjects)
    return replace(data, test=tuple(q for _, own in rows for q in own[:questions]))


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder, tokenizer, data):
    """Every question alone: whole prompt, one forward pass, four letters."""
    model = plain_model(folder)
    columns = [tokenizer.convert_tokens_to_ids(f"Ġ{letter}") for letter in LETTERS]
    rows = []
    for q in data.test:
        prompt = mmlu.preamble(q.subject, data.dev[q.subject][:SHOTS]) + mmlu.question_text(q)
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer.encode(prompt)])).logits[0, -1]
        rows.append(logits.log_softmax(-1)[columns].numpy())
    return np.array(rows)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_tokens": 1},
        {"batch_tokens": 100_000},
    ],
    ids=["default", "one by one", "all together"],
)
def test_every_way_of_batching_gives_the_naive_answers(folder, tokenizer, data, expected, options):
    model = load_transformers(folder, tokenizer=tokenizer, **options)
    result = mmlu.run(model, data, shots=SHOTS)
    logprobs = unpack_logprobs(result.side["logprobs"])
    np.testing.assert_allclose(logprobs, expected, atol=2e-4)
    assert (logprobs.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("task", [mmlu, mmlu_cloze], ids=["mmlu", "cloze"])
def test_the_same_run_twice_is_identical(folder, tokenizer, data, task):
    results = []
    for _ in range(2):
        model = load_transformers(folder, tokenizer=tokenizer)
        results.append(task.run(model, first(data, subjects=3, questions=2)))
        model.close()
    assert results[0].items == results[1].items
    assert results[0].side == results[1].side
    assert results[0].metrics == results[1].metrics


def test_a_context_too_short_names_question_and_lengths(folder, tokenizer, data):
    model = load_transformers(folder, tokenizer=tokenizer)
    model.info = replace(model.info, context_length=300)
    with pytest.raises(MeasurementError, match=r"anatomy question 1: \d+ tokens exceed .* 300"):
        mmlu.run(model, data, shots=5)
