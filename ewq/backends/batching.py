"""The rows of one call: checked, split from their prefix, grouped and padded.

Which rows go through the model together is a pure function of their lengths, so that every
variant of a model and every repetition sees the same batches: in half precision a different
composition alone can move single answers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ewq.errors import InputError, MeasurementError
from ewq.model import ModelInfo, TokenIds

if TYPE_CHECKING:
    import torch

FILLED_TOKENS = 512
"""Tokens from which on a larger batch gains less than padding its rows would cost."""
PADDING_SHARE = 0.1
"""Most padding in a batch that has that many tokens."""
SHAREABLE_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")
"""Cache layers that grow by concatenation, so that a shallow copy never writes to its source.

A ``DummyLayer`` stands for a layer that attends to an earlier one's keys and holds none itself.
"""
SOFTMAX_ROWS = 16
"""Worked on together: few enough for a CPU's caches, which is twice as fast as all at once."""


def check_length(info: ModelInfo, tokens: int) -> None:
    """Refuse a sequence that exceeds the context.

    Raises:
        MeasurementError: naming both lengths.
    """
    if tokens > info.context_length:
        raise MeasurementError(
            f"sequence of {tokens} tokens exceeds the context length of "
            f"{info.context_length}; nothing is truncated"
        )


def _check_ids(info: ModelInfo, *sequences: TokenIds) -> None:
    largest = max((max(ids) for ids in sequences if len(ids)), default=0)
    if largest >= info.vocab_size:
        raise MeasurementError(
            f"token id {largest} is beyond the model's {info.vocab_size} tokens: this tokenizer "
            "is another model's, or tokens were added without resizing the embedding"
        )


def check_start(info: ModelInfo, ids: TokenIds, start: int) -> None:
    """Refuse a request for ``logprobs`` that cannot be met.

    Raises:
        InputError: nothing comes before ``start``, or nothing after it.
        MeasurementError: too many tokens, or one that the model does not have.
    """
    if not 1 <= start < len(ids):
        raise InputError(f"start is {start}; give 1 to {len(ids) - 1} for {len(ids)} tokens")
    check_length(info, len(ids))
    _check_ids(info, ids)


def check_suffixes(info: ModelInfo, prefix: TokenIds, suffixes: Sequence[TokenIds]) -> None:
    """Refuse a request for ``token_logprobs`` that cannot be met.

    Raises:
        InputError: an empty prefix, after which the first token would have no probability.
        MeasurementError: too many tokens, or one that the model does not have.
    """
    if not prefix:
        raise InputError("token_logprobs needs a prefix of at least one token, got none")
    check_length(info, len(prefix) + max(map(len, suffixes), default=0))
    _check_ids(info, prefix, *suffixes)


def check_prompts(info: ModelInfo, prompts: Sequence[TokenIds], new_tokens: int) -> int:
    """The common length of the prompts of ``generate``.

    Raises:
        InputError: no prompts, prompts of several lengths or none, or no new tokens.
        MeasurementError: too many tokens, or one that the model does not have.
    """
    lengths = {len(prompt) for prompt in prompts}
    if len(lengths) != 1 or 0 in lengths or new_tokens < 1:
        raise InputError(
            f"generate needs prompts of one length and at least one new token, "
            f"got lengths {sorted(lengths)} and {new_tokens} new tokens"
        )
    length = lengths.pop()
    check_length(info, length + new_tokens)
    _check_ids(info, *prompts)
    return length


def split_shared(
    info: ModelInfo, prefix: TokenIds, suffixes: Sequence[TokenIds]
) -> tuple[list[int], list[list[int]]]:
    """Split sequences into what is computed once and what each row adds.

    The last token of the prefix goes to the rows, so that each row predicts its
    own first token and a suffix may be empty.

    Returns:
        ``(shared, rows)`` with ``shared + rows[i] == prefix + suffixes[i]``.

    Raises:
        InputError: a row without any token.
        MeasurementError: a row that exceeds the context, or a token that the model does not have.
    """
    shared, joint = list(prefix[:-1]), list(prefix[-1:])
    rows = [joint + list(suffix) for suffix in suffixes]
    if not all(rows):
        raise InputError("a sequence without tokens predicts nothing; give a prefix or a BOS")
    check_length(info, len(shared) + max(map(len, rows), default=0))
    _check_ids(info, shared, *rows)
    return shared, rows


