"""What people do with a quantized model: weigh it, train an adapter, place it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ewq.errors import InputError
from ewq.instruments.memory import weights_bytes
from ewq.planning.plan import read_plan
from ewq.quantizer import EwqConfig
from ewq.quantizer.modules import QUANTIZED
from ewq.variants import Precision
from tests.quantizer.models import IDS, load, logits, plan_for, save, save_llama

SIZES = {
    "mixed": ((Precision.FOUR_BIT, Precision.EIGHT_BIT, Precision.RAW), "nf4"),
    "nf4": ((Precision.FOUR_BIT,), "nf4"),
    "nf4-double": ((Precision.FOUR_BIT,), "nf4-double"),
    "int8": ((Precision.EIGHT_BIT,), "nf4"),
}


@pytest.mark.parametrize(("precisions", "target"), SIZES.values(), ids=SIZES)
def test_the_footprint_is_what_the_plan_predicted_to_one_percent(tmp_path, precisions, target):
    folder = save_llama(tmp_path, num_hidden_layers=2, hidden_size=512, intermediate_size=1024)
    plan = plan_for(folder, precisions, target)

    model = load(folder, dtype="auto", quantization_config=EwqConfig(plan=plan))

    assert weights_bytes(model) == pytest.approx(plan.size_bytes, rel=0.01)
    logits(model)
    assert weights_bytes(model) == pytest.approx(plan.size_bytes, rel=0.01)
    assert model.num_parameters() == load(folder).num_parameters()


def test_the_footprint_counts_scales_that_are_neither_parameters_nor_buffers(tmp_path):
    folder = save("llama", tmp_path)
    plan = plan_for(folder, (Precision.EIGHT_BIT,))

    model = load(folder, quantization_config=EwqConfig(plan=plan))

    registered = sum(t.nbytes for t in model.parameters())
    rows = sum(m.out_features for m in model.modules() if isinstance(m, QUANTIZED))
    assert weights_bytes(model) == registered + 4 * rows


def test_dequantizing_in_place_is_refused_in_one_line(tmp_path):
    folder = save("llama", tmp_path / "model")
    model = load(folder, quantization_config=EwqConfig(plan=plan_for(folder)))

    with pytest.raises(InputError, match="load the original model"):
        model.dequantize()


@pytest.mark.parametrize("precision", [Precision.FOUR_BIT, Precision.EIGHT_BIT, None])
def test_a_lora_step_reduces_the_loss(tmp_path, precision):
    peft = pytest.importorskip("peft")
    folder = save("llama", tmp_path)
    plan = plan_for(folder) if precision is None else plan_for(folder, (precision,))
    model = load(folder, quantization_config=EwqConfig(plan=plan))
    logits(model)  # people evaluate before they train
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, lora).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)

    before = model(input_ids=IDS, labels=IDS).loss
    before.backward()
    reached = [
        p.grad is not None and bool(p.grad.abs().sum() > 0)
        for name, p in model.named_parameters()
        if "lora_B" in name
    ]
    optimizer.step()
    after = model(input_ids=IDS, labels=IDS).loss

    assert all(reached)
    assert math.isfinite(after.item())
    assert after.item() < before.item()


PLACES = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


def test_offloaded_modules_stay_raw_where_the_user_allows_it(tmp_path):
    folder = save("llama", tmp_path / "model")
    config = EwqConfig(plan=plan_for(folder), llm_int8_enable_fp32_cpu_offload=True)

    model = load(
        folder, quantization_config=config, device_map=PLACES, offload_folder=tmp_path / "offload"
    )

    assert not any(isinstance(module, QUANTIZED) for module in model.modules())
    assert torch.allclose(logits(model), logits(load(folder)))


def test_device_map_auto_places_the_model(tmp_path):
    folder = save("llama", tmp_path)
    plan = plan_for(folder)

    model = load(folder, quantization_config=EwqConfig(plan=plan), device_map="auto")

    expected = load(folder, quantization_config=EwqConfig(plan=plan))
    assert torch.allclose(logits(model).cpu(), logits(expected).cpu(), atol=1e-5)


def test_uneven_shapes_quantize(tmp_path):
    """Rows and columns that bitsandbytes' packed processor kernel does not divide."""
    folder = save_llama(tmp_path, hidden_size=72, intermediate_size=100, num_attention_heads=4)
    plan = plan_for(folder, (Precision.FOUR_BIT,))

    model = load(folder, dtype="auto", quantization_config=EwqConfig(plan=plan))

    assert logits(model).isfinite().all()
    assert type(model.model.layers[0].mlp.down_proj) is not nn.Linear


def test_options_reach_the_modules(tmp_path):
    folder = save_llama(tmp_path / "model")
    config = EwqConfig(
        plan=plan_for(folder),
        quant_type="fp4",
        block_size=128,
        compute_dtype="float16",
        int8_threshold=0.0,
    )

    model = load(folder, quantization_config=config)

    kinds = {type(m).__name__: m for m in model.modules() if isinstance(m, QUANTIZED)}
    four, eight = kinds["Linear4bit"], kinds["Linear8bitLt"]
    assert four.weight.quant_state.quant_type == "fp4"
    assert four.weight.quant_state.blocksize == 128
    assert four.compute_dtype is torch.float16
    assert eight.state.threshold == 0.0
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.config.quantization_config.options == config.options
    assert torch.equal(logits(again), logits(model))
    assert read_plan_of(again) == config.plan.digest


def read_plan_of(model):
    """Digest of the plan that a loaded model carries."""
    return model.config.quantization_config.plan.digest


def test_the_saved_plan_file_is_the_plan(tmp_path):
    from ewq.quantizer.folder import quantize_to_folder

    folder = save("llama", tmp_path / "model", torch.bfloat16)
    plan = plan_for(folder)

    made = quantize_to_folder(folder, EwqConfig(plan=plan), tmp_path / "q")

    assert read_plan(tmp_path / "q" / "plan.json").digest == plan.digest
    assert made.weights_bytes == weights_bytes(load(tmp_path / "q"))
    assert torch.equal(
        logits(load(tmp_path / "q")), logits(load(folder, quantization_config=EwqConfig(plan=plan)))
    )
