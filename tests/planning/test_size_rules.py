"""Byte rules against the bytes that the real quantizers produce."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ewq.checkpoint.layout import Weight
from ewq.checkpoint.tensors import TensorInfo
from ewq.errors import InputError
from ewq.planning.sizes import FORMATS, format_of
from ewq.variants import Precision

SHAPES = [(64, 64), (96, 200), (4096, 512), (3, 7), (33, 65)]
BITS = {
    ("nf4", Precision.RAW): 16.0,
    ("nf4", Precision.EIGHT_BIT): 8 + 32 / 4096,
    ("nf4", Precision.FOUR_BIT): 4.5,
    ("nf4-double", Precision.FOUR_BIT): 4.127,
    ("gguf", Precision.RAW): 16.0,
    ("gguf", Precision.EIGHT_BIT): 8.5,
    ("gguf", Precision.FOUR_BIT): 4.5,
}


def stored(shape: tuple[int, int]) -> Weight:
    rows, columns = shape
    return Weight("w", ("w",), rows * columns, columns, 2 * rows * columns)


@pytest.mark.parametrize(("name", "precision"), BITS, ids=lambda of: str(of))
def test_bits_per_weight_of_a_large_matrix(name: str, precision: Precision):
    weight = stored((4096, 4096))

    bits = 8 * format_of(name).nbytes(weight, precision) / weight.numel

    assert bits == pytest.approx(BITS[name, precision], abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "double"), [("nf4", False), ("nf4-double", True)])
def test_4_bits_weigh_what_bitsandbytes_makes(name: str, double: bool, shape: tuple[int, int]):
    functional = pytest.importorskip("bitsandbytes").functional
    packed, state = functional.quantize_4bit(
        torch.randn(shape), quant_type="nf4", compress_statistics=double
    )
    scales = [state.absmax]
    if double:
        scales += [state.state2.absmax, state.offset]
    made = sum(tensor.nbytes for tensor in (packed, *scales))

    assert FORMATS[name].nbytes(stored(shape), Precision.FOUR_BIT) == made


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_8_bits_weigh_what_bitsandbytes_makes(shape: tuple[int, int]):
    functional = pytest.importorskip("bitsandbytes").functional
    packed, scales, _ = functional.int8_vectorwise_quant(torch.randn(shape, dtype=torch.float16))

    made = packed.nbytes + scales.nbytes

    assert FORMATS["nf4"].nbytes(stored(shape), Precision.EIGHT_BIT) == made


@pytest.mark.parametrize("shape", [(64, 256), (64, 64), (8, 576)], ids=str)
@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "F16"])
def test_gguf_rows_weigh_what_ggml_makes(kind: str, shape: tuple[int, int]):
    gguf = pytest.importorskip("gguf")
    made = gguf.quants.quantize(np.zeros(shape, np.float32), gguf.GGMLQuantizationType[kind]).nbytes
    four = FORMATS["gguf"].nbytes(stored(shape), Precision.FOUR_BIT)

    if kind == "Q8_0":
        assert FORMATS["gguf"].nbytes(stored(shape), Precision.EIGHT_BIT) == made
    elif kind == "F16":
        assert FORMATS["gguf"].nbytes(stored(shape), Precision.RAW) == made
    else:
        assert four == (made if shape[1] % 256 else stored(shape).numel * 144 // 256)


def test_rows_that_no_block_divides_stay_f16():
    weight = stored((5, 33))

    sizes = {FORMATS["gguf"].nbytes(weight, precision) for precision in Precision}

    assert sizes == {2 * weight.numel}


def test_an_unknown_target_is_refused():
    with pytest.raises(InputError, match=r"unknown target format 'awq'; known: nf4"):
        format_of("awq")


IN_GGUF = {
    "model.embed_tokens.weight": 2,
    "lm_head.weight": 2,
    "model.layers.0.mlp.gate.weight": 4,
    "model.layers.0.block_sparse_moe.router.layer.weight": 4,
    "model.layers.0.mlp.experts.e_score_correction_bias": 4,
    "transformer.wpe.weight": 4,
    "blk.0.ffn_gate_inp.weight": 4,
}


@pytest.mark.parametrize("name", IN_GGUF)
def test_gguf_keeps_routers_and_learned_positions_wide(name: str, tmp_path: Path):
    info = TensorInfo(name, "BF16", (4, 32), 256, tmp_path, 0)

    assert FORMATS["gguf"].rest(info) == IN_GGUF[name] * 128
