"""Handing memory back touches only clean pages of the checkpoint's own files."""

from __future__ import annotations

import mmap

import pytest
import torch
from bitsandbytes.nn import Linear8bitLt
from transformers.integrations.bitsandbytes import Bnb8bitQuantize
from transformers.pytorch_utils import Conv1D

from ewq.quantizer import modules
from ewq.quantizer.modules import MappedPages


@pytest.mark.parametrize("written", [False, True], ids=["clean", "written"])
def test_mapped_content_is_the_same_after_releasing(tmp_path, written):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x" * (1 << 16))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        if written:
            mapped[:3] = b"new"
        before = mapped[:]

        MappedPages([str(path)]).release()

        assert mapped[:] == before


def test_they_are_released_once_per_so_many_bytes(monkeypatch):
    rounds = []
    pages = MappedPages(())
    monkeypatch.setattr(pages, "release", lambda: rounds.append(1))

    pages.used(modules.EVERY_BYTES - 1)
    assert not rounds
    pages.used(1)

    assert len(rounds) == 1


def test_a_large_checkpoint_has_no_more_rounds_than_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(modules, "EVERY_BYTES", 10)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x" * 32000)
    rounds = []
    pages = MappedPages([str(path)])
    monkeypatch.setattr(pages, "release", lambda: rounds.append(1))
    pages.used(999)
    assert not rounds
    pages.used(1)
    assert rounds


@pytest.mark.parametrize("source", [torch.nn.Linear, Conv1D])
def test_int8_weights_are_transformers_own_and_stay_where_they_lie(source, monkeypatch):
    torch.manual_seed(0)
    weight = torch.randn(48, 32)
    holder = torch.nn.Module()
    holder.linear = Linear8bitLt(32, 48, bias=False, has_fp16_weights=False)
    holder.linear.source_cls = source
    holder.get_parameter_or_buffer = holder.get_parameter
    [theirs] = Bnb8bitQuantize(None).convert({"linear.weight": weight}, model=holder).values()
    monkeypatch.setattr(torch.Tensor, "cpu", None)
    ours = modules.int8_parameter(holder.linear, weight, "linear")
    for part in ("data", "CB", "SCB"):
        assert torch.equal(getattr(ours, part), getattr(theirs, part))
    assert (ours.has_fp16_weights, ours.requires_grad) == (False, False)
