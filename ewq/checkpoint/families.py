"""Decoder families: how each names its blocks and the linear weights inside them.

A family is data. Adding a model that follows a known naming is one entry in
``FAMILY_OF``; a weight that no entry explains is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """The names of one family of decoders."""

    roots: Mapping[str, str]
    """Prefix of a block in the checkpoint -> prefix after loading; an index follows."""
    linear: frozenset[str]
    """Modules of a block that are linear, as named after loading."""
    other: frozenset[str] = frozenset()
    """Modules of a block with matrices that are not quantizable linear layers: routers."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Module in the checkpoint -> module after loading, where they differ."""
    experts: Mapping[str, str] = field(default_factory=dict)
    """Suffix of one expert's weight -> the stacked parameter that holds all of them."""
    transposed: bool = False
    """Weights are stored ``[in, out]`` (GPT-2's Conv1D)."""


def _under(parent: str, *names: str) -> frozenset[str]:
    return frozenset(f"{parent}.{name}" for name in names)


ATTENTION = _under("self_attn", "q_proj", "k_proj", "v_proj", "o_proj")
GATED_MLP = _under("mlp", "gate_proj", "up_proj", "down_proj")
FALCON_LINEAR = frozenset(
    {
        "self_attention.query_key_value",
        "self_attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    }
)
GPT2_LINEAR = _under("attn", "c_attn", "c_proj") | _under("mlp", "c_fc", "c_proj")
LAYERS = {"model.layers.": "model.layers.", "layers.": "model.layers."}
NESTED_LAYERS = {
    "language_model.model.layers.": "model.language_model.layers.",
    "model.language_model.layers.": "model.language_model.layers.",
}
H = {"transformer.h.": "transformer.h.", "h.": "transformer.h."}
SPLIT_EXPERTS = {
    "gate_proj.weight": "mlp.experts.gate_up_proj",
    "up_proj.weight": "mlp.experts.gate_up_proj",
    "down_proj.weight": "mlp.experts.down_proj",
}
MIXTRAL_EXPERTS = {
    "w1.weight": "mlp.experts.gate_up_proj",
    "w3.weight": "mlp.experts.gate_up_proj",
    "w2.weight": "mlp.experts.down_proj",
}

LLAMA = Family(LAYERS, ATTENTION | GATED_MLP)
FUSED = Family(
    LAYERS, _under("self_attn", "qkv_proj", "o_proj") | _under("mlp", "gate_up_proj", "down_proj")
)
GLM = Family(LAYERS, ATTENTION | _under("mlp", "gate_up_proj", "down_proj"))
STARCODER2 = Family(LAYERS, ATTENTION | _under("mlp", "c_fc", "c_proj"))
PHI = Family(
    LAYERS, _under("self_attn", "q_proj", "k_proj", "v_proj", "dense") | _under("mlp", "fc1", "fc2")
)
UNGATED = Family(LAYERS, ATTENTION | _under("mlp", "up_proj", "down_proj"))
NESTED = Family(NESTED_LAYERS, ATTENTION | GATED_MLP)
GPT2 = Family(H, GPT2_LINEAR | _under("attn", "q_attn"), transposed=True)
GPT_BIGCODE = Family(H, GPT2_LINEAR)
GPT_NEO = Family(
    H,
    _under("attn.attention", "q_proj", "k_proj", "v_proj", "out_proj")
    | _under("mlp", "c_fc", "c_proj"),
)
GPT_J = Family(
    H, _under("attn", "q_proj", "k_proj", "v_proj", "out_proj") | _under("mlp", "fc_in", "fc_out")
)
FALCON = Family(H, FALCON_LINEAR)
GPT_NEOX = Family(
    {"gpt_neox.layers.": "gpt_neox.layers.", "layers.": "gpt_neox.layers."},
    frozenset(name.replace("self_attention", "attention") for name in FALCON_LINEAR),
)
OPT = Family(
    {
        "model.decoder.layers.": "model.decoder.layers.",
        "decoder.layers.": "model.decoder.layers.",
    },
    _under("self_attn", "q_proj", "k_proj", "v_proj", "out_proj") | {"fc1", "fc2"},
)
MPT = Family(
    {"transformer.blocks.": "transformer.blocks.", "blocks.": "transformer.blocks."},
    _under("attn", "Wqkv", "out_proj") | _under("ffn", "up_proj", "down_proj"),
)
MIXTRAL = Family(
    LAYERS,
    ATTENTION,
    other=frozenset({"mlp.gate"}),
    renames={"block_sparse_moe.gate": "mlp.gate", "block_sparse_moe.experts": "mlp.experts"},
    experts=MIXTRAL_EXPERTS,
)
QWEN_MOE = Family(
    LAYERS,
    ATTENTION
    | GATED_MLP
    | _under("mlp.shared_expert", "gate_proj", "up_proj", "down_proj")
    | {"mlp.shared_expert_gate"},
    other=frozenset({"mlp.gate"}),
    experts=SPLIT_EXPERTS,
)
PHIMOE = Family(
    LAYERS,
    ATTENTION | {"mlp.router"},
    renames={"block_sparse_moe.gate": "mlp.router", "block_sparse_moe.experts": "mlp.experts"},
    experts=MIXTRAL_EXPERTS,
)
GRANITE_MOE = Family(
    LAYERS,
    ATTENTION,
    other=frozenset({"block_sparse_moe.router.layer"}),
    experts={
        "gate_up": "block_sparse_moe.experts.gate_up_proj",
        "down": "block_sparse_moe.experts.down_proj",
    },
    renames={
        "block_sparse_moe.input_linear.weight": "block_sparse_moe.experts.gate_up_proj",
        "block_sparse_moe.output_linear.weight": "block_sparse_moe.experts.down_proj",
    },
)
SHARED_EXPERTS_MOE = Family(
    LAYERS,
    ATTENTION | GATED_MLP | _under("mlp.shared_experts", "gate_proj", "up_proj", "down_proj"),
    other=frozenset({"mlp.gate", "mlp.moe_statics.e_score_correction_bias"}),
    experts=SPLIT_EXPERTS,
)
DEEPSEEK = Family(
    LAYERS,
    SHARED_EXPERTS_MOE.linear
    | _under("self_attn", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
    other=SHARED_EXPERTS_MOE.other,
    experts=SPLIT_EXPERTS,
)
DELTA_NET = _under(
    "linear_attn",
    "in_proj_qkvz",
    "in_proj_ba",
    "in_proj_qkv",
    "in_proj_z",
    "in_proj_a",
    "in_proj_b",
    "out_proj",
)
QWEN3_NEXT = Family(
    LAYERS,
    QWEN_MOE.linear | DELTA_NET,
    other=QWEN_MOE.other | {"linear_attn.conv1d"},
    experts=SPLIT_EXPERTS,
)
LFM2 = Family(
    LAYERS,
    _under("self_attn", "q_proj", "k_proj", "v_proj", "out_proj")
    | _under("conv", "in_proj", "out_proj")
    | _under("feed_forward", "w1", "w2", "w3"),
    other=frozenset({"conv.conv"}),
)
QWEN_VL = Family(
    {
        "model.layers.": "model.language_model.layers.",
        "model.language_model.layers.": "model.language_model.layers.",
    },
    ATTENTION | GATED_MLP,
)
CODEGEN = Family(H, _under("attn", "qkv_proj", "out_proj") | _under("mlp", "fc_in", "fc_out"))
XGLM = Family(
    LAYERS, _under("self_attn", "q_proj", "k_proj", "v_proj", "out_proj") | {"fc1", "fc2"}
)
PERSIMMON = Family(
    LAYERS,
    _under("self_attn", "query_key_value", "dense")
    | _under("mlp", "dense_h_to_4h", "dense_4h_to_h"),
)
NANOCHAT = Family(LAYERS, ATTENTION | _under("mlp", "fc1", "fc2"))

TIED_BY_DEFAULT = frozenset(
    {
        *("bloom", "cohere", "cohere2", "ernie4_5", "ernie4_5_moe", "falcon"),
        *("gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neo"),
        *("lfm2", "mistral3", "mpt", "opt", "smollm3", "starcoder2", "vaultgemma", "xglm"),
    }
)
"""Model types whose output head is the embedding unless the config says otherwise."""

_ALIKE = (
    (LLAMA, "cohere cohere2 diffllama ernie4_5 exaone4 gemma gemma2 gemma3_text granite helium"),
    (LLAMA, "hunyuan_v1_dense llama ministral3 mistral olmo olmo2 olmo3 qwen2 qwen3 seed_oss"),
    (LLAMA, "smollm3 stablelm vaultgemma"),
    (UNGATED, "apertus arcee jais2 nemotron"),
    (DEEPSEEK, "deepseek_v2 deepseek_v3"),
    (SHARED_EXPERTS_MOE, "dots1 ernie4_5_moe glm4_moe"),
    (QWEN3_NEXT, "qwen3_5_text qwen3_next"),
    (QWEN_VL, "qwen2_5_vl qwen2_vl qwen3_vl"),
    (NESTED, "gemma3 llava mistral3"),
    (GLM, "glm glm4"),
    (QWEN_MOE, "flex_olmo olmoe qwen2_moe qwen3_moe"),
    (FALCON, "bloom falcon"),
    (MIXTRAL, "minimax_m2 mixtral"),
)
FAMILY_OF: Mapping[str, Family] = {
    **{kind: family for family, kinds in _ALIKE for kind in kinds.split()},
    "codegen": CODEGEN,
    "gpt2": GPT2,
    "gpt_bigcode": GPT_BIGCODE,
    "gpt_neo": GPT_NEO,
    "gpt_neox": GPT_NEOX,
    "gptj": GPT_J,
    "granitemoe": GRANITE_MOE,
    "lfm2": LFM2,
    "mpt": MPT,
    "nanochat": NANOCHAT,
    "opt": OPT,
    "persimmon": PERSIMMON,
    "phi": PHI,
    "phi3": FUSED,
    "phimoe": PHIMOE,
    "starcoder2": STARCODER2,
    "xglm": XGLM,
}
"""Model type -> family."""
