"""GGUF as input: its tensors as a checkpoint's, its names as transformers would load them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ewq.checkpoint.gguf_header import GgufTensor, read_header
from ewq.checkpoint.tensors import TensorInfo
from ewq.errors import BackendUnavailable, CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PLAIN = ("F64", "F32", "F16", "BF16")
LLAMA_NAMES = {
    "attn_q": "self_attn.q_proj.weight",
    "attn_k": "self_attn.k_proj.weight",
    "attn_v": "self_attn.v_proj.weight",
    "attn_output": "self_attn.o_proj.weight",
    "ffn_gate": "mlp.gate_proj.weight",
    "ffn_up": "mlp.up_proj.weight",
    "ffn_down": "mlp.down_proj.weight",
}
EXPERT_NAMES = {
    "ffn_gate_exps": "mlp.experts.gate_up_proj",
    "ffn_up_exps": "mlp.experts.gate_up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
SHARED_EXPERT_NAMES = {
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj.weight",
    "ffn_up_shexp": "mlp.shared_expert.up_proj.weight",
    "ffn_down_shexp": "mlp.shared_expert.down_proj.weight",
}
PHI3_NAMES = {
    "attn_qkv": "self_attn.qkv_proj.weight",
    "attn_output": "self_attn.o_proj.weight",
    "ffn_up": "mlp.gate_up_proj.weight",
    "ffn_down": "mlp.down_proj.weight",
}
STARCODER2_NAMES = {
    **LLAMA_NAMES,
    "ffn_up": "mlp.c_fc.weight",
    "ffn_down": "mlp.c_proj.weight",
}
GPT2_NAMES = {
    "attn_qkv": "attn.c_attn.weight",
    "attn_output": "attn.c_proj.weight",
    "ffn_up": "mlp.c_fc.weight",
    "ffn_down": "mlp.c_proj.weight",
}
FALCON_NAMES = {
    "attn_qkv": "self_attention.query_key_value.weight",
    "attn_output": "self_attention.dense.weight",
    "ffn_up": "mlp.dense_h_to_4h.weight",
    "ffn_down": "mlp.dense_4h_to_h.weight",
}
NEOX_NAMES = {
    key: name.replace("self_attention", "attention") for key, name in FALCON_NAMES.items()
}
LAYERS, H = "model.layers.", "transformer.h."
NAMES_OF: Mapping[str, tuple[str, Mapping[str, str]]] = {
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3", "granite", "nemotron", "olmo2", "qwen2", "qwen3", "stablelm"),
        (LAYERS, LLAMA_NAMES),
    ),
    # Mixtral is a llama in llama.cpp's eyes.
    "llama": (LAYERS, {**LLAMA_NAMES, **EXPERT_NAMES}),
    "qwen3moe": (LAYERS, {**LLAMA_NAMES, **EXPERT_NAMES}),
    "qwen2moe": (LAYERS, {**LLAMA_NAMES, **EXPERT_NAMES, **SHARED_EXPERT_NAMES}),
    "phi3": (LAYERS, PHI3_NAMES),
    "starcoder2": (LAYERS, STARCODER2_NAMES),
    "gpt2": (H, GPT2_NAMES),
    "bloom": (H, FALCON_NAMES),
    "falcon": (H, FALCON_NAMES),
    "gptneox": ("gpt_neox.layers.", NEOX_NAMES),
}
"""GGUF architecture -> prefix of a block, and the loaded name of each linear tensor in it."""
KEPT_ITEMS = 64
DEQUANTIZED_BLOCKS = 4096
"""At once: enough to amortise the call, few enough to stay in the cache."""
ROUTERS = ("ffn_gate_inp", "ffn_gate_inp_shexp")


def read_gguf(path: Path) -> tuple[str, dict[str, Any], dict[str, TensorInfo]]:
    """Architecture, metadata and tensors of a GGUF file; shapes are PyTorch's, output rows first.

    Raises:
        CheckpointError: not GGUF, truncated, or a header that contradicts itself.
    """
    header = read_header(path)
    tensors = {one.name: _info(path, header.data_start, one) for one in header.tensors}
    return header.architecture, _config(header.metadata), tensors


def _config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without vocabularies, which are counted; fingerprints rest on this spelling."""
    return {
        key: f"GgufArray(length={len(value)})" if _is_long(value) else value
        for key, value in metadata.items()
    }


def _is_long(value: object) -> bool:
    return isinstance(value, list) and len(value) > KEPT_ITEMS


def _info(path: Path, start: int, tensor: GgufTensor) -> TensorInfo:
    return TensorInfo(
        tensor.name,
        tensor.type_name,
        tensor.shape[::-1],
        tensor.nbytes,
        path,
        start + tensor.offset,
        packed=tensor.type_name not in PLAIN,
    )


def dequantized(data: NDArray[np.uint8], type_name: str) -> NDArray[np.float32]:
    """Values of whole rows of GGUF blocks, ``[values]`` float32.

    Raises:
        CheckpointError: the type has no dequantizer.
        BackendUnavailable: the ``gguf`` package is missing.
    """
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        raise BackendUnavailable("reading GGUF needs: pip install 'ewq[gguf]'") from error
    import numpy as np

    kind = GGMLQuantizationType[type_name]
    step_bytes = DEQUANTIZED_BLOCKS * GGML_QUANT_SIZES[kind][1]
    try:
        # One long row at a time: gguf takes rows in groups of 16, which is slow for short ones.
        parts = [
            dequantize(data[start : start + step_bytes].reshape(1, -1), kind).reshape(-1)
            for start in range(0, data.size, step_bytes)
        ]
    except NotImplementedError as error:
        raise CheckpointError(f"GGUF type {type_name} cannot be dequantised here") from error
    return np.concatenate(parts, dtype=np.float32)


def loaded_names(
    model: str, architecture: str, tensors: Mapping[str, TensorInfo]
) -> list[tuple[str, int, str, TensorInfo]]:
    """``(prefix, block, name below the block, tensor)`` of every linear tensor.

    Raises:
        CheckpointError: an unknown architecture, or a matrix in a block without a known name.
    """
    if architecture not in NAMES_OF:
        raise CheckpointError(
            f"{model} is a GGUF of architecture {architecture!r}, whose names ewq does not know; "
            f"known: {', '.join(sorted(NAMES_OF))}"
        )
    root, names = NAMES_OF[architecture]
    found, unknown = [], []
    for info in tensors.values():
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", info.name)
        if match is None or len(info.shape) < 2 or match[2] in ROUTERS:
            continue
        if match[2] in names:
            found.append((root, int(match[1]), names[match[2]], info))
        else:
            unknown.append(info.name)
    if unknown:
        raise CheckpointError(
            f"{model} has matrices in its blocks that ewq does not know: {', '.join(unknown[:3])}"
        )
    return found
