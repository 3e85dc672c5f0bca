from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ewq.checkpoint.opening import open_checkpoint

BIG = 400_000


def fingerprint(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder).fingerprint


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "small": torch.randn(1000, generator=generator),
        "big": torch.randn(BIG, generator=generator),
    }


def renamed(of: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"other": of["small"], "big": of["big"]}


def one_small_value(of: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    of["small"][517] += 1e-3
    return of


def fine_tuned(of: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**of, "big": of["big"] * 1.0001}


def reshaped(of: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**of, "big": of["big"].reshape(2, -1)}


def end_changed(of: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    of["big"][-1] += 1
    return of


@pytest.mark.parametrize(
    "change",
    [renamed, one_small_value, fine_tuned, reshaped, end_changed],
    ids=lambda of: of.__name__,
)
def test_another_model_has_another_fingerprint(change, tmp_path: Path):
    assert fingerprint(tmp_path, tensors()) != fingerprint(tmp_path, change(tensors()))


def test_config_counts_but_not_what_saving_rewrites(tmp_path: Path):
    one = fingerprint(tmp_path, tensors(), rope_theta=1e4)

    assert one != fingerprint(tmp_path, tensors(), rope_theta=1e6)
    assert one == fingerprint(
        tmp_path, tensors(), rope_theta=1e4, transformers_version="9", _name_or_path="x"
    )


def test_a_copy_has_the_same_fingerprint(tmp_path: Path):
    one = fingerprint(tmp_path / "one", tensors())
    other = fingerprint(tmp_path / "other", tensors())
    os.utime(tmp_path / "other" / "model.safetensors", (1, 1))

    assert one == other == open_checkpoint(tmp_path / "other").fingerprint
    assert one.startswith("sha256:")
    assert len(one) == 71
