"""The interface between tasks and engines: token ids, of one tokenizer for all engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from ewq.errors import CheckpointError, MeasurementError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ewq.measurement import Json

TokenIds = Sequence[int]
Branches = tuple[TokenIds, Sequence[TokenIds]]
"""A prefix and what may follow it."""
Stop = Callable[[list[list[int]]], bool]
"""Told the new tokens of each row after every step: whether the generation may end there."""


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a loaded model."""

    engine: str
    device: str
    dtype: str
    context_length: int
    """Longest sequence in tokens, prompt and generated tokens together."""
    vocab_size: int
    """Width of the logits."""
    weights_bytes: int
    """Exact bytes of all stored weights, buffers of quantization state (scales) included."""
    bits_per_weight: float
    """``8 * weights_bytes / parameters`` over the whole model."""

    def require_context(self, tokens: int, what: str) -> None:
        """Raise a MeasurementError where the context does not hold so many tokens."""
        if tokens > self.context_length:
            context = f"the model's context of {self.context_length}"
            raise MeasurementError(f"{what}: {tokens} tokens exceed {context}, and none is cut")


@dataclass(frozen=True)
class Generation:
    """Greedy continuations of one batch of prompts, with synchronised clock readings."""

    tokens: tuple[tuple[int, ...], ...]
    """``tokens[row][step]``: as many new tokens as requested in every row, fewer where stopped."""
    first_token_s: float
    """Seconds from the call to the first new token of the whole batch (TTFT; prefill time)."""
    step_s: tuple[float, ...]
    """Seconds of each later decode step of the whole batch: one fewer than tokens."""

    @classmethod
    def from_clock(cls, tokens: Sequence[Sequence[int]], clock: Sequence[float]) -> Generation:
        """The tokens of each row, with readings in seconds at the start and after each step."""
        steps = tuple(end - begin for begin, end in pairwise(clock))
        return cls(tuple(tuple(row) for row in tokens), steps[0], steps[1:])


def check_vocabulary(size: int, *sequences: TokenIds) -> None:
    """Raise a CheckpointError of a token id that a model of ``size`` tokens has no row for."""
    for token in (extreme(ids) for ids in sequences if len(ids) for extreme in (min, max)):
        if not 0 <= token < size:
            beyond = f"token id {token} is beyond the model's {size} tokens"
            raise CheckpointError(f"{beyond}: it is another model's, or was added without a row")


class LanguageModel(Protocol):
    """A causal language model that has been loaded and must be closed.

    Log-probabilities are natural, from a float32 log-softmax over the full vocabulary. A sequence
    longer than ``info.context_length`` raises a MeasurementError: nothing is ever truncated.
    """

    info: ModelInfo
    tokenizer: Any

    @property
    def settings(self) -> Mapping[str, Json]:
        """How this engine computes: ``engine``, ``dtype``, ``batch_tokens`` (most tokens of one
        batch) and what else can change results."""

    def last_logprobs(
        self, prefix: TokenIds, suffixes: Sequence[TokenIds], columns: Sequence[int]
    ) -> NDArray[np.float32]:
        """Log-probabilities of ``columns`` as the token after ``prefix + suffix``.

        The prefix is computed once and shared. Returns ``[len(suffixes), len(columns)]``.
        """

    def token_logprobs(
        self, prefix: TokenIds, suffixes: Sequence[TokenIds]
    ) -> list[NDArray[np.float32]]:
        """``log p(suffix[t] | prefix + suffix[:t])`` for every token of every suffix.

        ``prefix`` holds at least one token. Returns one array per suffix, ``[len(suffix)]``.
        """

    def continuation_scores(self, asked: Sequence[Branches]) -> list[list[NDArray[np.float32]]]:
        """:meth:`token_logprobs` of each prefix, together where that is faster.

        An array is ``[len(suffix), 2]``: beside each log-probability 1.0 for a greedy choice.
        """

    def logprobs(self, ids: TokenIds, start: int) -> Iterator[torch.Tensor]:
        """The full distributions of ``ids[start:]``, each given all tokens before it.

        Yields float32 blocks ``[rows, vocab_size]`` of less than 200 MB in order, on any device,
        ``len(ids) - start`` rows altogether. ``start >= 1``.
        """

    def generate(
        self, prompts: Sequence[TokenIds], new_tokens: int, stop: Stop | None = None
    ) -> Generation:
        """Greedy decoding of exactly ``new_tokens`` tokens per prompt; only ``stop`` ends it early.

        Prompts of several lengths are decoded in turn where a cache cannot be padded. Tokenization
        and sampling are outside the clock.
        """

    def synchronize(self) -> None:
        """Wait until the device has finished all work issued so far."""

    def close(self) -> None:
        """Free the weights for certain. Calling it twice is harmless; any other use raises."""
