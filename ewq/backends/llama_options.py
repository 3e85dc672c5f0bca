"""How to load and run a GGUF: what a caller chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ewq.errors import BackendUnavailable, InputError
from ewq.instruments.gpu import ALL

if TYPE_CHECKING:
    from ewq.gguf.llama_native import NativeOptions

CACHE_TYPES = {"float32": 0, "float16": 1}
"""Dtype of the key-value cache -> ggml type id."""


@dataclass(frozen=True)
class LlamaCppOptions:
    """How to load and run a GGUF."""

    device: str = "cpu"
    """``cpu``; ``cuda`` or ``cuda:all`` offloads all layers, ``cuda:1`` to that GPU alone."""
    context_length: int | None = None
    """Longest sequence accepted; default: what the model was trained with."""
    batch_tokens: int = 512
    """Most tokens of one ``llama_decode``, shared prefix not counted."""
    max_sequences: int = 64
    """Most sequences that share a prefix in one ``llama_decode``."""
    threads: int | None = None
    """CPU threads; default: as many as torch uses, so that engines compare."""
    cache_dtype: str = "float16"
    """Key-value cache: ``float16``, llama.cpp's default, or ``float32`` without flash attention."""
    probe: bool = True
    """Try the file in a child process first, because a bad one can abort the process."""


def native_options(
    library: Any,  # noqa: ANN401 (C library)
    options: LlamaCppOptions,
) -> NativeOptions:
    """The options as the native layer wants them.

    Raises:
        BackendUnavailable: a GPU is asked for and this build of llama.cpp has no support for it.
        InputError: a device or cache dtype that does not exist.
    """
    import torch

    from ewq.gguf.llama_native import NativeOptions

    gpu = options.device != "cpu"
    if gpu and not library.llama_supports_gpu_offload():
        raise BackendUnavailable(
            f"device {options.device!r} asked for, but this llama-cpp-python has no GPU support; "
            "reinstall it with CMAKE_ARGS=-DGGML_CUDA=on or use --ewq-device cpu"
        )
    if options.cache_dtype not in CACHE_TYPES:
        raise InputError(f"cache_dtype {options.cache_dtype!r}; give one of {[*CACHE_TYPES]}")
    index = options.device.partition(":")[2]
    if index and not index.isdecimal() and options.device != ALL:
        raise InputError(f"device {options.device!r}; give cpu, cuda, cuda:all or such as cuda:1")
    most = int(library.llama_max_parallel_sequences()) - 1
    return NativeOptions(
        gpu=gpu,
        threads=options.threads or torch.get_num_threads(),
        batch_tokens=options.batch_tokens,
        micro_batch_tokens=min(512, options.batch_tokens),
        max_sequences=1 + min(options.max_sequences, most),
        cache_type=CACHE_TYPES[options.cache_dtype],
        gpu_index=int(index) if index.isdecimal() else None,
    )
