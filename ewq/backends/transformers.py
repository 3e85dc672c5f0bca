"""Loading language models with Hugging Face transformers, plain or quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ewq.backends.decoding import AUTO
from ewq.backends.transformers_model import TransformersModel
from ewq.conversion_errors import original_errors
from ewq.errors import CheckpointError, InputError, MeasurementError
from ewq.instruments.gpu import ALL

__all__ = ["TransformersModel", "load_transformers"]


def load_transformers(
    source: str | Path,
    *,
    quantization_config: Any = None,  # noqa: ANN401 (any transformers quantization config)
    device: str = "cpu",
    dtype: str = "float32",
    batch_tokens: int = 8192,
    tokenizer: Any = None,  # noqa: ANN401 (transformers is untyped)
    decode_mode: str = AUTO,
) -> TransformersModel:
    """Load a hub id, a local folder or a ``.gguf`` file.

    Args:
        source: the checkpoint.
        quantization_config: applied while loading, so that the model never
            exists in 16 bits as a whole.
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``cuda:all`` to spread over all GPUs.
        dtype: compute dtype, such as ``float32`` or ``bfloat16``.
        batch_tokens: most tokens of a batch, shared prefix and padding included.
        tokenizer: a tokenizer to use instead of the checkpoint's own.
        decode_mode: how :meth:`TransformersModel.generate` steps; the same tokens
            whichever it is (see :mod:`ewq.backends.decoders`).

    Raises:
        CheckpointError: the source cannot be found or read.
        MeasurementError: all GPUs together cannot hold it.
        InputError: an unknown dtype or decode mode.
    """
    options = _load_options(dtype, device, quantization_config)
    model, tokenizer = _load(source, tokenizer, options)
    if device == ALL:
        _require_no_offload(source, model)
    return TransformersModel(
        model,
        tokenizer,
        batch_tokens=batch_tokens,
        decode_mode=decode_mode,
        checkpoint_dtype=_checkpoint_dtype(source),
        device=device if device == ALL else None,
    )


def _load_options(dtype: str, device: str, quantization_config: Any) -> dict[str, Any]:  # noqa: ANN401
    import torch

    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise InputError(f"unknown dtype {dtype!r}; give float32, float16 or bfloat16")
    placement: Any = "auto" if device == ALL else {"": device}
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "device_map": placement}
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    return options


def _load(
    source: str | Path,
    tokenizer: Any,  # noqa: ANN401 (transformers is untyped)
    options: dict[str, Any],
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, file = _locate(source)
    try:
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(where, **file)
        with original_errors():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where, output_loading_info=True, **file, **options
            )
        _require_all_weights(source, loaded[1])
        return loaded[0], tokenizer
    except (OSError, ValueError) as error:
        # transformers says ValueError of a model that is no causal language model.
        raise CheckpointError(f"cannot load {source}: {str(error).splitlines()[0]}") from error


def _require_no_offload(source: str | Path, model: Any) -> None:  # noqa: ANN401
    """accelerate puts what the GPUs cannot hold in RAM or on disk, and speeds would be of that."""
    if any(parameter.device.type != "cuda" for parameter in model.parameters()):
        raise MeasurementError(
            f"{source} does not fit the memory of all GPUs together: part of it would lie in "
            "RAM or on disk; use more GPUs or fewer bits"
        )


def _require_all_weights(source: str | Path, loading: dict[str, Any]) -> None:
    """transformers fills missing weights with random values and only logs it."""
    absent = sorted(loading.get("missing_keys") or ())
    if absent:
        raise CheckpointError(
            f"{source} lacks {len(absent)} of the model's weights, such as {absent[0]}: it is "
            "incomplete, or no causal language model; nothing was measured"
        )


def _checkpoint_dtype(source: str | Path) -> Any:  # noqa: ANN401 (a torch.dtype or None)
    """The type the checkpoint's config declares; ``None`` for a GGUF, which has many."""
    from transformers import AutoConfig

    where, file = _locate(source)
    return None if file else AutoConfig.from_pretrained(where).get_text_config().dtype


def _locate(source: str | Path) -> tuple[str, dict[str, str]]:
    """Split a GGUF file into its folder and the argument transformers wants for it."""
    path = Path(source)
    if path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    return str(source), {}
