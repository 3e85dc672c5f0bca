"""Tiny random checkpoints of several architectures, and the slow truth about them."""

from functools import cache

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

VOCABULARY = 96
CONTEXT = 128


WIDTHS = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
WIDE_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
WINDOW = {"sliding_window": 8}


def llama():
    return LlamaForCausalLM(LlamaConfig(**WIDTHS | HEADS))


def gemma3():
    """Sliding windows shorter than the prompts, tied embeddings, soft-capped logits."""
    own = {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "final_logit_softcapping": 20.0,
    }
    return Gemma3ForCausalLM(Gemma3TextConfig(**WIDTHS | WIDE_HEADS | WINDOW | own))


def gemma3n():
    """As gemma3, and the last two layers attend to the keys of the two before them."""
    own = {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [48] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
    }
    return Gemma3nForCausalLM(Gemma3nTextConfig(**WIDTHS | WIDE_HEADS | WINDOW | own))


def mistral():
    """A sliding window in every layer."""
    return MistralForCausalLM(MistralConfig(**WIDTHS | HEADS | WINDOW))


def gpt2():
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=CONTEXT)
    return GPT2LMHeadModel(config)


ARCHITECTURES = {"llama": llama, "gemma3": gemma3, "gpt2": gpt2}
SLIDING = {"gemma3": gemma3, "gemma3n": gemma3n, "mistral": mistral}
"""Attention windows of 8 tokens."""


def save_tiny(architecture, folder):
    torch.manual_seed(7)
    (ARCHITECTURES | SLIDING)[architecture]().save_pretrained(folder)
    return folder


class NoTokenizer:
    """Contract tests speak in token ids only."""

    bos_token = None


@cache
def plain_model(folder):
    """The weights in 16 bits, computed with in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data.half())
    return model


def naive_logprobs(folder, ids):
    """Every distribution of one sequence by one plain forward pass, ``[len(ids), vocab]``."""
    return _naive_logprobs(folder, tuple(ids))


@cache
def _naive_logprobs(folder, ids):
    with torch.no_grad():
        logits = plain_model(folder)(torch.tensor([ids]), use_cache=False).logits
    return logits[0].log_softmax(-1).numpy()


def naive_greedy(folder, prompt, new_tokens):
    ids = list(prompt)
    for _ in range(new_tokens):
        ids.append(int(naive_logprobs(folder, ids)[-1].argmax()))
    return tuple(ids[len(prompt) :])


def random_ids(rng, length):
    return rng.integers(3, VOCABULARY, length).tolist()


def expected_tokens(folder, prefix, suffix):
    table = naive_logprobs(folder, [*prefix, *suffix])
    positions = np.arange(len(prefix) - 1, len(prefix) + len(suffix) - 1)
    return table[positions, suffix]
