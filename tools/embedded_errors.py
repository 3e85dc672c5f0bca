"""Relative rounding errors of the embedded model's weights, before and after its channels move.

The table of docs/protocol.md: python tools/embedded_errors.py
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import gguf
import numpy as np
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import Tensor

from ewq.checkpoint.embedded import SEED, dequantised, disguise, embedded_gguf
from ewq.gguf.llama_native import llama_library

GGML = ("Q4_1", "Q4_0", "IQ4_NL", "Q5_0", "Q8_0")


def ggml(kind: str) -> Callable[[Tensor], Tensor]:
    """Round to a ggml type with llama.cpp's own quantizer."""
    qtype = gguf.GGMLQuantizationType[kind]
    block, nbytes = gguf.GGML_QUANT_SIZES[qtype]
    quantize = llama_library()._lib.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    quantize.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]

    def rounded(weight: Tensor) -> Tensor:
        rows, columns = weight.shape
        stored = np.empty((rows, columns // block * nbytes), np.uint8)
        quantize(qtype, weight.data_ptr(), stored.ctypes.data, 0, rows, columns, None)
        return torch.from_numpy(gguf.quants.dequantize(stored, qtype))

    return rounded


def nf4(weight: Tensor) -> Tensor:
    """Round to bitsandbytes' NF4 in blocks of 64."""
    return dequantize_4bit(*quantize_4bit(weight, quant_type="nf4"))


def error(weights: list[Tensor], rounded: Callable[[Tensor], Tensor]) -> float:
    """``|Q(W) - W| / |W|`` over all of the matrices together."""
    squares = sum(float((rounded(weight) - weight).square().sum()) for weight in weights)
    return float((squares / sum(float(weight.square().sum()) for weight in weights)) ** 0.5)


def row(name: str, cells: list[str]) -> None:
    sys.stdout.write(f"| {' | '.join([name, *cells])} |\n")


def main() -> None:
    model = dequantised(embedded_gguf())
    columns: dict[str, Callable[[Tensor], Tensor]] = {kind: ggml(kind) for kind in GGML}
    columns["NF4"] = nf4
    row("", list(columns))
    row(":--", ["--:"] * len(columns))
    for state in ("as dequantised", "channels moved"):
        for part, suffix in (("matrices", "proj.weight"), ("embedding", "embed_tokens.weight")):
            # As stored: in 16 bits.
            weights = [
                weight.detach().half().float()
                for name, weight in model.named_parameters()
                if name.endswith(suffix)
            ]
            found = [f"{error(weights, rounded):.4f}" for rounded in columns.values()]
            row(f"{part}, {state}", found)
        disguise(model, SEED)


if __name__ == "__main__":
    main()
