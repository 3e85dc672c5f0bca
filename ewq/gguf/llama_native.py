"""The thin layer over llama.cpp's C interface: a model, its context and batches of tokens."""

import atexit
import ctypes
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ewq.checkpoint.gguf_header import ggml_types
from ewq.errors import BackendUnavailable, CheckpointError, InputError, MeasurementError
from ewq.instruments.gpu import ALL
from ewq.measurement import Json

_OUTPUT_BYTES = 128 * 2**20
"""Most bytes of logits one decode may return; bounds memory for 150k-word vocabularies."""
BATCH_TOKENS = 512
"""Most tokens of one ``llama_decode``, shared prefix not counted; its physical batch as well."""
MAX_ROWS = 64
LOG_ERROR = 4
_messages: deque[str] = deque(maxlen=8)
_log_callback: list[Any] = []


def llama_library() -> Any:
    """llama.cpp's C functions, quiet; a BackendUnavailable where its library does not load."""
    try:
        from llama_cpp import _utils
        from llama_cpp import llama_cpp as library
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailable(f"llama.cpp: pip install 'ewq[gguf]' ({error})") from error
    if not _log_callback:
        callback = library.llama_log_callback(_remember)
        _log_callback.append(callback)
        library.llama_log_set(callback, ctypes.c_void_p(0))
        library.llama_backend_init()
        # llama-cpp-python leaves them open, which strict warnings report at exit.
        for name in ("outnull_file", "errnull_file"):
            if file := getattr(_utils, name, None):
                atexit.register(file.close)
    return library


def check_device(device: str) -> Any:
    """llama.cpp's C functions; a BackendUnavailable or InputError where no such device computes."""
    library = llama_library()
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and device != ALL and not index.isdecimal()):
        raise InputError(f"device {device!r}; give cpu, cuda, cuda:all or such as cuda:1")
    if kind == "cuda" and not library.llama_supports_gpu_offload():
        lacks = f"device {device!r}: this llama-cpp-python has no GPU support"
        raise BackendUnavailable(f"{lacks}; reinstall it with CMAKE_ARGS=-DGGML_CUDA=on")
    return library


def _remember(level: int, text: bytes, _user_data: Any) -> None:
    if level == LOG_ERROR:
        _messages.append(text.decode("utf-8", errors="replace").strip())


def logged_error(index: int = -1) -> str:
    """An error llama.cpp logged, on one line: the last, or the first (0), which says most."""
    return " ".join(_messages[index].split()) if _messages else "no reason given"


TOKENS = np.dtype([("id", "i4"), ("position", "i4"), ("sequence", "i4"), ("wanted", "i1")])
"""``wanted`` is 1 where the distribution after this token is."""
Tokens = NDArray[np.void]
"""Tokens of one or many sequences as an array of :data:`TOKENS`, in the order of computation."""


def stretch(ids: Any, position: int, sequence: int, wanted_from: int) -> Tokens:
    """One stretch of one sequence; outputs are wanted from index ``wanted_from`` on."""
    tokens = np.empty(len(ids), dtype=TOKENS)
    tokens["id"], tokens["sequence"] = ids, sequence
    tokens["position"] = position + np.arange(len(ids))
    tokens["wanted"] = np.arange(len(ids)) >= wanted_from
    return tokens


