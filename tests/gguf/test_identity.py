"""A GGUF file named by path must be a file of the model under test."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from ewq.checkpoint.embedded import fixture_path
from ewq.errors import CheckpointError
from ewq.gguf.probe import Shape, require_same_model, shape_of_config

OURS = Shape(8, 64, 1024)
"""The tiny Llama, whose file is under test."""


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(fixture_path("tiny-llama"))


def config_of(name):
    return json.loads((fixture_path(name) / "config.json").read_text())


def test_a_file_of_the_model_passes(tiny_file, tokenizer):
    assert shape_of_config(config_of("tiny-llama"), 8) == OURS
    require_same_model(tiny_file, OURS, tokenizer, "mine")


FOREIGN = {
    "blocks": {"blocks": 6},
    "width": {"width": 128},
    "vocabulary": {"vocabulary": 32000},
}


@pytest.mark.parametrize("changes", FOREIGN.values(), ids=FOREIGN)
def test_another_shape_is_one_line(tiny_file, tokenizer, changes):
    ours = replace(OURS, **changes)
    with pytest.raises(CheckpointError) as caught:
        require_same_model(tiny_file, ours, tokenizer, "mine")
    assert f"has {OURS}, mine has {ours}: not a file of this model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_tokens_under_the_same_shape_are_seen(tiny_file):
    other = AutoTokenizer.from_pretrained(fixture_path("tiny-mistral"))
    with pytest.raises(CheckpointError, match=r"spells \d+ of 1018 tokens otherwise than mine"):
        require_same_model(tiny_file, OURS, other, "mine")


def test_padding_passes(tiny_file, tokenizer):
    require_same_model(tiny_file, replace(OURS, vocabulary=1088), tokenizer, "mine")


def test_text_models_inside_others_are_found():
    inner = {"model_type": "gemma3_text", "hidden_size": 64, "vocab_size": 512}
    config = {"model_type": "gemma3", "text_config": inner}
    assert shape_of_config(config, 2) == Shape(2, 64, 512)


def test_a_damaged_file_is_refused_by_its_header(tiny_file, tokenizer, tmp_path):
    path = shutil.copy(tiny_file, tmp_path / "short.gguf")
    os.truncate(path, 5000)
    with pytest.raises(CheckpointError, match=r"truncated|more than its bytes"):
        require_same_model(path, OURS, tokenizer, "mine")
