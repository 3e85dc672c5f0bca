"""The embedded model's own checks: they refuse a model that changed, or kept its grid."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from ewq.checkpoint import embedded
from ewq.checkpoint.embedded import embedded_model, fixture_path
from ewq.errors import CheckpointError


@pytest.fixture
def tiny_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny Llama in place of the package's file, and an empty cache."""
    folder = fixture_path("tiny-llama")
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "embedded_gguf", lambda: folder / "model.safetensors")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    monkeypatch.setattr(
        embedded,
        "dequantised",
        lambda _: LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32),
    )
    return folder


def test_a_package_without_its_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(embedded, "find_spec", lambda name: spec)
    with pytest.raises(CheckpointError, match=r"holds 0 \.gguf files; install it again"):
        embedded.embedded_gguf()


def test_it_is_made_once_in_16_bits(tiny_source: Path) -> None:
    folder = embedded_model()
    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert not torch.equal(
        weights["model.norm.weight"],
        load_file(tiny_source / "model.safetensors")["model.norm.weight"].half(),
    )
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert embedded_model() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made


def test_a_changed_function_is_refused(
    tiny_source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def spoil(model: LlamaForCausalLM, _: int) -> None:
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(1.5)

    monkeypatch.setattr(embedded, "disguise", spoil)
    with pytest.raises(CheckpointError, match=r"changed while it was made: KLD \d"):
        embedded_model()
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_weights_left_on_a_grid_are_refused(
    tiny_source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(embedded, "relative_error", lambda weight, kind: 0.0002)
    with pytest.raises(CheckpointError, match="q_proj still lies on a 4-bit grid"):
        embedded_model()
    assert list((tmp_path / "cache" / "models").iterdir()) == []
