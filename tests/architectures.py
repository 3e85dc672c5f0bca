"""Tiny models of many architectures, built by transformers from its own configs."""

from __future__ import annotations

from typing import Any

import torch
import transformers

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS_8 = {"head_dim": 8}
MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SMALL),
    "llama-tied": ("LlamaConfig", {**SMALL, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", SMALL),
    "qwen2": ("Qwen2Config", SMALL),
    "qwen3": ("Qwen3Config", {**SMALL, **HEADS_8}),
    "gemma": ("GemmaConfig", {**SMALL, **HEADS_8}),
    "gemma2": ("Gemma2Config", {**SMALL, **HEADS_8}),
    "gemma3-text": ("Gemma3TextConfig", {**SMALL, **HEADS_8}),
    "gemma3-multimodal": (
        "Gemma3Config",
        {
            "text_config": {**SMALL, **HEADS_8},
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
        },
    ),
    "phi": ("PhiConfig", SMALL),
    "phi3": ("Phi3Config", SMALL),
    "gpt2": ("GPT2Config", {**GPT, "n_positions": 64}),
    "gpt-bigcode": ("GPTBigCodeConfig", {**GPT, "n_positions": 64}),
    "gpt-j": ("GPTJConfig", {**GPT, "n_positions": 64, "rotary_dim": 4}),
    "gpt-neox": ("GPTNeoXConfig", SMALL),
    "falcon": ("FalconConfig", {**SMALL, "alibi": False}),
    "bloom": ("BloomConfig", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": (
        "MptConfig",
        {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    ),
    "opt": ("OPTConfig", {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "olmo": ("OlmoConfig", SMALL),
    "olmo2": ("Olmo2Config", SMALL),
    "starcoder2": ("Starcoder2Config", SMALL),
    "granite": ("GraniteConfig", SMALL),
    "stablelm": ("StableLmConfig", SMALL),
    "cohere": ("CohereConfig", SMALL),
    "glm4": ("Glm4Config", {**SMALL, **HEADS_8}),
    "smollm3": ("SmolLM3Config", SMALL),
    "nemotron": ("NemotronConfig", SMALL),
    "apertus": ("ApertusConfig", SMALL),
    "arcee": ("ArceeConfig", SMALL),
    "codegen": ("CodeGenConfig", {**GPT, "n_positions": 64, "rotary_dim": 4}),
    "cohere2": ("Cohere2Config", SMALL),
    "diffllama": ("DiffLlamaConfig", SMALL),
    "ernie4.5": ("Ernie4_5Config", SMALL),
    "exaone4": ("Exaone4Config", SMALL),
    "glm": ("GlmConfig", {**SMALL, **HEADS_8}),
    "gpt-neo": (
        "GPTNeoConfig",
        {
            "vocab_size": 64,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global"], 2]],
            "max_position_embeddings": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "helium": ("HeliumConfig", {**SMALL, **HEADS_8}),
    "hunyuan": ("HunYuanDenseV1Config", {**SMALL, **HEADS_8}),
    "jais2": ("Jais2Config", SMALL),
    "lfm2": ("Lfm2Config", {**SMALL, "layer_types": ["full_attention", "conv"]}),
    "llava": (
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama", **SMALL},
            "vision_config": {"model_type": "clip_vision_model", **VISION},
        },
    ),
    "ministral3": ("Ministral3Config", {**SMALL, **HEADS_8}),
    "mistral3": (
        "Mistral3Config",
        {
            "text_config": {"model_type": "mistral", **SMALL},
            "vision_config": {"model_type": "pixtral", **VISION, **HEADS_8},
        },
    ),
    "nanochat": ("NanoChatConfig", SMALL),
    "olmo3": ("Olmo3Config", SMALL),
    "persimmon": ("PersimmonConfig", SMALL),
    "qwen2-vl": (
        "Qwen2VLConfig",
        {
            "text_config": {**SMALL, **MROPE},
            "vision_config": {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32},
        },
    ),
    "qwen2.5-vl": (
        "Qwen2_5_VLConfig",
        {
            "text_config": {**SMALL, **MROPE},
            "vision_config": {**QWEN_VISION, "intermediate_size": 32},
        },
    ),
    "qwen3-vl": (
        "Qwen3VLConfig",
        {
            "text_config": {**SMALL, **HEADS_8},
            "vision_config": {
                **QWEN_VISION,
                "intermediate_size": 32,
                "deepstack_visual_indexes": [0],
            },
        },
    ),
    "qwen3.5": ("Qwen3_5TextConfig", {**SMALL, **HEADS_8}),
    "seed-oss": ("SeedOssConfig", {**SMALL, **HEADS_8}),
    "vaultgemma": ("VaultGemmaConfig", {**SMALL, **HEADS_8}),
    "xglm": (
        "XGLMConfig",
        {
            "vocab_size": 64,
            "d_model": 32,
            "ffn_dim": 64,
            "num_layers": 2,
            "attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "deepseek-v2": ("DeepseekV2Config", {**SMALL, **ROUTED, **LATENT}),
    "deepseek-v3": ("DeepseekV3Config", {**SMALL, **ROUTED, **LATENT}),
    "dots1": ("Dots1Config", {**SMALL, **ROUTED, **HEADS_8}),
    "ernie4.5-moe": (
        "Ernie4_5_MoeConfig",
        {**SMALL, "moe_num_experts": 4, "moe_intermediate_size": 16, "moe_k": 2},
    ),
    "flex-olmo": ("FlexOlmoConfig", {**SMALL, "num_experts": 4, "num_experts_per_tok": 2}),
    "glm4-moe": ("Glm4MoeConfig", {**SMALL, **ROUTED, **HEADS_8}),
    "granite-moe": ("GraniteMoeConfig", {**SMALL, **LOCAL_EXPERTS}),
    "minimax-m2": ("MiniMaxM2Config", {**SMALL, **HEADS_8, **LOCAL_EXPERTS}),
    "phi-moe": ("PhimoeConfig", {**SMALL, **LOCAL_EXPERTS}),
    "qwen3-next": ("Qwen3NextConfig", {**SMALL, **MOE, **HEADS_8}),
    "mixtral": ("MixtralConfig", {**SMALL, "num_local_experts": 4}),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        {**SMALL, **MOE, "shared_expert_intermediate_size": 16, "mlp_only_layers": [0]},
    ),
    "qwen3-moe": ("Qwen3MoeConfig", {**SMALL, **MOE, **HEADS_8}),
    "olmoe": ("OlmoeConfig", {**SMALL, "num_experts": 4, "num_experts_per_tok": 2}),
}
"""Readable id -> config class and its arguments."""


def build(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A model of random weights, the same each time."""
    config_class, arguments = ARCHITECTURES[name]
    config = getattr(transformers, config_class)(**arguments)
    auto = (
        transformers.AutoModelForImageTextToText
        if "text_config" in arguments
        else transformers.AutoModelForCausalLM
    )
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def linear_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What transformers itself calls linear in the decoder layers, by state-dict name.

    Linear and Conv1D modules, and the stacked parameters of expert modules.
    """
    from transformers.pytorch_utils import Conv1D

    layers = decoder_layers(model)
    found = {}
    for name, module in model.named_modules():
        if not name.startswith(layers):
            continue
        if isinstance(module, torch.nn.Linear | Conv1D):
            found[f"{name}.weight"] = module.weight
        elif "experts" in type(module).__name__.lower():
            for inner, parameter in module.named_parameters(recurse=False):
                found[f"{name}.{inner}"] = parameter
    return found


def decoder_layers(model: torch.nn.Module) -> str:
    """Prefix of the language model's list of layers: the module list with the decoder's blocks."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and "vision" not in name and name.count(".") < 4
    }
    longest = [name for name, module in lists.items() if len(module) == 2 and "." in name]
    assert len(longest) == 1, sorted(lists)
    return longest[0] + "."
