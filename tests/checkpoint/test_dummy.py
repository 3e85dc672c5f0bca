"""Random weights in a real shape."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ewq.checkpoint import dummy
from ewq.checkpoint.dummy import dummy_checkpoint
from ewq.checkpoint.embedded import fixture_path
from ewq.checkpoint.opening import open_checkpoint
from ewq.errors import CheckpointError
from ewq.planning.analysis import analyze
from ewq.variants import Precision

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 2048,
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path / "cache"))
    fields = json.loads(fixture_path("configs/qwen3-8b.json").read_text())
    file = tmp_path / "small.json"
    file.write_text(json.dumps(fields | SMALL))
    return file


def test_the_folder_opens_as_a_model_of_that_shape(small):
    model = AutoModelForCausalLM.from_pretrained(dummy_checkpoint(small))
    assert model.config.num_hidden_layers == 12
    assert model.lm_head.weight.shape == (2048, 64)
    assert 0.015 < model.model.layers[3].mlp.up_proj.weight.float().std() < 0.025


def test_it_is_made_once_and_the_same_everywhere(small, tmp_path, monkeypatch):
    first = dummy_checkpoint(small)
    assert dummy_checkpoint(small) == first
    weights = (first / "model.safetensors").read_bytes()
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path / "elsewhere"))
    again = dummy_checkpoint(small)
    assert again != first
    assert (again / "model.safetensors").read_bytes() == weights


def test_a_large_model_comes_in_shards_with_the_same_weights(small, tmp_path, monkeypatch):
    whole = load_file(dummy_checkpoint(small) / "model.safetensors")
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(dummy, "SHARD_BYTES", 300_000)
    folder = dummy_checkpoint(small)
    checkpoint = open_checkpoint(folder)
    assert len(checkpoint.files) > 2
    assert all(torch.equal(checkpoint.load(name), values) for name, values in whole.items())


def test_its_plan_is_a_mix_as_a_real_models_is(small):
    plan = analyze(dummy_checkpoint(small)).plan(factor=0.5)
    assert {block.precision for block in plan.blocks} == set(Precision)


@pytest.mark.parametrize("content", ["{}", '{"model_type": "t5"}', "no json"])
def test_what_is_no_causal_models_config_is_refused(tmp_path, content):
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(CheckpointError, match="no causal language model"):
        dummy_checkpoint(file)


def test_a_missing_config_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent.json: No such file"):
        dummy_checkpoint(tmp_path / "absent.json")
