"""Loading language models with Hugging Face transformers, plain or quantized."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ewq.backends.decoding import AUTO
from ewq.backends.transformers_model import TransformersModel
from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.checkpoint.tokenizer import load_tokenizer
from ewq.conversion_errors import loading, require_all_weights
from ewq.errors import CheckpointError, InputError, MeasurementError
from ewq.instruments.gpu import ALL

if TYPE_CHECKING:
    import torch

__all__ = ["TransformersModel", "load_transformers"]


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

    Args:
        folder: with ``config.json``, safetensors and, unless given, a tokenizer.
        quantization_config: applied while loading, so that the model never
            exists in 16 bits as a whole.
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``cuda:all`` to spread over all GPUs.
        dtype: compute dtype, such as ``float32`` or ``bfloat16``.
        batch_tokens: most tokens of a batch, shared prefix and padding included.
        tokenizer: a tokenizer to use instead of the checkpoint's own.
        decode_mode: how :meth:`TransformersModel.generate` steps; the same tokens
            whichever it is (see :mod:`ewq.backends.decoders`).

    Raises:
        CheckpointError: the folder is missing, incomplete, or needs code of its own.
        MeasurementError: all GPUs together cannot hold it.
        InputError: an unknown dtype or decode mode.
    """
    folder = Path(folder)
    options = _load_options(dtype, device, quantization_config)
    if not folder.is_dir():
        raise CheckpointError(f"no model folder at {folder}")
    checkpoint = open_checkpoint(folder)
    tokenizer = tokenizer or load_tokenizer(folder, str(folder))
    model = _load(folder, options)
    stored_dtype = _keep_in_16_bits(model, checkpoint)
    if device == ALL:
        _require_no_offload(folder, model)
    return TransformersModel(
        model,
        tokenizer,
        batch_tokens=batch_tokens,
        decode_mode=decode_mode,
        checkpoint_dtype=stored_dtype,
        device=device if device == ALL else None,
    )


def _load_options(dtype: str, device: str, quantization_config: Any) -> dict[str, Any]:
    import torch

    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise InputError(f"unknown dtype {dtype!r}; give float32, float16 or bfloat16")
    placement: Any = "auto" if device == ALL else {"": device}
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "device_map": placement}
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    return options


def _load(folder: Path, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    with loading(str(folder)):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, trust_remote_code=False, **options
        )
    model, info = loaded
    require_all_weights(str(folder), info)
    return model


def _require_no_offload(folder: Path, model: Any) -> None:
    """accelerate puts what the GPUs cannot hold in RAM or on disk, and speeds would be of that."""
    if any(parameter.device.type != "cuda" for parameter in model.parameters()):
        raise MeasurementError(
            f"{folder} does not fit the memory of all GPUs together: part of it would lie in "
            "RAM or on disk; use more GPUs or fewer bits"
        )


def _keep_in_16_bits(model: Any, checkpoint: Checkpoint) -> torch.dtype:
    """Round weights that are stored wider, and say to which type: the reference is 16 bits.

    On a CPU everything is computed in float32, so the rounded values keep that type.
    """
    import torch

    stored: torch.dtype = getattr(torch, checkpoint.storage_dtype)
    if any(info.dtype in ("F32", "F64") for info in checkpoint.tensors.values()):
        for parameter in model.parameters():
            if parameter.dtype == torch.float32:
                parameter.data.copy_(parameter.data.to(stored))
    return stored
