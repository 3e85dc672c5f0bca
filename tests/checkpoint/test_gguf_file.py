from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ewq.checkpoint.layout import find_layout
from ewq.checkpoint.opening import open_checkpoint
from ewq.errors import CheckpointError
from ewq.planning.analysis import analyze
from ewq.variants import Precision

gguf = pytest.importorskip("gguf")
Kind = gguf.GGMLQuantizationType
DENSE = {
    "attn_q": (64, 64),
    "attn_k": (32, 64),
    "attn_v": (32, 64),
    "attn_output": (64, 64),
    "ffn_gate": (128, 64),
    "ffn_up": (128, 64),
    "ffn_down": (64, 128),
}


def write(path: Path, tensors: dict[str, np.ndarray], kind: Kind, architecture: str) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    for name, values in tensors.items():
        stored = Kind.F32 if values.ndim == 1 else kind
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(**extra: np.ndarray) -> dict[str, np.ndarray]:
    source = np.random.default_rng(0)
    found = {"token_embd.weight": source.normal(size=(96, 64)).astype(np.float32)}
    for index in range(2):
        found[f"blk.{index}.attn_norm.weight"] = np.ones(64, np.float32)
        for name, shape in DENSE.items():
            found[f"blk.{index}.{name}.weight"] = source.normal(size=shape).astype(np.float32)
    return {**found, **extra}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_a_gguf_is_measured_as_it_dequantises(kind: str, tmp_path: Path):
    source = tensors()
    path = write(tmp_path / "m.gguf", source, Kind[kind], "llama")

    analysis = analyze(path, cache=False)

    for index in range(2):
        for name in DENSE:
            stored = source[f"blk.{index}.{name}.weight"]
            back = gguf.quants.dequantize(gguf.quants.quantize(stored, Kind[kind]), Kind[kind])
            found = analysis.statistics[f"blk.{index}.{name}.weight"]
            assert found.numel == stored.size
            assert found.variance == pytest.approx(np.var(back.astype(np.float64)), rel=1e-9)
            assert found.maximum == back.max()


@pytest.mark.parametrize("kind", ["F16", "Q4_0"])
def test_a_tensor_loads_as_torch(kind: str, tmp_path: Path):
    source = tensors()
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", source, Kind[kind], "llama"))

    loaded = checkpoint.load("blk.1.ffn_down.weight")

    stored = gguf.quants.quantize(source["blk.1.ffn_down.weight"], Kind[kind])
    assert loaded.shape == (64, 128)
    assert np.array_equal(loaded.float().numpy(), gguf.quants.dequantize(stored, Kind[kind]))


def test_a_plan_for_gguf_counts_its_own_bytes(tmp_path: Path):
    source = tensors()
    path = write(tmp_path / "m.gguf", source, Kind.F16, "llama")
    eight = write(tmp_path / "m8.gguf", source, Kind.Q8_0, "llama")
    stored = open_checkpoint(eight).tensors
    embedding = source["token_embd.weight"].size

    plan = analyze(path, cache=False).uniform_plan(Precision.EIGHT_BIT, target="gguf")

    weights = sum(of.nbytes for name, of in stored.items() if name != "token_embd.weight")
    assert plan.size_bytes == weights + 2 * embedding


def test_experts_are_stacked_weights_without_their_router(tmp_path: Path):
    source = np.random.default_rng(0)
    extra = {
        f"blk.{index}.{name}.weight": source.normal(size=shape).astype(np.float32)
        for index in range(2)
        for name, shape in {
            "ffn_gate_exps": (4, 32, 64),
            "ffn_up_exps": (4, 32, 64),
            "ffn_down_exps": (4, 64, 32),
            "ffn_gate_inp": (4, 64),
        }.items()
    }
    kept = {name: of for name, of in tensors().items() if ".ffn_" not in name}
    path = write(tmp_path / "m.gguf", {**kept, **extra}, Kind.F32, "qwen3moe")

    layout = find_layout(open_checkpoint(path))

    assert layout.details["blk.1.ffn_gate_exps.weight"].expert
    assert layout.details["blk.1.ffn_gate_exps.weight"].numel == 4 * 32 * 64
    assert not any("gate_inp" in name for name in layout.weights)


def test_an_unknown_matrix_is_refused(tmp_path: Path):
    extra = {"blk.0.ssm_in.weight": np.ones((64, 64), np.float32)}
    path = write(tmp_path / "m.gguf", tensors(**extra), Kind.F32, "mamba")

    with pytest.raises(CheckpointError, match=r"blk\.0\.ssm_in"):
        find_layout(open_checkpoint(path))


@pytest.mark.parametrize("keep", [0, 3, 100, -64], ids=["empty", "magic", "header", "data"])
def test_a_truncated_file_is_one_line(keep: int, tmp_path: Path):
    path = write(tmp_path / "m.gguf", tensors(), Kind.F32, "llama")
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)

    assert "m.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_nan_inside_quantized_blocks_is_named(tmp_path: Path):
    path = write(tmp_path / "m.gguf", tensors(), Kind.Q8_0, "llama")
    info = open_checkpoint(path).tensors["blk.0.ffn_up.weight"]
    data = bytearray(path.read_bytes())
    data[info.offset : info.offset + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)

    with pytest.raises(CheckpointError, match=r"blk\.0\.ffn_up\.weight of .* NaN"):
        analyze(path, cache=False)
