"""Loading language models with Hugging Face transformers, plain or quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ewq.backends.decoding import AUTO
from ewq.backends.transformers_model import TransformersModel
from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.checkpoint.tokenizer import load_tokenizer
from ewq.conversion_errors import load_pretrained
from ewq.errors import CheckpointError, InputError, MeasurementError
from ewq.instruments.gpu import ALL


def load_transformers(
    folder: str | Path,
    *,
    quantization_config: Any = None,
    device: str = "cpu",
    dtype: str = "float32",
    batch_tokens: int = 8192,
    tokenizer: Any = None,
    decode_mode: str = AUTO,
) -> TransformersModel:
    """Load a model folder; code that comes with the model is never run.

    ``quantization_config`` is applied while loading, so that the model never exists in 16 bits as a
    whole; ``cuda:all`` spreads it over all GPUs; ``dtype`` is what is computed in. The rest is as
    for :class:`TransformersModel`.

    Raises:
        CheckpointError: the folder is missing, incomplete, or needs code of its own.
        MeasurementError: all GPUs together cannot hold it.
        InputError: an unknown dtype or decode mode.
    """
    folder = Path(folder)
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise InputError(f"unknown dtype {dtype!r}; give float32, float16 or bfloat16")
    if not folder.is_dir():
        raise CheckpointError(f"no model folder at {folder}")
    checkpoint = open_checkpoint(folder)
    tokenizer = tokenizer or load_tokenizer(folder, str(folder))
    model = _load(folder, quantization_config, device, getattr(torch, dtype))
    return TransformersModel(
        model,
        tokenizer,
        batch_tokens=batch_tokens,
        decode_mode=decode_mode,
        checkpoint_dtype=_keep_in_16_bits(model, checkpoint),
        device=device if device == ALL else None,
    )


def _load(folder: Path, quantization_config: Any, device: str, dtype: torch.dtype) -> Any:
    model = load_pretrained(
        AutoModelForCausalLM,
        folder,
        str(folder),
        dtype=dtype,
        device_map="auto" if device == ALL else {"": device},
        **({"quantization_config": quantization_config} if quantization_config else {}),
    )
    # accelerate puts what the GPUs cannot hold in RAM or on disk, and speeds would be of that.
    if device == ALL and any(of.device.type != "cuda" for of in model.parameters()):
        raise MeasurementError(
            f"{folder} does not fit the memory of all GPUs together: part of it would lie in "
            "RAM or on disk; use more GPUs or fewer bits"
        )
    return model


def _keep_in_16_bits(model: Any, checkpoint: Checkpoint) -> torch.dtype:
    """Round weights that are stored wider, and say to which type: the reference is 16 bits.

    On a CPU everything is computed in float32, so the rounded values keep that type.
    """
    stored: torch.dtype = getattr(torch, checkpoint.storage_dtype)
    if any(info.dtype in ("F32", "F64") for info in checkpoint.tensors.values()):
        for parameter in model.parameters():
            if parameter.dtype == torch.float32:
                parameter.data.copy_(parameter.data.to(stored))
    return stored
