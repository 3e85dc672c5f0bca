"""llama.cpp as a LanguageModel, against transformers on the same weights and against itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ewq.backends.llama_cpp import group_by_tokens
from ewq.backends.llama_cpp import load_llama_cpp as load_any
from ewq.backends.transformers import load_transformers
from ewq.checkpoint.embedded import fixture_path
from ewq.errors import BackendUnavailable, CheckpointError, InputError, MeasurementError
from ewq.gguf import llama_native
from tests.gguf.models import save_llama, shared_gguf

ROUNDING = 0.02
"""Nats by which float16 matrix products of another batch shape may move a log-probability."""


def load_llama_cpp(path, tokenizer, **options):
    """One thread: two would wait for each other on a busy machine."""
    return load_any(path, tokenizer, threads=1, **options)


@pytest.fixture(scope="module")
def file():
    return shared_gguf(fixture_path("tiny-llama"), "F16")


@pytest.fixture(scope="module")
def reference():
    model = load_transformers(fixture_path("tiny-llama"))
    yield model
    model.close()


@pytest.fixture(scope="module")
def model(file, reference):
    model = load_llama_cpp(file, reference.tokenizer)
    yield model
    model.close()


@pytest.fixture(scope="module")
def ids(reference):
    text = next(iter(sorted(fixture_path("texts").rglob("*.txt")))).read_text(encoding="utf-8")
    return reference.tokenizer(text * 4)["input_ids"][:1200]


def kld(p, q):
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_the_same_weights_give_the_same_distributions(model, reference, ids):
    ours = torch.cat(list(model.logprobs(ids, 1)))
    theirs = torch.cat(list(reference.logprobs(ids, 1)))
    assert ours.shape == theirs.shape == (len(ids) - 1, model.info.vocab_size)
    assert kld(theirs, ours) < 1e-4
    torch.testing.assert_close(ours.exp().sum(-1), torch.ones(len(ours)), atol=1e-4, rtol=0)


def test_info_agrees_with_the_file_and_with_transformers(model, reference, file):
    assert model.info.engine == "llama.cpp"
    assert model.info.context_length == reference.info.context_length
    assert model.info.vocab_size == reference.info.vocab_size
    assert model.info.weights_bytes < file.stat().st_size
    assert 16 < model.info.bits_per_weight < 16.2


@pytest.mark.parametrize("start", [1, 2, 100, 1199])
def test_logprobs_start_where_asked(model, ids, start):
    rows = torch.cat(list(model.logprobs(ids, start)))
    assert len(rows) == len(ids) - start
    whole = torch.cat(list(model.logprobs(ids, 1)))[start - 1 :]
    torch.testing.assert_close(rows, whole, atol=ROUNDING, rtol=0)


LENGTHS = (5, 0, 1, 30, 600, 70, 2, 9)


@pytest.mark.parametrize("prefix_length", [1, 2, 150, 700])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_shared_prefixes_change_nothing(file, reference, ids, prefix_length, rows, monkeypatch):
    monkeypatch.setattr(llama_native, "BATCH_TOKENS", 256)
    monkeypatch.setattr(llama_native, "MAX_ROWS", rows)
    model = load_llama_cpp(file, reference.tokenizer)
    prefix = ids[:prefix_length]
    suffixes = [ids[200 + i : 200 + i + n] for i, n in enumerate(LENGTHS)]
    last = model.last_logprobs(prefix, suffixes, [3, 50, 4])
    expected = reference.last_logprobs(prefix, suffixes, [3, 50, 4])
    np.testing.assert_allclose(last, expected, atol=ROUNDING)
    scored = model.token_logprobs(prefix, suffixes)
    for ours, theirs in zip(scored, reference.token_logprobs(prefix, suffixes), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=ROUNDING)
    model.close()


def test_no_prefix_and_no_suffixes(model, reference, ids):
    suffixes = [ids[:4], ids[:9]]
    expected = reference.last_logprobs([], suffixes, [3])
    np.testing.assert_allclose(model.last_logprobs([], suffixes, [3]), expected, atol=ROUNDING)
    assert model.last_logprobs(ids[:4], [], [3, 4]).shape == (0, 2)
    assert model.token_logprobs(ids[:4], []) == []


def test_rows_limit_splits_blocks_without_a_seam(file, reference, ids, monkeypatch):
    whole = load_llama_cpp(file, reference.tokenizer)
    monkeypatch.setattr(llama_native, "_OUTPUT_BYTES", 4 * 1024 * 7)
    split = load_llama_cpp(file, reference.tokenizer)
    blocks = list(split.logprobs(ids[:100], 1))
    assert max(map(len, blocks)) <= 7
    expected = torch.cat(list(whole.logprobs(ids[:100], 1)))
    torch.testing.assert_close(torch.cat(blocks), expected, atol=ROUNDING, rtol=0)
    suffixes = [ids[10:40], ids[50:60]]
    for ours, theirs in zip(
        split.token_logprobs(ids[:5], suffixes),
        whole.token_logprobs(ids[:5], suffixes),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=ROUNDING)
    for each in (whole, split):
        each.close()


def test_generation_is_greedy_and_timed_step_by_step(model, reference, ids):
    prompts = [ids[:40], ids[100:140], ids[300:340]]
    ours, theirs = model.generate(prompts, 12), reference.generate(prompts, 12)
    assert ours.tokens == theirs.tokens
    assert len(ours.step_s) == 11
    assert ours.first_token_s > 0
    assert min(ours.step_s) > 0


def test_the_same_call_gives_the_same_numbers(model, ids):
    first = model.last_logprobs(ids[:50], [ids[60:70], ids[80:99]], [3, 4])
    second = model.last_logprobs(ids[:50], [ids[60:70], ids[80:99]], [3, 4])
    assert (first == second).all()


def test_a_float32_cache_is_not_rounded_back(file, model, ids):
    """Flash attention would round it to float16 and give the very same numbers."""
    exact = load_llama_cpp(file, None, cache_type="F32")
    rounded, kept = (torch.cat(list(each.logprobs(ids[:200], 1))) for each in (model, exact))
    exact.close()
    assert not torch.equal(rounded, kept)


TOO_LONG = {
    # The last token is only predicted, never fed.
    "logprobs": lambda model, n: next(iter(model.logprobs([5] * (n + 1), 1))),
    "last_logprobs": lambda model, n: model.last_logprobs([5] * (n - 2), [[6, 7]], [3]),
    "token_logprobs": lambda model, n: model.token_logprobs([5] * (n - 1), [[6, 7]]),
    "generate": lambda model, n: model.generate([[5] * (n - 2)], 2),
}


@pytest.mark.parametrize("call", TOO_LONG.values(), ids=TOO_LONG)
def test_nothing_is_truncated(file, call):
    model = load_llama_cpp(file, None)
    model.info = replace(model.info, context_length=64)
    call(model, 64)
    with pytest.raises(MeasurementError, match="65 tokens exceed the model's context of 64"):
        call(model, 65)
    model.close()


@pytest.mark.parametrize("token", [-1, 1024])
def test_foreign_token_ids_are_named(model, token):
    with pytest.raises(CheckpointError, match=f"token id {token}"):
        model.last_logprobs([5, token], [[6]], [3])


BAD_CALLS = {
    "no tokens at all": lambda model: model.last_logprobs([], [[]], [3]),
    "no prefix": lambda model: model.token_logprobs([], [[3]]),
    "start at zero": lambda model: next(iter(model.logprobs([3, 4], 0))),
    "start at the end": lambda model: next(iter(model.logprobs([3, 4], 2))),
    "an empty prompt": lambda model: model.generate([[3], []], 2),
    "no new tokens": lambda model: model.generate([[3]], 0),
}


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_requests_are_refused(model, call):
    with pytest.raises(InputError):
        call(model)


def test_interleaved_readers_are_refused(model, ids):
    reader = model.logprobs(ids[:1100], 1)
    next(reader)
    model.last_logprobs(ids[:3], [[4]], [5])
    with pytest.raises(MeasurementError, match="another call"):
        list(reader)


def test_closing_frees_and_forbids(file):
    model = load_llama_cpp(file, None)
    reader = model.logprobs([3, 4, 5], 1)
    model.close()
    model.close()
    for call in (
        lambda: next(reader),
        lambda: model.last_logprobs([3], [[4]], [5]),
        lambda: model.generate([[3]], 1),
    ):
        with pytest.raises(MeasurementError, match="closed"):
            call()


@pytest.mark.parametrize(
    ("device", "layers", "only"),
    [("cpu", 0, -1), ("cuda", -1, None), ("cuda:0", -1, 0), ("cuda:1", -1, 1)],
)
def test_only_the_gpus_that_are_named_are_opened(file, device, layers, only, monkeypatch):
    library, given = llama_native.llama_library(), []

    def load(path, params):
        single = params.split_mode == library.LLAMA_SPLIT_MODE_NONE
        given.append((params.n_gpu_layers, params.main_gpu if single else None))

    monkeypatch.setattr(library, "llama_model_load_from_file", load)
    monkeypatch.setattr(library, "llama_supports_gpu_offload", lambda: True)
    with pytest.raises(CheckpointError):
        llama_native.NativeModel(file, device=device)
    assert given == [(layers, only)]


def test_a_gpu_that_the_build_cannot_use_is_said(file):
    import llama_cpp

    if llama_cpp.llama_supports_gpu_offload():
        pytest.skip("this build has GPU support")
    with pytest.raises(BackendUnavailable, match="no GPU support"):
        load_llama_cpp(file, None, device="cuda")


def test_a_device_that_does_not_exist_is_named(file):
    with pytest.raises(InputError, match="tpu"):
        load_llama_cpp(file, None, device="tpu")


@pytest.fixture(scope="module")
def wide_heads(tmp_path_factory):
    """Two layers of one key-value head of 32: 128 values a token."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return shared_gguf(save_llama(tmp_path_factory.mktemp("wide"), **shape, **heads), "F16")


