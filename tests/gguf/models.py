"""Small models for tests of GGUF: made once per session, skipped where the extra is absent."""

import importlib.util
from functools import cache

import pytest

from ewq.checkpoint.embedded import fixture_path
from ewq.errors import BackendUnavailable
from ewq.files import cache_dir
from tests.session import alone

BLOCKS = 12
"""Enough that ``blk.1`` and ``blk.10`` both exist."""
WIDTH = 256
ODD_WIDTH = 288
"""Rows of the down projection: divisible by 32, not by 256, so that k-quants fall back."""


def require_gguf():
    for module in ("llama_cpp", "gguf"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}: pip install 'ewq[gguf]'")


@cache
def require_converter():
    from ewq.gguf.convert import find_converter

    require_gguf()
    try:
        return find_converter()
    except BackendUnavailable as error:
        pytest.skip(str(error))


def shared_gguf(source, type_name):
    """A GGUF file in the session's cache, made by one process; not to be changed."""
    from ewq.gguf.cache import cached_gguf
    from ewq.gguf.recipe import make_recipe

    require_converter()
    with alone("gguf"):
        return cached_gguf(source, make_recipe(type_name), cache_dir("gguf"))


def save_llama(folder, **config):
    """A random Llama in bfloat16 with the fixture's tokenizer; returns the folder."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(fixture_path("tiny-llama"))
    made = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **config,
    )
    torch.manual_seed(7)
    LlamaForCausalLM(made).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_deep(folder):
    """A Llama of twelve narrow blocks."""
    return save_llama(
        folder,
        hidden_size=WIDTH,
        intermediate_size=ODD_WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=1,
    )


def save_odd(folder):
    """A Llama whose rows (36 and 52) no block of any quantized type divides."""
    return save_llama(
        folder,
        hidden_size=36,
        intermediate_size=52,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
