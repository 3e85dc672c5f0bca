"""Model folders as variants: loaded as anybody loads them, weighed, and refused in one line."""

import json
import shutil
import sys
from contextlib import closing

import pytest
import torch
from safetensors.torch import load_file

from ewq.backends.model_folder import load_model_folder, open_model_folder
from ewq.backends.transformers import load_transformers
from ewq.checkpoint.embedded import fixture_path
from ewq.checkpoint.loading import load_tokenizer
from ewq.checkpoint.opening import open_checkpoint
from ewq.data.texts import load_texts
from ewq.data.windows import SHORT, fitted_windows
from ewq.errors import BackendUnavailable, CheckpointError
from ewq.instruments.memory import weights_bytes
from ewq.tasks import divergence
from tests.backends.model_folders import BASE, KINDS, load_plain, lora, save, tuned

HOW = {"dtype": "float32"}
IDS = list(range(40, 160))


@pytest.fixture(scope="module")
def base():
    return open_checkpoint(BASE)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BASE, "tiny")


@pytest.fixture
def opened(base, tokenizer):
    """Open and check a folder as a run does before anything loads."""

    def check(folder):
        found = open_model_folder(str(folder), base)
        found.require_same_model(tokenizer, "tiny")
        found.require_library()
        return found

    return check


def plain_perplexity(model):
    with torch.no_grad():
        logprobs = model(torch.tensor([IDS[:-1]])).logits[0].float().log_softmax(-1)
    return (-logprobs[range(len(IDS) - 1), IDS[1:]]).mean().exp().item()


def perplexity(model):
    logprobs = torch.from_numpy(model.token_logprobs(IDS[:1], [IDS[1:]])[0])
    return (-logprobs).mean().exp().item()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_what_a_plain_loop_and_its_own_files_say(kind, opened, tmp_path):
    make, method = KINDS[kind]
    path = make(tmp_path / kind)
    folder = opened(path)
    assert folder.method == method

    model, notes = load_model_folder(folder, **HOW)
    stored = sum(each.nbytes for each in load_file(path / "model.safetensors").values())
    assert model.info.weights_bytes == folder.nbytes == stored
    assert model.info.bits_per_weight == pytest.approx(8 * stored / (854_144 / 2))
    assert all("\n" not in note for note in notes)

    dtype = getattr(torch, model.info.dtype)
    plain = load_plain(path, dtype, device_map={"": "cpu"})
    expected = plain_perplexity(plain)
    assert perplexity(model) == pytest.approx(expected, rel=1e-5)
    model.close()


@pytest.mark.parametrize("kind", ["bitsandbytes-nf4", "tuned"])
def test_loaded_tensors_hold_what_the_files_do(kind, opened, tmp_path):
    folder = opened(KINDS[kind][0](tmp_path / kind))
    model = load_plain(folder.path, device_map={"": "cpu"})
    # The files hold descriptions of bitsandbytes' scales besides.
    assert weights_bytes(model, torch.float16) == pytest.approx(folder.nbytes, rel=0.01)
    assert folder.fingerprint != folder.base.fingerprint


