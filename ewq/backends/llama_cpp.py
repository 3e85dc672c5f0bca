"""Language models run by llama.cpp, through its batch interface.

One ``llama_decode`` carries many sequences; a shared prefix is computed once and lent to them.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ewq.backends.batching import (
    check_prompts,
    check_start,
    check_suffixes,
    log_softmax,
    scores_of,
    split_shared,
)
from ewq.checkpoint.gguf_header import read_header
from ewq.errors import InputError, MeasurementError
from ewq.gguf.llama_native import TOKENS, NativeModel, Tokens, check_device, stretch
from ewq.gguf.probe import probe_file
from ewq.measurement import Json
from ewq.model import Branches, Generation, ModelInfo, Stop, TokenIds


class LlamaCppModel:
    """A :class:`ewq.model.LanguageModel` over a GGUF file, read with the checkpoint's tokenizer."""

    def __init__(self, native: NativeModel, tokenizer: Any, info: ModelInfo) -> None:
        self.info = info
        self.tokenizer: Any = tokenizer
        self.batch_tokens = native.batch_tokens
        self._native = native
        self._calls = 0

    def last_logprobs(
        self, prefix: TokenIds, suffixes: Sequence[TokenIds], columns: Sequence[int]
    ) -> NDArray[np.float32]:
        """Log-probabilities of ``columns`` after each prompt, ``[len(suffixes), len(columns)]``."""
        wanted_from = [len(prefix) + len(suffix) - 1 for suffix in suffixes]
        result = np.empty((len(suffixes), len(columns)), dtype=np.float32)
        for index, row in enumerate(self._rows(prefix, suffixes, wanted_from)):
            result[index] = row[0, list(columns)].numpy()
        return result

    def token_logprobs(
        self, prefix: TokenIds, suffixes: Sequence[TokenIds]
    ) -> list[NDArray[np.float32]]:
        """Log-probability of every token of every suffix, one array a suffix."""
        return [scores[:, 0] for scores in self._scores(prefix, suffixes)]

    def continuation_scores(self, asked: Sequence[Branches]) -> list[list[NDArray[np.float32]]]:
        """The same of each prefix; larger batches round inputs in another way, and gain little."""
        return [self._scores(*each) for each in asked]

    def _scores(self, prefix: TokenIds, suffixes: Sequence[TokenIds]) -> list[NDArray[np.float32]]:
        check_suffixes(self.info, prefix, suffixes)
        results = [np.empty((0, 2), dtype=np.float32)] * len(suffixes)
        filled = [index for index, suffix in enumerate(suffixes) if len(suffix)]
        # A suffix's last token is only predicted, never fed.
        fed = [suffixes[index][:-1] for index in filled]
        rows = self._rows(prefix, fed, [len(prefix) - 1] * len(fed))
        for index, row in zip(filled, rows, strict=True):
            results[index] = scores_of(row, suffixes[index]).numpy()
        return results

    def logprobs(self, ids: TokenIds, start: int) -> Iterator[torch.Tensor]:
        """Distributions of ``ids[start:]``, block by block."""
        check_start(self.info, ids, start)
        self._begin(len(ids))
        yield from self._distributions(stretch(ids[:-1], 0, 0, start - 1))

    def generate(
        self, prompts: Sequence[TokenIds], new_tokens: int, stop: Stop | None = None
    ) -> Generation:
        """Greedy decoding, timed; all prompts in one batch."""
        lengths = check_prompts(self.info, prompts, new_tokens)
        if len(prompts) > self._native.max_rows:
            raise InputError(f"{len(prompts)} prompts, not 1 to {self._native.max_rows}")
        self._begin(sum(lengths) + len(prompts) * new_tokens)
        first = [stretch(ids, 0, row, len(ids) - 1) for row, ids in enumerate(prompts)]
        return self._timed(np.concatenate(first), np.array(lengths), new_tokens, stop)

    def _timed(
        self, prompt: Tokens, lengths: NDArray[np.int64], new_tokens: int, stop: Stop | None
    ) -> Generation:
        current = np.ones(len(lengths), dtype=TOKENS)
        current["sequence"] = np.arange(len(lengths))
        self._native.synchronize()
        clock = [time.perf_counter()]
        blocks = [block.argmax(axis=1) for block in self._native.decode(prompt)]
        produced = [np.concatenate(blocks)]
        clock.append(time.perf_counter())
        for step in range(1, new_tokens):
            if stop and stop(np.stack(produced, axis=1).tolist()):
                break
            current["id"], current["position"] = produced[-1], lengths + step - 1
            produced.append(self._native.run(current).argmax(axis=1))
            clock.append(time.perf_counter())
        return Generation.from_clock(np.stack(produced, axis=1).tolist(), clock)

    @property
    def settings(self) -> dict[str, Json]:
        """How llama.cpp computes: its batches, its cache, and whether it uses flash attention."""
        return {"engine": self.info.engine, "dtype": self.info.dtype, **self._native.settings}

    def cache_bytes(self, prompt: TokenIds) -> int:
        """Bytes of keys and values of a prompt, as llama.cpp itself would save them."""
        self._begin(len(prompt))
        for _ in self._native.decode(stretch(prompt, 0, 0, len(prompt))):
            pass
        return self._native.sequence_bytes()

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        self._native.synchronize()

    def close(self) -> None:
        """Free the context and the weights."""
        self._native.close()

    def _begin(self, cells: int) -> None:
        self._calls += 1
        self._native.prepare(cells)

    def _rows(
        self, prefix: TokenIds, suffixes: Sequence[TokenIds], wanted_from: Sequence[int]
    ) -> Iterator[torch.Tensor]:
        """Distributions after tokens from ``wanted_from[i]`` on of ``prefix + suffixes[i]``."""
        if not suffixes:
            return
        shared, tails = split_shared(self.info, prefix, suffixes)
        lengths = [len(tail) for tail in tails]
        groups = group_by_tokens(lengths, self._native.batch_tokens, self._native.max_rows)
        self._begin(len(shared) + max(sum(len(tails[i]) for i in group) for group in groups))
        for _ in self._native.decode(stretch(shared, 0, 0, len(shared))):
            pass
        for group in groups:
            chosen = [(tails[i], wanted_from[i] - len(shared)) for i in group]
            yield from self._group(len(shared), chosen)

    def _group(
        self, position: int, chosen: Sequence[tuple[list[int], int]]
    ) -> Iterator[torch.Tensor]:
        # Sequence 0 keeps the shared tokens alone; each tail lives in its own sequence.
        pieces = []
        for sequence, (tail, wanted_from) in enumerate(chosen, start=1):
            if position:
                self._native.share(0, sequence)
            pieces.append(stretch(tail, position, sequence, wanted_from))
        counts = [len(tail) - wanted_from for tail, wanted_from in chosen]
        held: list[torch.Tensor] = []
        for block in self._distributions(np.concatenate(pieces)):
            held.append(block)
            while counts and sum(map(len, held)) >= counts[0]:
                joined = torch.cat(held) if len(held) > 1 else held[0]
                yield joined[: counts[0]]
                held = [joined[counts.pop(0) :]]
        for sequence in range(1, len(chosen) + 1):
            self._native.drop(sequence)

    def _distributions(self, tokens: Tokens) -> Iterator[torch.Tensor]:
        """Float32 log-softmax of the wanted rows, block by block."""
        call = self._calls
        for logits in self._native.decode(tokens):
            if not len(logits):
                continue
            block, _ = log_softmax(torch.from_numpy(logits))
            if not bool(torch.isfinite(block.sum(dim=-1)).all()):
                raise MeasurementError("logits are not finite: damaged weights, or an overflow")
            yield block
            if call != self._calls:
                raise MeasurementError("another call used the model before this one was read out")


