"""What the transformers backend does beyond the contract that all engines share."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Phi3Config,
    Phi3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from ewq.backends import transformers as backend
from ewq.backends.transformers import load_transformers
from ewq.checkpoint.opening import open_checkpoint
from ewq.errors import CheckpointError, InputError, MeasurementError
from ewq.instruments.memory import parameter_count, weights_bytes
from tests.backends.tiny_models import (
    ARCHITECTURES,
    SLIDING,
    VOCABULARY,
    NoTokenizer,
    expected_tokens,
    naive_logprobs,
    random_ids,
    save_tiny,
)
from tools.odd_folders import make_odd

TOLERANCE = 2e-4


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def folder(request, tmp_path_factory):
    return save_tiny(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def prompts():
    rng = np.random.default_rng(5)
    return random_ids(rng, 23), [random_ids(rng, 1 + i % 17) for i in range(64)]


def load(folder, **options):
    return load_transformers(folder, tokenizer=NoTokenizer(), **options)


@pytest.mark.parametrize("shares", [True, False], ids=["shared", "repeated"])
@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000], ids=["one by one", "some", "all 64"])
def test_batching_padding_and_prefix_sharing_change_no_answer(
    folder, prompts, shares, batch_tokens, monkeypatch
):
    prefix, suffixes = prompts
    monkeypatch.setattr(backend, "can_share", lambda config: shares)
    model = load(folder, batch_tokens=batch_tokens)
    expected = np.stack([naive_logprobs(folder, prefix + s)[-1, [3, 4, 5, 6]] for s in suffixes])
    scored = model.last_logprobs(prefix, suffixes, [3, 4, 5, 6])
    np.testing.assert_allclose(scored, expected, atol=TOLERANCE)
    assert (scored.argmax(1) == expected.argmax(1)).all()
    for suffix, values in zip(suffixes, model.token_logprobs(prefix, suffixes), strict=True):
        np.testing.assert_allclose(values, expected_tokens(folder, prefix, suffix), atol=TOLERANCE)


@pytest.mark.parametrize("shares", [True, False], ids=["shared", "repeated"])
@pytest.mark.parametrize("batch_tokens", [1, 90, 100_000])
def test_prefixes_worked_on_together_change_no_answer(
    folder, prompts, shares, batch_tokens, monkeypatch
):
    monkeypatch.setattr(backend, "can_share", lambda config: shares)
    model = load(folder, batch_tokens=batch_tokens)
    require_continuations(folder, model, prompts[1])


def require_continuations(folder, model, suffixes):
    asked = [(prefix, suffixes[i : i + 3]) for i, prefix in enumerate(suffixes) if len(prefix) > 7]
    for (prefix, own), scored in zip(asked, model.continuation_scores(asked), strict=True):
        for suffix, values in zip(own, scored, strict=True):
            expected = expected_tokens(folder, prefix, suffix)
            np.testing.assert_allclose(values[:, 0], expected, atol=TOLERANCE)


def test_prefixes_of_one_length_are_computed_in_one_pass(llama, prompts, monkeypatch):
    model, prefix = load(llama), prompts[0]
    fed, forward = [], model._forward
    monkeypatch.setattr(
        model, "_forward", lambda *args: fed.append(list(map(len, args[2]))) or forward(*args)
    )
    prefixes = [[first, *prefix[1:]] for first in (3, 4, 5)]
    model.continuation_scores([(each, [[6, 7], [8]]) for each in prefixes])
    assert fed == [[len(prefix) - 1] * 3, [2] * 3 + [1] * 3]


@pytest.fixture(scope="module", params=sorted(SLIDING))
def sliding(request, tmp_path_factory):
    return save_tiny(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("length", [2, 8, 9, 10, 30])
def test_a_shared_prefix_may_end_anywhere_in_an_attention_window(
    sliding, prompts, length, monkeypatch
):
    """The cache of a sliding layer keeps the last 7 tokens of the prefix, and knows how many."""
    model = load(sliding)
    assert model._shares_prefix
    prefix, suffixes = (prompts[0] * 2)[:length], prompts[1][:20]
    expected = np.stack([naive_logprobs(sliding, prefix + s)[-1, [3, 4, 5, 6]] for s in suffixes])
    for _ in range(2):  # the first call's rows must leave no trace
        scored = model.last_logprobs(prefix, suffixes, [3, 4, 5, 6])
        np.testing.assert_allclose(scored, expected, atol=TOLERANCE)
    monkeypatch.setattr(backend, "LOGIT_BLOCK_BYTES", 4 * model.info.vocab_size * 5)
    require_continuations(sliding, model, suffixes)
    ids = prefix + prompts[0]
    blocks = torch.cat(list(model.logprobs(ids, length))).numpy()
    np.testing.assert_allclose(
        blocks, naive_logprobs(sliding, ids)[length - 1 : -1], atol=TOLERANCE
    )


@pytest.mark.parametrize("rows", [1, 7])
def test_small_logit_blocks_change_no_answer(folder, prompts, monkeypatch, rows):
    model = load(folder)
    monkeypatch.setattr(backend, "LOGIT_BLOCK_BYTES", 4 * model.info.vocab_size * rows)
    ids = prompts[0] + prompts[1][16]
    blocks = list(model.logprobs(ids, 3))
    assert max(len(block) for block in blocks) == rows
    np.testing.assert_allclose(
        torch.cat(blocks).numpy(), naive_logprobs(folder, ids)[2:-1], atol=TOLERANCE
    )
    [values] = model.token_logprobs(ids[:3], [ids[3:]])
    np.testing.assert_allclose(values, expected_tokens(folder, ids[:3], ids[3:]), atol=TOLERANCE)


@pytest.mark.parametrize(("gigabytes", "megabytes"), [((80, 24), 1500), ((80,), 2000), ((2,), 192)])
def test_logit_blocks_on_gpus_follow_the_smallest(llama, monkeypatch, gigabytes, megabytes):
    def properties(device):
        return SimpleNamespace(total_memory=gigabytes[device.index] * 10**9)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    devices = {torch.device("cuda", index) for index in range(len(gigabytes))}
    model = load(llama)
    monkeypatch.setattr(model, "_cuda_devices", devices)
    assert model._block_rows == megabytes * 10**6 // (4 * model.info.vocab_size)


def test_recurrent_caches_are_not_shared_but_scored_all_the_same(llama, prompts, monkeypatch):
    monkeypatch.setattr(backend, "can_share", lambda config: False)
    model = load(llama)
    ids = prompts[0]
    np.testing.assert_allclose(
        torch.cat(list(model.logprobs(ids, 2))).numpy(),
        naive_logprobs(llama, ids)[1:-1],
        atol=TOLERANCE,
    )
    [scored] = model.last_logprobs(ids, [[5, 6]], [3, 4])
    np.testing.assert_allclose(scored, naive_logprobs(llama, [*ids, 5, 6])[-1, [3, 4]], atol=1e-4)


def test_frequencies_that_change_with_the_length_limit_the_context(tmp_path, prompts):
    """Phi's longrope: beyond the original context, a sequence fed in pieces would differ."""
    torch.manual_seed(7)
    Phi3ForCausalLM(
        Phi3Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            original_max_position_embeddings=64,
            pad_token_id=0,
            initializer_range=0.3,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0, 3.0, 4.0, 5.0],
                "original_max_position_embeddings": 64,
            },
        )
    ).save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.info.context_length == 64
    prefix, suffixes = prompts
    scored = model.last_logprobs(prefix, suffixes, [3, 4])
    expected = [naive_logprobs(tmp_path, prefix + s)[-1, [3, 4]] for s in suffixes]
    np.testing.assert_allclose(scored, expected, atol=TOLERANCE)