def test_an_adapter_is_merged_and_rounded_to_the_models_own_16_bits(opened, tmp_path):
    peft = pytest.importorskip("peft")
    folder = opened(lora(tmp_path / "lora"))
    model, notes = load_model_folder(folder, **HOW)
    name = "model.layers.3.self_attn.v_proj"
    changes = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    a, b = (changes[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
    stored = load_file(BASE / "model.safetensors")[f"{name}.weight"]
    merged = model._model.get_parameter(f"{name}.weight")
    torch.testing.assert_close(merged, (stored + 2 * b @ a).half().float(), atol=1e-3, rtol=1e-3)
    assert torch.equal(merged, merged.half().float())
    assert folder.method == "adapter, merged"
    assert notes == (f"the adapter in {folder.path} is merged into the model's weights",)
    assert model.info.weights_bytes == folder.nbytes == 854_144
    plain = peft.PeftModel.from_pretrained(load_plain(BASE, torch.float32), tmp_path / "lora")
    plain = plain.merge_and_unload()
    for parameter in plain.parameters():
        parameter.data = parameter.data.half().float()
    assert perplexity(model) == pytest.approx(plain_perplexity(plain), rel=1e-5)
    model.close()


def test_an_adapter_of_another_model_is_refused_while_it_is_merged(base, tmp_path):
    folder = open_model_folder(str(lora(tmp_path / "lora", fixture_path("tiny-qwen3"))), base)
    with pytest.raises(CheckpointError, match="lora does not fit this model: "):
        load_model_folder(folder, **HOW)


def test_an_adapter_without_its_weights_is_refused(base, tmp_path):
    path = lora(tmp_path / "lora")
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors: save it again"):
        open_model_folder(str(path), base)


def test_rows_that_only_pad_a_vocabulary_are_compared_for_what_they_take(base, opened, tmp_path):
    """Divergence is that of the distributions with zeros for the tokens the reference lacks."""
    plain = load_plain(BASE, torch.float32)
    plain.resize_token_embeddings(1088, mean_resizing=False)
    folder = opened(save(plain.half(), tmp_path / "padded"))
    texts, reference = load_texts(fixture_path("texts")), load_transformers(BASE)
    few = {"max_tokens_per_domain": 100}
    with closing(divergence.record_reference(reference, texts, tmp_path, **few)) as stored:
        model, _ = load_model_folder(folder, **HOW)
        assert model.info.vocab_size == 1088
        found = divergence.run(model, stored)
        _, windows = fitted_windows(model, texts, SHORT, 100)
    assert found.metrics["kld_mean"].value == pytest.approx(lost_to_padding(folder, windows))
    model.close()


def lost_to_padding(folder, windows):
    """``-ln`` of the share of probability that is left for the reference's tokens, on average."""
    model = load_plain(folder.path, torch.float32)
    with torch.no_grad():
        rows = [model(torch.tensor([w.ids[:-1]])).logits[0, w.start - 1 :] for w in windows]
    rows = torch.cat(rows)
    return (rows.logsumexp(-1) - rows[:, :1024].logsumexp(-1)).double().mean().item()


def refusals(tmp_path):
    """Name -> a folder that is no variant of the tiny Llama, and what is said of it."""
    another = tmp_path / "another"
    shutil.copytree(fixture_path("tiny-qwen3"), another)
    words = tuned(tmp_path / "words")
    tokens = json.loads((words / "tokenizer.json").read_text())
    numbers = tokens["model"]["vocab"]
    tokens["model"]["vocab"] = dict(zip(numbers, reversed(numbers.values()), strict=True))
    (words / "tokenizer.json").write_text(json.dumps(tokens))
    halved = tuned(tmp_path / "halved")
    weights = halved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500_000])
    code = tuned(tmp_path / "code")
    config = json.loads((code / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (code / "config.json").write_text(json.dumps(config))
    return {
        "another": (
            another,
            "is Qwen3ForCausalLM with .* not made of this model; give its --ewq-model",
        ),
        "words": (words, "spells .* tokens otherwise than tiny: not made of this model"),
        "halved": (halved, "is truncated .*download it again"),
        "code": (code, "needs Python code that comes with the model, which ewq never runs"),
        "absent": (tmp_path / "absent", "no such folder or file, and not a hub id"),
    }


@pytest.mark.parametrize("case", ["another", "words", "halved", "code", "absent"])
def test_what_is_no_variant_of_the_model_is_refused_in_one_line(case, opened, tmp_path):
    path, said = refusals(tmp_path)[case]
    with pytest.raises(CheckpointError, match=said) as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_another_reading_of_text_is_refused_though_the_tokens_are_the_same(opened, tmp_path):
    path = tuned(tmp_path / "merges")
    tokens = json.loads((path / "tokenizer.json").read_text())
    tokens["model"]["merges"] = tokens["model"]["merges"][::-1]
    (path / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(CheckpointError, match="reads the same text into other tokens than tiny"):
        opened(path)


@pytest.mark.parametrize(
    ("method", "module", "advice"),
    [
        ("gptq", "gptqmodel", "gptq 4-bit.*pip install.* gptqmodel"),
        ("awq", "gptqmodel", "pip install gptqmodel"),
        ("compressed-tensors", "compressed_tensors", "pip install compressed-tensors"),
        ("torchao", "torchao", "pip install torchao"),
        ("bitsandbytes", "bitsandbytes", "pip install bitsandbytes"),
    ],
)
def test_a_methods_missing_library_is_one_line_that_says_what_to_install(
    method, module, advice, opened, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    path = tuned(tmp_path / "quantized")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackendUnavailable, match=advice):
        opened(path)


def test_an_adapter_needs_peft(opened, tmp_path, monkeypatch):
    path = lora(tmp_path / "lora")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BackendUnavailable, match=r"adapter, merged\): pip install peft"):
        opened(path)


def test_a_method_that_transformers_itself_lacks_the_library_of_is_one_line(base, tmp_path):
    path = tuned(tmp_path / "quanto")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "quanto", "weights": "int4"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackendUnavailable, match=r"does not run here: .*quanto"):
        load_model_folder(open_model_folder(str(path), base), **HOW)
