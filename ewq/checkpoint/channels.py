"""A Llama model with its channels in another order and at other scales: the same function.

Weights that were once quantized lie on the grid of that format, which makes one
format lossless and its neighbours too good. Three symmetries move them off it:

- the residual stream may be permuted: embedding columns, norms, the inputs of q, k, v, gate
  and up, the outputs of o and down;
- what a norm's weight divides, the columns that read the norm may multiply;
- value channels within a key-value head (rows of v against columns of o, for every query head
  that shares it) and intermediate channels (rows of gate and up against columns of down) may be
  permuted; rows of v and up may be scaled against those columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

SCALES = (0.7, 1.4)
"""Factors are log-uniform between these: enough to break a grid, too little to make outliers."""


def disguise(model: PreTrainedModel, seed: int) -> None:
    """Permute and rescale the channels of a Llama in place; exact but for rounding."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(model.config.hidden_size, generator=rng)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            _take(weight, order, 0 if writes else -1)
        for index in range(model.config.num_hidden_layers):
            layer = _layer(model, index)
            _rescale_inputs(layer, rng)
            _mix_values(layer, model.config.head_dim, rng)
            _mix_intermediate(layer, rng)


def relative_error(weight: Tensor, kind: str) -> float:
    """``|Q(W) - W| / |W|`` (Frobenius) of a matrix stored in a ggml type such as ``Q4_1``."""
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    values = weight.detach().float().numpy()
    qtype = GGMLQuantizationType[kind]
    stored = quants.dequantize(quants.quantize(values, qtype), qtype)
    return float(np.linalg.norm(stored - values) / np.linalg.norm(values))


def _layer(model: PreTrainedModel, index: int) -> Mapping[str, Tensor]:
    """The weights of a decoder layer by the name of their module."""
    prefix = f"model.layers.{index}."
    return {
        name.removesuffix(".weight").rpartition(".")[2]: weight
        for name, weight in model.named_parameters()
        if name.startswith(prefix)
    }


def _rescale_inputs(layer: Mapping[str, Tensor], rng: torch.Generator) -> None:
    for norm, readers in (
        ("input_layernorm", ("q_proj", "k_proj", "v_proj")),
        ("post_attention_layernorm", ("gate_proj", "up_proj")),
    ):
        factors = _factors(len(layer[norm]), rng)
        layer[norm].div_(factors)
        for reader in readers:
            layer[reader].mul_(factors)


def _mix_values(layer: Mapping[str, Tensor], width: int, rng: torch.Generator) -> None:
    """``width`` channels a head; each key-value head serves the same number of query heads."""
    import torch

    value, output = layer["v_proj"], layer["o_proj"]
    heads = len(value) // width
    sharing = output.shape[1] // len(value)
    orders = torch.stack([torch.randperm(width, generator=rng) for _ in range(heads)])
    factors = _factors(len(value), rng)
    first = width * torch.arange(heads * sharing)[:, None]
    _take(value, (first[:heads] + orders).flatten(), 0)
    value.mul_(factors[:, None])
    _take(output, (first + orders.repeat_interleave(sharing, 0)).flatten(), 1)
    output.div_(factors.view(heads, width).repeat_interleave(sharing, 0).flatten())


def _mix_intermediate(layer: Mapping[str, Tensor], rng: torch.Generator) -> None:
    import torch

    gate, up, down = layer["gate_proj"], layer["up_proj"], layer["down_proj"]
    order = torch.randperm(len(up), generator=rng)
    for weight, dimension in ((gate, 0), (up, 0), (down, 1)):
        _take(weight, order, dimension)
    factors = _factors(len(up), rng)
    up.mul_(factors[:, None])
    down.div_(factors)


def _factors(count: int, rng: torch.Generator) -> Tensor:
    import torch

    low, high = SCALES
    return low * (high / low) ** torch.rand(count, generator=rng, dtype=torch.float64).float()


def _take(weight: Tensor, order: Tensor, dimension: int) -> None:
    weight.copy_(weight.index_select(dimension, order))
