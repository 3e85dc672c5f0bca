from pathlib import Path

import pytest

from ewq.checkpoint.gguf_header import GgufHeader
from ewq.checkpoint.tensors import TensorInfo
from ewq.errors import PlanError
from ewq.gguf.recipe import tensors_of_weights
from tests.gguf.models import require_gguf

FILE = Path("model.gguf")


def header(architecture, *names, blocks=12):
    require_gguf()
    metadata = {"general.architecture": architecture, f"{architecture}.block_count": blocks}
    tensors = tuple(TensorInfo(name, "F16", (32, 32), 2048, FILE, 0) for name in names)
    return GgufHeader(FILE, metadata, tensors)


CASES = {
    "llama": ("llama", "model.layers.10.self_attn.q_proj.weight", ("blk.10.attn_q.weight",)),
    "qwen3": ("qwen3", "model.layers.0.mlp.down_proj.weight", ("blk.0.ffn_down.weight",)),
    "phi3 fused attention": (
        "phi3",
        "model.layers.0.self_attn.qkv_proj.weight",
        ("blk.0.attn_qkv.weight",),
    ),
    "phi3 fused mlp": ("phi3", "model.layers.0.mlp.gate_up_proj.weight", ("blk.0.ffn_up.weight",)),
    "gemma3 inside a vision model": (
        "gemma3",
        "model.language_model.layers.3.mlp.up_proj.weight",
        ("blk.3.ffn_up.weight",),
    ),
    "stacked experts": (
        "qwen3moe",
        "model.layers.1.mlp.experts.gate_up_proj",
        ("blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight"),
    ),
    "experts' down projection": (
        "qwen3moe",
        "model.layers.1.mlp.experts.down_proj",
        ("blk.1.ffn_down_exps.weight",),
    ),
    "Granite's experts": (
        "granitemoe",
        "model.layers.1.block_sparse_moe.experts.gate_up_proj",
        ("blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight"),
    ),
    "latent attention": (
        "deepseek2",
        "model.layers.0.self_attn.kv_b_proj.weight",
        ("blk.0.attn_k_b.weight", "blk.0.attn_v_b.weight"),
    ),
    "the file's own name": ("llama", "blk.1.attn_q.weight", ("blk.1.attn_q.weight",)),
}


@pytest.mark.parametrize(("architecture", "weight", "tensors"), CASES.values(), ids=CASES)
def test_a_weight_finds_its_tensors(architecture, weight, tensors):
    assert tensors_of_weights(header(architecture, *tensors), [weight])[weight] == tensors


def test_missing_tensors_are_named():
    weights = [f"model.layers.{index}.self_attn.q_proj.weight" for index in range(3)]
    with pytest.raises(PlanError, match=r"2 weights of the plan: model\.layers\.1\.self_attn"):
        tensors_of_weights(header("llama", "blk.0.attn_q.weight"), weights)


def test_an_unknown_architecture_is_named():
    with pytest.raises(PlanError, match="no-such-net"):
        tensors_of_weights(header("no-such-net"), ["a"])