@dataclass(frozen=True)
class BatchLimits:
    """What a batch may hold; a row that exceeds a limit alone stands alone."""

    shared: int
    """Tokens that every row holds in its cache beforehand."""
    tokens: int
    """Most tokens of a padded batch, shared ones included."""
    kept: int
    """Most positions whose logits are needed."""


@dataclass
class _Batch:
    width: int
    rows: list[int] = field(default_factory=list)
    real: int = 0
    kept: int = 0

    def add(self, index: int, length: int, kept: int) -> None:
        self.rows.append(index)
        self.real += length
        self.kept += kept

    def has_room(self, length: int, kept: int, limits: BatchLimits) -> bool:
        rows = len(self.rows) + 1
        padded = rows * self.width
        padding = padded - self.real - length
        return (
            padded + rows * limits.shared <= limits.tokens
            and self.kept + kept <= limits.kept
            and (padded <= FILLED_TOKENS or padding <= PADDING_SHARE * padded)
        )


def plan_batches(
    lengths: Sequence[int], kept: Sequence[int], limits: BatchLimits
) -> list[tuple[int, ...]]:
    """Group rows of similar length within limits.

    Args:
        lengths: tokens of each row.
        kept: positions of each row whose logits are needed.
        limits: what a batch may hold.

    Returns:
        Row indices, batch by batch, longest rows first (what does not fit in
        memory fails at once); every index once.
    """
    batches: list[_Batch] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or not batches[-1].has_room(lengths[index], kept[index], limits):
            batches.append(_Batch(width=lengths[index]))
        batches[-1].add(index, lengths[index], kept[index])
    return [tuple(batch.rows) for batch in batches]


@dataclass(frozen=True)
class PaddedRows:
    """One batch, padded on the right and ready for the model."""

    ids: torch.Tensor
    """``[rows, width]`` token ids."""
    positions: torch.Tensor
    """``[rows, width]`` position of each token in its own sequence."""
    mask: torch.Tensor | None
    """``[rows, shared + width]``, 1 where there is a token; ``None`` where nothing is padded."""
    keep: torch.Tensor
    """``[rows, width]`` bool: positions whose logits are needed."""


def pad_rows(rows: Sequence[Sequence[int]], kept: Sequence[int], shared: int) -> PaddedRows:
    """Pad rows to the longest of them.

    Args:
        rows: token ids, at least one each.
        kept: how many of each row's last positions need logits.
        shared: tokens before every row, already in the cache.
    """
    import torch

    width = max(len(row) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    real = torch.zeros((len(rows), width), dtype=torch.bool)
    keep = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, (row, count) in enumerate(zip(rows, kept, strict=True)):
        ids[index, : len(row)] = torch.tensor(row)
        real[index, : len(row)] = True
        keep[index, len(row) - count : len(row)] = True
    positions = shared + real.long().cumsum(dim=1) - 1
    seen = torch.ones((len(rows), shared), dtype=torch.bool)
    mask = None if real.all() else torch.cat([seen, real], dim=1).long()
    return PaddedRows(ids, positions, mask, keep)


def new_cache(config: Any) -> Any:
    """An empty growing cache laid out for the model (full or sliding attention per layer)."""
    from transformers import DynamicCache

    return DynamicCache(config=config)


def can_share(config: Any) -> bool:
    """Whether every layer's cache can be shared; recurrent states, for one, cannot."""
    return all(type(layer).__name__ in SHAREABLE_LAYERS for layer in new_cache(config).layers)


def fork(cache: Any, rows: int) -> Any:
    """The cache of one sequence as the cache of ``rows`` equal ones, sharing memory until written.

    The original is left as it was whatever is appended to the copy.
    """
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in forked.layers:
        if layer.keys is not None:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
    return forked


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """``logits - logsumexp(logits)`` over the last of two dimensions, exact to float32.

    torch's own ``log_softmax`` adds up in float32 on a CPU, one after the other: with 262k tokens
    its results are 3e-5 nats too high, all alike, which is as much as FP16 differs from BF16.
    """
    import torch

    result = torch.empty_like(logits)
    for begin in range(0, len(logits), SOFTMAX_ROWS):
        end = begin + SOFTMAX_ROWS
        rows, block = logits[begin:end], result[begin:end]
        torch.sub(rows, rows.logsumexp(dim=-1, keepdim=True), out=block)
    return result