@pytest.mark.parametrize(
    ("cache_type", "bits"),
    [("F16", 16), ("Q8_0", 8.5), ("Q5_1", 6), ("Q5_0", 5.5), ("Q4_1", 5), ("Q4_0", 4.5)],
)
def test_a_cache_takes_the_bits_of_its_type(wide_heads, ids, cache_type, bits):
    model = load_llama_cpp(wide_heads, None, cache_type=cache_type)
    per_token = (model.cache_bytes(ids[:200]) - model.cache_bytes(ids[:100])) / 100
    # llama.cpp saves where a token is beside its keys and values.
    assert 0 <= per_token - 128 * bits / 8 <= 16
    assert model.settings["cache_type_k"] == cache_type
    exact = load_llama_cpp(wide_heads, None)
    found, wanted = (torch.cat(list(each.logprobs(ids[:200], 1))) for each in (model, exact))
    assert torch.equal(wanted, found) == (cache_type == "F16")
    assert kld(wanted, found) < 0.1
    for each in (model, exact):
        each.close()


def test_a_cache_that_the_heads_are_too_narrow_for_is_refused_in_llama_cpps_words(file):
    model = load_llama_cpp(file, None, cache_type="Q8_0")
    with pytest.raises(MeasurementError, match="q8_0 with block size 32 does not divide"):
        model.token_logprobs([1], [[2]])
    model.close()


@pytest.mark.parametrize(
    ("lengths", "budget", "most", "groups"),
    [
        ([3, 3, 3], 6, 9, [(0, 2), (2, 3)]),
        ([3, 3, 3], 99, 2, [(0, 2), (2, 3)]),
        ([9, 1, 1], 4, 9, [(0, 1), (1, 3)]),
        ([1], 4, 9, [(0, 1)]),
    ],
    ids=["by tokens", "by rows", "one too long", "single"],
)
def test_groups(lengths, budget, most, groups):
    assert [(g.start, g.stop) for g in group_by_tokens(lengths, budget, most)] == groups