def test_the_prefix_is_computed_once(llama, prompts, monkeypatch):
    model = load(llama, batch_tokens=200)
    fed = []
    forward = model._forward
    monkeypatch.setattr(
        model, "_forward", lambda *args: fed.append(sum(map(len, args[2]))) or forward(*args)
    )
    prefix, suffixes = prompts
    model.last_logprobs(prefix, suffixes, [3])
    assert sum(fed) == len(prefix) - 1 + sum(len(suffix) + 1 for suffix in suffixes)


def test_weights_of_a_plain_model_are_its_parameters(folder):
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    model = load(folder, dtype="float16")
    assert model.info.weights_bytes == 2 * plain.num_parameters()
    assert model.info.bits_per_weight == 16.0
    assert model.info.dtype == "float16"


def linear_weights(folder):
    plain = AutoModelForCausalLM.from_pretrained(folder)
    return [p.numel() for name, p in plain.named_parameters() if "_proj" in name]


@pytest.mark.parametrize(
    ("options", "bytes_of"),
    [
        # 4 bits, one float32 scale per 64 weights, 16 code values of float32 per matrix.
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, lambda n: n // 2 + 4 * n // 64 + 64),
        # 8 bits and one float32 scale per output row; rows are counted in the test.
        ({"load_in_8bit": True}, lambda n: n),
    ],
    ids=["nf4", "int8"],
)
def test_quantization_state_counts(llama, options, bytes_of):
    quantized = load(llama, quantization_config=BitsAndBytesConfig(**options))
    plain = AutoModelForCausalLM.from_pretrained(llama)
    rows = sum(p.shape[0] for name, p in plain.named_parameters() if "_proj" in name)
    weights = linear_weights(llama)
    rest = 2 * (plain.num_parameters() - sum(weights))
    scales = 4 * rows if options.get("load_in_8bit") else 0
    expected = rest + scales + sum(map(bytes_of, weights))
    assert quantized.info.weights_bytes == expected
    assert parameter_count(quantized._model) == plain.num_parameters()