class NativeModel:
    """One GGUF that passed the probe, and the context it is computed in.

    The context grows to what a call needs, so that memory measured is memory used. Errors are those
    of :func:`check_device`, and a CheckpointError of a file that llama.cpp cannot load.
    """

    def __init__(
        self, path: Path, *, device: str = "cpu", threads: int = 1, cache_type: str = "F16"
    ) -> None:
        self._lib = check_device(device)
        self._device, self._threads, self._cache_type = device, threads, cache_type
        self._context: Any = None
        self._cells = 0
        self.batch_tokens = BATCH_TOKENS
        self.max_rows = min(MAX_ROWS, int(self._lib.llama_max_parallel_sequences()) - 1)
        """Most sequences that share a prefix in one batch; one more holds the prefix."""
        self._model = self._load(path)
        vocab = self._lib.llama_model_get_vocab(self._model)
        self.vocab_size = int(self._lib.llama_vocab_n_tokens(vocab))
        self.trained_context = int(self._lib.llama_model_n_ctx_train(self._model))
        self._rows_cap = max(1, _OUTPUT_BYTES // (4 * self.vocab_size))

    def _load(self, path: Path) -> Any:
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = 0 if self._device == "cpu" else -1
        index = self._device.partition(":")[2]
        if index.isdecimal() or self._device == "cpu":
            params.split_mode = self._lib.LLAMA_SPLIT_MODE_NONE
            # -1: none, which would be opened even without a layer on it.
            params.main_gpu = int(index or -1)
        _messages.clear()
        model = self._lib.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise CheckpointError(f"{path}: llama.cpp cannot load this file: {logged_error(0)}")
        return model

    @property
    def settings(self) -> dict[str, Json]:
        """What the context is made with, in llama.cpp's words (``n_batch``, ``n_ubatch``, ...)."""
        return {
            "batch_tokens": self.batch_tokens,
            "ubatch_tokens": self.batch_tokens,
            "cache_type_k": self._cache_type,
            "cache_type_v": self._cache_type,
            "flash_attention": "off" if self._cache_type == "F32" else "auto",
        }

    def _require_open(self) -> None:
        if self._model is None:
            raise MeasurementError("this llama.cpp model is closed; load it again")

    def prepare(self, cells: int) -> None:
        """Forget all sequences and make sure that ``cells`` tokens fit."""
        self._require_open()
        if cells > self._cells:
            self._free_context()
            self._cells = max(512, 1 << (cells - 1).bit_length())
            self._context = self._new_context()
        self._lib.llama_memory_clear(self._memory, True)

    @property
    def _memory(self) -> Any:
        return self._lib.llama_get_memory(self._context)

    def _new_context(self) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx = self._cells
        params.n_batch = params.n_ubatch = min(self.batch_tokens, self._cells)
        params.n_seq_max = 1 + self.max_rows
        params.n_threads = params.n_threads_batch = self._threads
        params.type_k = params.type_v = ggml_types()[self._cache_type][0]
        if self._cache_type == "F32":
            # Flash attention rounds keys and values to F16 whatever the cache holds.
            params.flash_attn_type = self._lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.offload_kqv = params.op_offload = self._device != "cpu"
        params.no_perf = True
        # One buffer for all sequences: copying a prefix copies no memory. A full-size
        # sliding-window cache, because a pruned one could not be shared or rolled back.
        params.kv_unified = params.swa_full = True
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            raise MeasurementError(f"no context of {self._cells} tokens: {logged_error()}")
        return context

    def sequence_bytes(self) -> int:
        """What the cache holds for the first sequence, with some bytes of bookkeeping."""
        return int(self._lib.llama_state_seq_get_size(self._context, 0))

    def share(self, source: int, target: int) -> None:
        """Let sequence ``target`` begin with all tokens of ``source``."""
        self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def drop(self, sequence: int) -> None:
        """Forget one sequence."""
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def decode(self, tokens: Tokens) -> Iterator[NDArray[np.float32]]:
        """The wanted logits in order, ``[rows, vocab_size]`` a block, each valid until the next."""
        limit = min(self.batch_tokens, self._cells)
        outputs = np.concatenate([[0], np.cumsum(tokens["wanted"], dtype=np.int64)])
        begin = 0
        while begin < len(tokens):
            by_rows = int(np.searchsorted(outputs, outputs[begin] + self._rows_cap, "right")) - 1
            end = min(begin + limit, max(begin + 1, by_rows))
            yield self.run(tokens[begin:end])
            begin = end

    def run(self, tokens: Tokens) -> NDArray[np.float32]:
        """Compute one batch; the wanted logits, valid until the next one is run."""
        self._require_open()
        ids, positions, sequences, wanted = map(
            np.ascontiguousarray, (tokens[name] for name in TOKENS.names or ())
        )
        counts = np.ones(len(ids), dtype=np.int32)
        # Every token belongs to one sequence; the interface wants a pointer to its list of one.
        addresses = sequences.ctypes.data + 4 * np.arange(len(ids), dtype=np.uint64)
        batch = self._lib.llama_batch(
            n_tokens=len(ids),
            token=_pointer(ids, ctypes.c_int32),
            pos=_pointer(positions, ctypes.c_int32),
            n_seq_id=_pointer(counts, ctypes.c_int32),
            seq_id=_pointer(addresses, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(wanted, ctypes.c_int8),
        )
        status = self._lib.llama_decode(self._context, batch)
        self._lib.llama_synchronize(self._context)
        if status != 0:
            raise MeasurementError(f"llama.cpp failed (code {status}): {logged_error()}")
        rows = int(wanted.sum())
        if not rows:
            return np.empty((0, self.vocab_size), dtype=np.float32)
        pointer = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.vocab_size))

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        if self._context is not None:
            self._lib.llama_synchronize(self._context)

    def _free_context(self) -> None:
        if self._context is not None:
            self._lib.llama_free(self._context)
            self._context = None
            self._cells = 0

    def close(self) -> None:
        """Free the context and the weights; harmless when repeated."""
        self._free_context()
        if self._model is not None:
            self._lib.llama_model_free(self._model)
            self._model = None


def _pointer(array: NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
