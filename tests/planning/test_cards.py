"""What a sequence takes on a card, against counts by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ewq.checkpoint.embedded import fixture_path
from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.errors import InputError
from ewq.planning.sizes import RUNTIME_BYTES, card_for, find_card
from ewq.progress import NO_PROGRESS

QWEN3_8B = json.loads(fixture_path("configs/qwen3-8b.json").read_text())
GB = 10**9


def checkpoint(path="folder", **changes):
    config = {key: value for key, value in (QWEN3_8B | changes).items() if value is not None}
    return Checkpoint("model", Path(path), config, "Qwen3ForCausalLM", {})


def card(target="gguf", context=8192, **changes):
    return card_for(checkpoint(**changes), 12 * GB, context, target)


def test_a_plain_model_keeps_keys_and_values_of_every_layer():
    """Qwen3-8B: 36 layers, 8 heads of 128, 16 bits."""
    found = card()
    assert found.cache_bytes == 2 * 36 * 8 * 128 * 8192 * 2 == 1_207_959_552
    assert found.activation_bytes == 512 * (151936 + 2 * 4096) * 4
    assert found.room == 12 * GB - 1_207_959_552 - 327_942_144 - RUNTIME_BYTES


def test_transformers_computes_the_whole_prompt_at_once():
    one, two = card("nf4", 1000), card("nf4", 2000)
    assert one.activation_bytes == 2 * 1000 * (2 * 4096 + 3 * 12288) + 2 * 4096 * 12288
    assert two.cache_bytes == 2 * one.cache_bytes
    assert one.activation_bytes < two.activation_bytes < 2 * one.activation_bytes


def test_what_a_config_leaves_out_follows_from_what_it_has():
    plain = card(num_key_value_heads=None, head_dim=None)
    assert plain.cache_bytes == 2 * 36 * 32 * 128 * 8192 * 2
    assert card(multi_query=True).cache_bytes == 2 * 36 * 1 * 128 * 8192 * 2
    nested = {key: QWEN3_8B[key] for key in QWEN3_8B if key != "architectures"}
    inside = Checkpoint("m", Path("folder"), {"text_config": nested}, "X", {})
    assert card_for(inside, 12 * GB, 8192, "gguf") == card()


def test_layers_with_a_window_keep_the_window_and_recurrent_ones_nothing():
    kinds = ["full_attention", "sliding_attention", "linear_attention", "mamba"]
    token = 2 * 8 * 128 * 2
    assert card(layer_types=kinds, sliding_window=512).cache_bytes == (8192 + 512) * token
    assert card(context=100, layer_types=kinds, sliding_window=512).cache_bytes == 200 * token


@pytest.mark.parametrize(
    ("changes", "context", "why"),
    [
        ({"kv_lora_rank": 512}, 8192, "caches no plain keys and values"),
        ({"hidden_size": None}, 8192, "has no hidden_size"),
        ({"num_attention_heads": "many"}, 8192, "has no num_attention_heads"),
        ({"path": "model.gguf"}, 8192, "is a GGUF file; give the model's folder"),
    ],
)
def test_what_cannot_be_counted_is_refused(changes, context, why):
    with pytest.raises(InputError, match=why):
        card_for(checkpoint(**changes), 12 * GB, context, "gguf")


def test_a_real_folder_is_counted_and_what_leaves_no_room_refused():
    tiny = str(fixture_path("tiny-gemma3"))
    found = find_card(tiny, GB, 2048, "gguf", NO_PROGRESS)
    assert found is not None
    assert found.cache_bytes == 2 * 2 * 16 * 2 * (5 * 512 + 2048)
    assert found == card_for(open_checkpoint(tiny), GB, 2048, "gguf")
    assert find_card(tiny, None, None, "gguf", NO_PROGRESS) is None
    with pytest.raises(InputError, match="give a shorter --context"):
        find_card(tiny, GB // 2, None, "gguf", NO_PROGRESS)
    with pytest.raises(InputError, match="a card's memory only"):
        find_card(tiny, None, 8192, "gguf", NO_PROGRESS)
