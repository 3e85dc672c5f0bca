"""What every LanguageModel promises, tested alike on every engine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from ewq.backends.transformers import load_transformers
from ewq.checkpoint.embedded import fixture_path
from ewq.errors import EwqError, MeasurementError
from ewq.model import LanguageModel
from tests.backends.tiny_models import (
    ARCHITECTURES,
    NoTokenizer,
    expected_tokens,
    naive_greedy,
    naive_logprobs,
    plain_model,
    random_ids,
    save_tiny,
)
from tests.gguf.models import shared_gguf

SUFFIX_LENGTHS = (5, 9, 1, 30, 7, 7, 2)


@dataclass(frozen=True)
class Engine:
    """An engine with the checkpoint that plain forward passes of transformers judge it by."""

    folder: Path
    load: Callable[[], LanguageModel]
    tolerance: float
    """Nats by which a log-probability may differ."""


def transformers_engine(architecture, scratch):
    folder = save_tiny(architecture, scratch)
    return Engine(folder, lambda: load_transformers(folder, tokenizer=NoTokenizer()), 2e-4)


def llama_cpp_engine():
    from ewq.backends.llama_cpp import load_llama_cpp

    folder = fixture_path("tiny-llama")
    file = shared_gguf(folder, "F16")
    # Weights and cache are rounded to float16.
    return Engine(folder, lambda: load_llama_cpp(file, NoTokenizer(), threads=1), 0.05)


@pytest.fixture(scope="module", params=[*sorted(ARCHITECTURES), "llama.cpp"])
def engine(request, tmp_path_factory):
    if request.param == "llama.cpp":
        return llama_cpp_engine()
    return transformers_engine(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def model(engine):
    model = engine.load()
    yield model
    model.close()


@pytest.fixture(scope="module")
def folder(engine):
    return engine.folder


@pytest.fixture
def prompts():
    rng = np.random.default_rng(3)
    return random_ids(rng, 20), [random_ids(rng, length) for length in SUFFIX_LENGTHS]


def test_last_logprobs_equal_one_pass_per_prompt(engine, folder, model, prompts):
    prefix, suffixes = prompts
    columns = [3, 50, 4]
    expected = [naive_logprobs(folder, prefix + suffix)[-1, columns] for suffix in suffixes]
    scored = model.last_logprobs(prefix, suffixes, columns)
    assert scored.dtype == np.float32
    np.testing.assert_allclose(scored, expected, atol=engine.tolerance)


@pytest.mark.parametrize("prefix_length", [0, 1, 2])
def test_short_prefixes_are_no_special_case(engine, folder, model, prompts, prefix_length):
    prefix, suffixes = prompts[0][:prefix_length], prompts[1]
    expected = [naive_logprobs(folder, prefix + suffix)[-1, [3, 4]] for suffix in suffixes]
    np.testing.assert_allclose(
        model.last_logprobs(prefix, suffixes, [3, 4]), expected, atol=engine.tolerance
    )


def test_a_suffix_may_be_empty(engine, folder, model, prompts):
    expected = naive_logprobs(folder, prompts[0])[-1, [3, 4]]
    scored = model.last_logprobs(prompts[0], [[], prompts[1][0]], [3, 4])
    np.testing.assert_allclose(scored[0], expected, atol=engine.tolerance)


def test_no_suffixes_give_no_rows(model, prompts):
    assert model.last_logprobs(prompts[0], [], [3, 4]).shape == (0, 2)


def test_token_logprobs_equal_one_pass_per_suffix(engine, folder, model, prompts):
    prefix, suffixes = prompts
    scored = model.token_logprobs(prefix, suffixes)
    for suffix, values in zip(suffixes, scored, strict=True):
        np.testing.assert_allclose(
            values, expected_tokens(folder, prefix, suffix), atol=engine.tolerance
        )


def test_token_logprobs_of_an_empty_suffix_are_empty(model, prompts):
    assert [len(values) for values in model.token_logprobs(prompts[0], [[], [5]])] == [0, 1]


@pytest.mark.parametrize("lengths", [[20, 19, 20, 3, 1, 40, 20], [1, 1], [5]], ids=str)
def test_continuations_of_many_prefixes_equal_those_of_each(
    engine, folder, model, prompts, lengths
):
    rng = np.random.default_rng(4)
    prefixes = [random_ids(rng, length) for length in lengths]
    given = [prompts[1][start : start + 1 + start % 4] for start in range(len(lengths))]
    asked = [*zip(prefixes, given, strict=True), (prompts[0], []), (prompts[0], [[], [7]])]
    scored = model.continuation_scores(asked)
    assert [list(map(len, each)) for each in scored] == [
        list(map(len, suffixes)) for _, suffixes in asked
    ]
    for (prefix, suffixes), each in zip(asked, scored, strict=True):
        for suffix, values in zip(suffixes, each, strict=True):
            expected = expected_tokens(folder, prefix, suffix) if suffix else []
            np.testing.assert_allclose(values[:, 0], expected, atol=engine.tolerance)
    assert model.continuation_scores([]) == []


def test_scores_say_which_tokens_greedy_decoding_would_have_chosen(folder, model, prompts):
    prefix = prompts[0]
    chosen = list(naive_greedy(folder, prefix, 4))
    other = [*chosen[:2], 3 if chosen[2] != 3 else 4]
    for suffix, greedy in ((chosen, [1, 1, 1, 1]), (other, [1, 1, 0]), ([], [])):
        [[scores]] = model.continuation_scores([(prefix, [suffix])])
        [plain] = model.token_logprobs(prefix, [suffix])
        assert scores.shape == (len(suffix), 2)
        assert scores[:, 0].tolist() == plain.tolist()
        assert scores[:, 1].tolist() == greedy[: len(suffix)]


def test_scores_of_suffixes_longer_than_a_block_are_the_same(model, prompts, monkeypatch):
    prefix, suffixes = prompts
    [whole] = model.continuation_scores([(prefix, suffixes)])
    monkeypatch.setattr("ewq.backends.transformers.LOGIT_BLOCK_BYTES", 4 * model.info.vocab_size)
    [again] = model.continuation_scores([(prefix, suffixes)])
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("start", [1, 2, 30])
def test_logprobs_yields_every_distribution_in_order(engine, folder, model, prompts, start):
    ids = prompts[0] + prompts[1][3]
    blocks = list(model.logprobs(ids, start))
    assert all(block.dtype == torch.float32 for block in blocks)
    distributions = torch.cat(blocks).numpy()
    np.testing.assert_allclose(
        distributions, naive_logprobs(folder, ids)[start - 1 : -1], atol=engine.tolerance
    )


def test_scoring_twice_gives_the_same_bits(model, prompts):
    first, second = (model.last_logprobs(*prompts, [3, 4, 5]) for _ in range(2))
    assert np.array_equal(first, second)


def test_generate_is_greedy_and_of_fixed_length(folder, model, prompts):
    pair = [prompts[0][:8], prompts[0][8:16]]
    generation = model.generate(pair, 6)
    assert generation.tokens == tuple(naive_greedy(folder, prompt, 6) for prompt in pair)
    assert len(generation.step_s) == 5
    assert generation.first_token_s > 0
    assert all(seconds > 0 for seconds in generation.step_s)


def test_prompts_of_several_lengths_are_continued_as_each_alone(folder, model, prompts):
    ragged = [prompts[0][:8], prompts[0][3:5], prompts[0], [5]]
    generation = model.generate(ragged, 6)
    assert generation.tokens == tuple(naive_greedy(folder, prompt, 6) for prompt in ragged)
    assert len(generation.step_s) == 5


def test_generation_ends_where_it_is_told_to(model, prompts):
    pair, seen = [prompts[0][:8], prompts[0][8:16]], []

    def stop(tokens):
        seen.append([len(row) for row in tokens])
        return len(tokens[0]) == 3

    stopped = model.generate(pair, 6, stop)
    assert stopped.tokens == tuple(row[:3] for row in model.generate(pair, 6).tokens)
    assert len(stopped.step_s) == 2
    assert seen == [[1, 1], [2, 2], [3, 3]]


def test_one_new_token_has_no_decode_steps(model, prompts):
    assert model.generate([prompts[0]], 1).step_s == ()


def test_info_states_the_shape(folder, model):
    config = AutoConfig.from_pretrained(folder)
    assert model.info.context_length == config.max_position_embeddings
    assert model.info.vocab_size == config.vocab_size
    assert model.info.weights_bytes * 8 / model.info.bits_per_weight == pytest.approx(
        plain_model(folder).num_parameters(), rel=1e-3
    )


def test_settings_are_those_of_the_engine_that_ran(model):
    assert model.settings["engine"] == model.info.engine
    if model.info.engine == "llama.cpp":
        own = {"cache_type_k": "F16", "cache_type_v": "F16", "flash_attention": "auto"}
        batches = {"batch_tokens": 512, "ubatch_tokens": 512}
    else:
        own, batches = {"decode_mode": "eager"}, {"batch_tokens": 8192}
    shared = {"engine": model.info.engine, "dtype": "float32"}
    assert model.settings == {**shared, **batches, **own}


def too_long(model, use):
    context = model.info.context_length
    long = [3 + i % 80 for i in range(context + 5)]
    return {
        "last_logprobs": lambda: model.last_logprobs(long[:5], [long], [3]),
        "token_logprobs": lambda: model.token_logprobs(long[:5], [long]),
        "logprobs": lambda: list(model.logprobs(long, 1)),
        "generate": lambda: model.generate([long[:100]], context),
    }[use]


@pytest.mark.parametrize("use", ["last_logprobs", "token_logprobs", "logprobs", "generate"])
def test_what_exceeds_the_context_is_an_error_with_both_lengths(model, use):
    with pytest.raises(MeasurementError, match=rf"\d+ tokens.*{model.info.context_length}"):
        too_long(model, use)()


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda m: m.token_logprobs([], [[3]]), id="token_logprobs without prefix"),
        pytest.param(lambda m: m.last_logprobs([], [[]], [3]), id="no token at all"),
        pytest.param(lambda m: list(m.logprobs([3, 4], 0)), id="start 0"),
        pytest.param(lambda m: list(m.logprobs([3, 4], 2)), id="start past the end"),
        pytest.param(lambda m: m.generate([[3], []], 2), id="an empty prompt"),
        pytest.param(lambda m: m.generate([], 2), id="no prompt"),
        pytest.param(lambda m: m.generate([[3]], 0), id="no new tokens"),
    ],
)
def test_bad_requests_are_refused(model, call):
    with pytest.raises(EwqError):
        call(model)


def test_closing_twice_is_harmless_and_use_afterwards_is_not(engine):
    model = engine.load()
    model.close()
    model.close()
    with pytest.raises(MeasurementError, match="closed"):
        model.last_logprobs([3], [[4]], [5])
    with pytest.raises(MeasurementError, match="closed"):
        model.generate([[3]], 2)
