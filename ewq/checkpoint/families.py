"""Decoder families: how each names its blocks and the linear weights inside them.

A family is data: a model type with known names is one more word in ``FAMILY_OF``. A weight that
no pattern explains is an error, never a guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """The names of one family of decoders; patterns match whole names below a block."""

    roots: Mapping[str, str]
    """Prefix of a block in the checkpoint -> prefix after loading; an index follows."""
    linear: str
    """Linear modules, as named after loading."""
    other: str = ""
    """Modules with matrices that are not quantizable linear layers: routers."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Module in the checkpoint -> module after loading, where they differ."""
    experts: Mapping[str, str] = field(default_factory=dict)
    """Experts' tensors in the checkpoint -> the stacked parameter that holds all of them."""
    transposed: bool = False
    """Weights are stored ``[in, out]`` (GPT-2's Conv1D)."""


def _roots(loaded: str, *stored: str) -> Mapping[str, str]:
    return dict.fromkeys((loaded, *stored), loaded)


LAYERS = _roots("model.layers.", "layers.")
H = _roots("transformer.h.", "h.")
QKVO = r"self_attn\.[qkvo]_proj"
QKV_OUT = r"self_attn\.([qkv]|out)_proj"
GATED = r"(gate|up|down)_proj"
LLAMA = rf"{QKVO}|mlp\.{GATED}"
DENSE_4H = r"mlp\.dense_(h_to_4h|4h_to_h)"
GPT2 = r"attn\.c_(attn|proj)|mlp\.c_(fc|proj)"
DELTA_NET = r"linear_attn\.(in_proj_(qkvz|ba|qkv|z|a|b)|out_proj)"
LATENT = r"self_attn\.(q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj)"
QWEN_MOE = rf"{LLAMA}|mlp\.shared_expert\.{GATED}|mlp\.shared_expert_gate"
SHARED_EXPERTS = rf"{LLAMA}|mlp\.shared_experts\.{GATED}"
SHARED_ROUTER = r"mlp\.(gate|moe_statics\.e_score_correction_bias)"
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
SPLIT_EXPERTS = {
    r"mlp\.experts\.\d+\.(gate|up)_proj\.weight": GATE_UP,
    r"mlp\.experts\.\d+\.down_proj\.weight": DOWN,
}
MIXTRAL_EXPERTS = {
    r"(block_sparse_moe|mlp)\.experts\.\d+\.w[13]\.weight": GATE_UP,
    r"(block_sparse_moe|mlp)\.experts\.\d+\.w2\.weight": DOWN,
}
GRANITE_EXPERTS = {
    r"block_sparse_moe\.input_linear\.weight": "block_sparse_moe.experts.gate_up_proj",
    r"block_sparse_moe\.output_linear\.weight": "block_sparse_moe.experts.down_proj",
}
NESTED = _roots("model.language_model.layers.", "language_model.model.layers.")
QWEN_VL = _roots("model.language_model.layers.", "model.layers.")
MIXTRAL_GATE = {"block_sparse_moe.gate": "mlp.gate"}
PHIMOE_GATE = {"block_sparse_moe.gate": "mlp.router"}