def group_by_tokens(lengths: Sequence[int], budget: int, most: int) -> list[range]:
    """Consecutive groups of at most ``budget`` tokens and ``most`` rows; a longer row is alone."""
    groups: list[range] = []
    begin, tokens = 0, 0
    for index, length in enumerate(lengths):
        if index > begin and (tokens + length > budget or index - begin >= most):
            groups.append(range(begin, index))
            begin, tokens = index, 0
        tokens += length
    groups.append(range(begin, len(lengths)))
    return groups


def load_llama_cpp(
    path: str | Path,
    tokenizer: Any,
    *,
    device: str = "cpu",
    threads: int | None = None,
    cache_type: str = "F16",
) -> LlamaCppModel:
    """Load a GGUF file, after trying it in a child process: a bad one can abort the process.

    ``cuda`` or ``cuda:all`` offloads all layers, ``cuda:1`` to that GPU; ``threads`` are torch's
    unless given; ``cache_type`` is a ggml type.

    A BackendUnavailable without llama.cpp or its support for GPUs, an InputError of an unknown
    device, a CheckpointError of a file that is damaged or that llama.cpp cannot run.
    """
    check_device(device)
    header = read_header(path)
    probe_file(Path(path))
    threads = threads or torch.get_num_threads()
    native = NativeModel(Path(path), device=device, threads=threads, cache_type=cache_type)
    info = ModelInfo(
        engine="llama.cpp",
        device=device,
        dtype="float32",
        context_length=native.trained_context,
        vocab_size=native.vocab_size,
        weights_bytes=header.weights_bytes,
        bits_per_weight=8 * header.weights_bytes / header.parameters,
    )
    return LlamaCppModel(native, tokenizer, info)
