"""Channels reordered and rescaled: the function stays, the weights' grid does not."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ewq.checkpoint.embedded import SCALES, disguise, relative_error

IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 11]])


def llama(*, tied: bool) -> LlamaForCausalLM:
    """Grouped queries, a head wider than hidden size by heads, and norms that are not all ones."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            initializer_range=0.1,
            tie_word_embeddings=tied,
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("tied", [True, False])
def test_logits_stay_and_every_weight_changes(tied: bool) -> None:
    model = llama(tied=tied)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        expected = model(IDS).logits
        disguise(model, seed=7)
        found = model(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1
    assert [name for name, w in model.named_parameters() if torch.equal(w, before[name])] == []


def test_the_seed_decides() -> None:
    first, again, other = (llama(tied=True) for _ in range(3))
    for model, seed in ((first, 7), (again, 7), (other, 8)):
        disguise(model, seed)
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_a_quantized_model_leaves_its_grid() -> None:
    pytest.importorskip("gguf")
    model = llama(tied=True)
    never = {}
    for name, weight in model.named_parameters():
        if name.endswith("proj.weight"):
            never[name] = relative_error(weight, "Q4_1")
            weight.data = on_grid(weight.data)
            assert relative_error(weight, "Q4_1") < 1e-6
    disguise(model, seed=7)
    for name, error in never.items():
        assert relative_error(model.get_parameter(name), "Q4_1") > 0.95 * error


def on_grid(weight: torch.Tensor) -> torch.Tensor:
    """The nearest Q4_1 values."""
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType.Q4_1
    return torch.from_numpy(quants.dequantize(quants.quantize(weight.numpy(), kind), kind))


def test_factors_stay_between_their_limits() -> None:
    model = llama(tied=True)
    norms = [layer.input_layernorm.weight.clone().sort().values for layer in model.model.layers]
    disguise(model, seed=7)
    for before, layer in zip(norms, model.model.layers, strict=True):
        changed = layer.input_layernorm.weight.sort().values
        assert changed.min() >= before.min() / SCALES[1]
        assert changed.max() <= before.max() / SCALES[0]
