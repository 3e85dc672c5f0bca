"""Tiny checkpoints, plans that mix precisions, and modules swapped by hand."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import torch
import transformers
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from torch import nn
from transformers.pytorch_utils import Conv1D

from ewq import __version__
from ewq.checkpoint.layout import find_layout
from ewq.checkpoint.opening import open_checkpoint
from ewq.planning.plan import QuantizationPlan
from ewq.planning.sizes import footprint_of, format_of
from ewq.variants import Precision
from tests.architectures import build

ORDER = (Precision.FOUR_BIT, Precision.EIGHT_BIT, Precision.RAW)
IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 11]])


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The tiny model of an architecture as a checkpoint."""
    build(name, dtype).save_pretrained(folder)
    return folder


def save_llama(folder: Path, dtype: torch.dtype = torch.bfloat16, **changes: int) -> Path:
    """A Llama large enough for a percent to mean something."""
    sizes = {
        "vocab_size": 128,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        **changes,
    }
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**sizes)
    transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    return folder


def plan_for(
    folder: Path, precisions: tuple[Precision, ...] = ORDER, target: str = "nf4"
) -> QuantizationPlan:
    """A plan that deals out ``precisions`` weight by weight."""
    checkpoint = open_checkpoint(folder)
    layout = find_layout(checkpoint)
    weights = dict(zip(layout.weights, cycle(precisions), strict=False))
    footprint = footprint_of(checkpoint, layout)
    size = footprint.nbytes(weights, format_of(target))
    return QuantizationPlan(
        model=str(folder),
        fingerprint=checkpoint.fingerprint,
        architecture=checkpoint.architecture,
        scorer="histogram",
        granularity="tensor",
        rule={"kind": "test"},
        mean=0.0,
        std=0.0,
        thresholds={},
        blocks=(),
        weights=weights,
        bits_per_weight=8 * size / footprint.numel,
        size_bytes=size,
        ewq_version=__version__,
        target=target,
    )


def load(folder: Path, **options: object) -> nn.Module:
    """The model of the class that the checkpoint names."""
    name = open_checkpoint(folder).architecture
    return getattr(transformers, name).from_pretrained(folder, **options)


def swapped_by_hand(folder: Path, plan: QuantizationPlan) -> nn.Module:
    """The proof of concept's way: the whole model in memory, then module by module."""
    model = load(folder)
    for name, precision in plan.weights.items():
        path = name.removesuffix(".weight")
        if precision is not Precision.RAW and name.endswith(".weight"):
            old = model.get_submodule(path)
            model.set_submodule(path, MADE[precision](old).eval())
    return model


def _parts(old: nn.Module) -> tuple[torch.Tensor, nn.Parameter | None]:
    weight = old.weight.data.T if isinstance(old, Conv1D) else old.weight.data
    return weight.clone(), old.bias


def _four_bit(old: nn.Module) -> nn.Module:
    weight, bias = _parts(old)
    rows_out, rows_in = weight.shape
    new = Linear4bit(rows_in, rows_out, bias is not None, torch.float32, False, "nf4")
    new.weight = Params4bit(
        weight, requires_grad=False, compress_statistics=False, quant_type="nf4", module=new
    )
    new.bias = bias
    # Otherwise float32 is not what it computes in on every processor; see docs/results.
    new.support_avx512bf16_for_cpu = False
    return new.to("cpu")


def _eight_bit(old: nn.Module) -> nn.Module:
    weight, bias = _parts(old)
    rows_out, rows_in = weight.shape
    new = Linear8bitLt(rows_in, rows_out, bias is not None, has_fp16_weights=False, threshold=6.0)
    new.weight = Int8Params(weight, requires_grad=False)
    new.bias = bias
    return new.to("cpu")


MADE = {Precision.FOUR_BIT: _four_bit, Precision.EIGHT_BIT: _eight_bit}
CLASSES = {Precision.FOUR_BIT: Linear4bit, Precision.EIGHT_BIT: Linear8bitLt}


def logits(model: nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Next-token scores at every position: ``[1, tokens, vocab]``."""
    with torch.no_grad():
        return model(input_ids=ids).logits