_FAMILIES = {
    "cohere cohere2 diffllama ernie4_5 exaone4 gemma gemma2 gemma3_text granite helium "
    "hunyuan_v1_dense llama ministral3 mistral olmo olmo2 olmo3 qwen2 qwen3 seed_oss "
    "smollm3 stablelm vaultgemma": Family(LAYERS, LLAMA),
    "apertus arcee jais2 nemotron": Family(LAYERS, rf"{QKVO}|mlp\.(up|down)_proj"),
    "glm glm4": Family(LAYERS, rf"{QKVO}|mlp\.(gate_up|down)_proj"),
    "phi3": Family(LAYERS, r"self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj"),
    "starcoder2": Family(LAYERS, rf"{QKVO}|mlp\.c_(fc|proj)"),
    "nanochat": Family(LAYERS, rf"{QKVO}|mlp\.fc[12]"),
    "phi": Family(LAYERS, r"self_attn\.([qkv]_proj|dense)|mlp\.fc[12]"),
    "persimmon": Family(LAYERS, rf"self_attn\.(query_key_value|dense)|{DENSE_4H}"),
    "xglm": Family(LAYERS, rf"{QKV_OUT}|fc[12]"),
    "opt": Family(_roots("model.decoder.layers.", "decoder.layers."), rf"{QKV_OUT}|fc[12]"),
    "mpt": Family(
        _roots("transformer.blocks.", "blocks."),
        r"attn\.(Wqkv|out_proj)|ffn\.(up|down)_proj",
    ),
    "bloom falcon": Family(H, rf"self_attention\.(query_key_value|dense)|{DENSE_4H}"),
    "gpt_neox": Family(
        _roots("gpt_neox.layers.", "layers."), rf"attention\.(query_key_value|dense)|{DENSE_4H}"
    ),
    "gpt2": Family(H, rf"{GPT2}|attn\.q_attn", transposed=True),
    "gpt_bigcode": Family(H, GPT2),
    "gpt_neo": Family(H, r"attn\.attention\.([qkv]|out)_proj|mlp\.c_(fc|proj)"),
    "gptj": Family(H, r"attn\.([qkv]|out)_proj|mlp\.fc_(in|out)"),
    "codegen": Family(H, r"attn\.(qkv|out)_proj|mlp\.fc_(in|out)"),
    "lfm2": Family(
        LAYERS, rf"{QKV_OUT}|conv\.(in|out)_proj|feed_forward\.w[123]", other=r"conv\.conv"
    ),
    "qwen2_5_vl qwen2_vl qwen3_vl": Family(QWEN_VL, LLAMA),
    "gemma3 llava mistral3": Family(NESTED, LLAMA),
    "minimax_m2 mixtral": Family(LAYERS, QKVO, r"mlp\.gate", MIXTRAL_GATE, MIXTRAL_EXPERTS),
    "phimoe": Family(LAYERS, rf"{QKVO}|mlp\.router", "", PHIMOE_GATE, MIXTRAL_EXPERTS),
    "flex_olmo olmoe qwen2_moe qwen3_moe": Family(
        LAYERS, QWEN_MOE, r"mlp\.gate", experts=SPLIT_EXPERTS
    ),
    "qwen3_5_text qwen3_next": Family(
        LAYERS, rf"{QWEN_MOE}|{DELTA_NET}", r"mlp\.gate|linear_attn\.conv1d", experts=SPLIT_EXPERTS
    ),
    "dots1 ernie4_5_moe glm4_moe": Family(
        LAYERS, SHARED_EXPERTS, SHARED_ROUTER, experts=SPLIT_EXPERTS
    ),
    "deepseek_v2 deepseek_v3": Family(
        LAYERS, rf"{SHARED_EXPERTS}|{LATENT}", SHARED_ROUTER, experts=SPLIT_EXPERTS
    ),
    "granitemoe": Family(LAYERS, QKVO, r"block_sparse_moe\.router\.layer", experts=GRANITE_EXPERTS),
}
FAMILY_OF = {kind: family for kinds, family in _FAMILIES.items() for kind in kinds.split()}
"""``model_type`` -> family."""

TIED_BY_DEFAULT = frozenset(
    {
        *("bloom", "cohere", "cohere2", "ernie4_5", "ernie4_5_moe", "falcon"),
        *("gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neo"),
        *("lfm2", "mistral3", "mpt", "opt", "smollm3", "starcoder2", "vaultgemma", "xglm"),
    }
)
"""Model types whose output head is the embedding unless the config says otherwise."""

GGUF_FAMILY = Family(
    {"blk.": "blk."},
    r"attn_(q|k|v|qkv|output)|ffn_(gate|up|down)(_exps|_shexp)?",
    "ffn_gate_inp(_shexp)?",
)
"""Of every architecture of llama.cpp: there weights keep the names that the file gives them."""