def test_int8_scales_still_count_once_after_use_has_moved_them(llama):
    model = load(llama, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    model.last_logprobs([3, 4], [[5]], [6])
    assert weights_bytes(model._model, torch.float16) == model.info.weights_bytes


def test_close_frees_the_weights_although_somebody_holds_the_model(llama):
    model = load(llama)
    held = model._model
    weight = weakref.ref(held.get_input_embeddings().weight)
    model.close()
    gc.collect()
    assert weight() is None
    assert held is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float31"}, "float31"),
        ({"batch_tokens": 0}, "batch_tokens"),
    ],
)
def test_bad_options_are_named(llama, options, message):
    with pytest.raises(InputError, match=message):
        load(llama, **options)


def test_a_model_that_the_gpus_cannot_hold_is_refused_instead_of_kept_in_ram(tmp_path):
    """Without a GPU, spreading a model over all of them leaves it in RAM as a whole."""
    save_tiny("llama", tmp_path)
    with pytest.raises(MeasurementError, match="exceeds all GPUs together"):
        load_transformers(tmp_path, tokenizer=object(), device="cuda:all")


def test_a_missing_checkpoint_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere") as caught:
        load_transformers(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_a_model_that_is_no_causal_language_model_is_one_line(tmp_path):
    config = T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=8)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot load .*AutoModelForCausalLM"):
        load_transformers(tmp_path, tokenizer=object())


def test_a_checkpoint_that_lacks_weights_is_refused_instead_of_filled_at_random(tmp_path):
    save_tiny("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: t for name, t in load_file(file).items() if "layers.1." not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks \d+ of the model's weights"):
        load_transformers(tmp_path, tokenizer=object())


@pytest.mark.parametrize(
    ("odd", "nbytes"),
    [
        ("float32", 410_240),
        ("config says float32", 410_240),
        ("config names no dtype", 410_240),
        ("float32 norms", 410_240),
        ("tied, head stored too", 279_168),
        ("tied by default, head stored", 279_168),
        ("tied, another head stored", 410_240),
    ],
)
def test_weights_are_those_of_the_loaded_model_in_16_bits(tmp_path, odd, nbytes):
    folder = make_odd(odd, tmp_path)
    model = load_transformers(folder)
    assert model.info.weights_bytes == nbytes
    assert model.info.bits_per_weight == 16
    stored = getattr(torch, open_checkpoint(folder).storage_dtype)
    for parameter in model._model.parameters():
        assert torch.equal(parameter, parameter.to(stored).to(parameter.dtype))
    model.close()
