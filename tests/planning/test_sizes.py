"""What a plan says its model will weigh, against the bytes of the real artefacts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from ewq.planning.analysis import analyze
from ewq.variants import Precision

FIXTURE = Path(__file__).parent.parent.parent / "fixtures" / "tiny-llama"


def scale_bytes(parameter: torch.nn.Parameter) -> int:
    """Bytes of the scales that bitsandbytes keeps beside a quantized weight."""
    tensors = []
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        tensors.append(state.absmax)
        if state.nested:
            tensors += [state.state2.absmax, state.offset]
    if getattr(parameter, "SCB", None) is not None:
        tensors.append(parameter.SCB)
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("double", [False, True], ids=["nf4", "nf4-double"])
def test_a_mixed_bitsandbytes_model_weighs_what_its_plan_says(double: bool, tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    from ewq.quantizer import EwqConfig

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    plan = analyze(tmp_path, cache=False).plan(
        0.5, granularity="tensor", target="nf4-double" if double else "nf4"
    )
    assert set(plan.weights.values()) == set(Precision)

    model = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=EwqConfig(plan=plan, double_quant=double),
        dtype=torch.float16,
    )

    made = sum(of.nbytes + scale_bytes(of) for of in model.parameters())
    assert made == plan.size_bytes


def test_experts_that_bitsandbytes_cannot_quantize_count_as_raw(tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    from ewq.quantizer import EwqConfig

    config = MixtralConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    plan = analyze(tmp_path, cache=False).uniform_plan(Precision.FOUR_BIT)

    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=EwqConfig(plan=plan), dtype=torch.float16
    )

    made = sum(of.nbytes + scale_bytes(of) for of in model.parameters())
    assert made == plan.size_bytes


def test_an_exported_gguf_weighs_what_its_plan_says(tmp_path: Path):
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    if not FIXTURE.is_dir():
        pytest.skip("needs the fixture model")
    from ewq.gguf.export import export_gguf
    from ewq.gguf.recipe import make_recipe

    plan = analyze(FIXTURE, cache=False).plan(1.0, target="gguf")
    assert set(plan.weights.values()) == set(Precision)

    report = export_gguf(FIXTURE, tmp_path / "model.gguf", make_recipe(plan=plan))

    assert report.weights_bytes == plan.size_bytes
    assert report.bits_per_weight == plan.bits_per_weight
    assert Counter(plan.weights.values())[Precision.FOUR_BIT]
