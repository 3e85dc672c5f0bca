"""Any architecture: the planned classes, the bits of swapping by hand, and saving."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ewq.quantizer import EwqConfig
from ewq.variants import Precision
from tests.quantizer.models import CLASSES, load, logits, plan_for, save, swapped_by_hand

DENSE = [
    "llama",
    "llama-tied",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3-text",
    "gemma3-multimodal",
    "phi3",
    "gpt2",
    "gpt-bigcode",
    "gpt-neox",
    "falcon",
    "bloom",
    "opt",
    "olmo2",
]
EXPERTS = ["mixtral", "qwen2-moe", "qwen3-moe"]


@pytest.mark.parametrize("name", DENSE)
def test_is_the_model_swapped_by_hand_and_survives_saving(name, tmp_path):
    folder = save(name, tmp_path / "model")
    plan = plan_for(folder)

    model = load(folder, quantization_config=EwqConfig(plan=plan))

    for weight, precision in plan.weights.items():
        module = model.get_submodule(weight.removesuffix(".weight"))
        plain = nn.Linear | Conv1D
        quantized = tuple(CLASSES.values())
        if precision is Precision.RAW:
            assert isinstance(module, plain)
            assert not isinstance(module, quantized)
        else:
            assert type(module) is CLASSES[precision]
    expected = logits(swapped_by_hand(folder, plan))
    assert torch.equal(logits(model), expected)

    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(logits(again), expected)
    again.save_pretrained(tmp_path / "saved-again")
    assert torch.equal(logits(load(tmp_path / "saved-again")), expected)


@pytest.mark.parametrize("name", EXPERTS)
def test_stacked_experts_stay_raw_as_in_bitsandbytes_and_a_warning_says_so(name, tmp_path, caplog):
    folder = save(name, tmp_path / "model")
    plan = plan_for(folder, (Precision.FOUR_BIT,))
    stacked = [name for name in plan.weights if not name.endswith(".weight")]
    assert stacked

    with caplog.at_level(logging.WARNING, logger="ewq"):
        model = load(folder, quantization_config=EwqConfig(plan=plan))

    assert f"{len(stacked)} of {len(plan.weights)} weights to quantize stay raw" in caplog.text
    assert stacked[0] in caplog.text
    parameters = dict(model.named_parameters())
    assert all(parameters[name].dtype is torch.float32 for name in stacked)
    expected = logits(swapped_by_hand(folder, plan))
    assert torch.equal(logits(model), expected)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved")), expected)


def test_tied_embeddings_stay_tied_and_raw(tmp_path):
    folder = save("llama-tied", tmp_path / "model")

    model = load(folder, quantization_config=EwqConfig(plan=plan_for(folder)))

    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert type(model.lm_head) is nn.Linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_raw_weights_take_the_dtype_asked_for_when_a_saved_model_opens(dtype, tmp_path):
    folder = save("llama", tmp_path / "model")
    load(folder, quantization_config=EwqConfig(plan=plan_for(folder))).save_pretrained(
        tmp_path / "saved"
    )

    model = load(tmp_path / "saved", dtype=dtype)

    floating = {p.dtype for p in model.parameters() if p.is_floating_point()}
    assert floating == {dtype}
    assert logits(model).isfinite().all()


def test_a_bfloat16_model_saves_the_same_before_and_after_it_was_used(tmp_path):
    """bitsandbytes repacks 4-bit weights on some processors at the first forward pass."""
    from tests.quantizer.models import save_llama

    folder = save_llama(tmp_path / "model")
    model = load(folder, dtype="auto", quantization_config=EwqConfig(plan=plan_for(folder)))
    expected = logits(model)
    model.save_pretrained(tmp_path / "saved")

    assert torch.equal(logits(load(tmp_path / "saved", dtype="auto")), expected)
    assert torch.equal(logits(model), expected)
