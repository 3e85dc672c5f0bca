"""The rows of one call: checked, split from their prefix, grouped and padded.

Batches follow from the rows' lengths alone, so that every variant and repetition sees the same: in
half precision a different composition alone can move single answers.
"""

import copy
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from transformers import DynamicCache

from ewq.errors import InputError
from ewq.model import ModelInfo, TokenIds, check_vocabulary

FILLED_TOKENS = 512
"""Tokens from which on a larger batch gains less than padding its rows would cost."""
CPU_FILLED_TOKENS = 128
PADDING_SHARE = 0.1
"""Most padding in a batch that has that many tokens."""
SHAREABLE_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")
"""Cache layers that grow by concatenation (or hold nothing), so that a copy writes to no source."""
SOFTMAX_ROWS = 16
"""Worked on together: few enough for a CPU's caches, which is twice as fast as all at once."""


def check_tokens(info: ModelInfo, length: int, *sequences: TokenIds) -> None:
    """Refuse what exceeds the context or the vocabulary: nothing is truncated."""
    info.require_context(length, "sequence")
    check_vocabulary(info.vocab_size, *sequences)


def check_start(info: ModelInfo, ids: TokenIds, start: int) -> None:
    """Refuse a request for ``logprobs`` with nothing before ``start``, or nothing after it."""
    if not 1 <= start < len(ids):
        raise InputError(f"start is {start}; give 1 to {len(ids) - 1} for {len(ids)} tokens")
    # The last token is only predicted, never fed.
    check_tokens(info, len(ids) - 1, ids)


def check_suffixes(info: ModelInfo, prefix: TokenIds, suffixes: Sequence[TokenIds]) -> None:
    """Refuse ``token_logprobs`` without a prefix: the first token would have no probability."""
    if not prefix:
        raise InputError("token_logprobs needs a prefix of at least one token, got none")
    longest = max(map(len, suffixes), default=0)
    check_tokens(info, len(prefix) + longest - bool(longest), prefix, *suffixes)


def check_prompts(info: ModelInfo, prompts: Sequence[TokenIds], new_tokens: int) -> list[int]:
    """The lengths of the prompts of ``generate``."""
    lengths = list(map(len, prompts))
    if not all(lengths) or not lengths or new_tokens < 1:
        raise InputError(f"nothing to generate: prompts of {lengths}, {new_tokens} new tokens")
    check_tokens(info, max(lengths) + new_tokens, *prompts)
    return lengths


def split_shared(
    info: ModelInfo, prefix: TokenIds, suffixes: Sequence[TokenIds]
) -> tuple[list[int], list[list[int]]]:
    """What is computed once and what each row adds: ``shared + rows[i] == prefix + suffixes[i]``.

    The last token of the prefix goes to the rows, so that a suffix may be empty.
    """
    shared, joint = list(prefix[:-1]), list(prefix[-1:])
    rows = [joint + list(suffix) for suffix in suffixes]
    if not all(rows):
        raise InputError("a sequence without tokens predicts nothing; give a prefix or a BOS")
    longest = max(map(len, rows), default=0)
    check_tokens(info, len(shared) + longest, shared, *rows)
    return shared, rows


def plan_batches(
    lengths: Sequence[int],
    kept: Sequence[int],
    shared: int,
    most_tokens: int,
    most_kept: int,
    filled: int = FILLED_TOKENS,
) -> list[tuple[int, ...]]:
    """Indices of rows of ``lengths`` tokens, ``kept`` of which need logits, batch by batch.

    ``most_tokens`` counts padding and, for every row, what is ``shared``; a row beyond a limit
    stands alone, and up to ``filled`` tokens are padded freely. Longest rows come first: what does
    not fit in memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    tokens = [0, *accumulate(lengths[i] for i in order)]
    needed = [0, *accumulate(kept[i] for i in order)]
    begins = [0]
    for end in range(1, len(order) + 1):
        begin = begins[-1]
        rows = end - begin
        padded = rows * lengths[order[begin]]
        padding = padded - (tokens[end] - tokens[begin])
        fits = (
            padded + rows * shared <= most_tokens
            and needed[end] - needed[begin] <= most_kept
            and (padded <= filled or padding <= PADDING_SHARE * padded)
        )
        if rows > 1 and not fits:
            begins.append(end - 1)
    return [tuple(order[begin:end]) for begin, end in pairwise([*begins, len(order)]) if end]


def pad_rows(
    rows: Sequence[Sequence[int]], kept: Sequence[int], shared: int
) -> dict[str, torch.Tensor]:
    """Rows padded on the right as arguments of a model; the ``kept`` last logits of each are kept.

    All are ``[rows, width]`` but the mask, which counts ``shared`` earlier tokens in: ``[rows,
    shared + width]``, and absent where nothing is padded.
    """
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
    inputs = {"input_ids": ids, "position_ids": positions, "logits_to_keep": keep}
    if not real.all():
        inputs["attention_mask"] = torch.cat([seen, real], dim=1).long()
    return inputs


def can_share(config: Any) -> bool:
    """Whether every layer's cache can be shared; recurrent states, for one, cannot."""
    layers = DynamicCache(config=config).layers
    return all(type(layer).__name__ in SHAREABLE_LAYERS for layer in layers)


def fork(cache: Any, sources: list[int]) -> Any:
    """A cache whose rows go on from those ``sources``; rows of one share memory until written."""
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in forked.layers:
        if layer.keys is not None:
            layer.keys, layer.values = (
                each.expand(len(sources), -1, -1, -1) if len(each) == 1 else each[sources]
                for each in (layer.keys, layer.values)
            )
    return forked


def scores_of(rows: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """The value of a token in each row, and 1.0 where it is the row's largest: ``[n, 2]``."""
    index = torch.tensor(list(tokens), device=rows.device)[:, None]
    return torch.cat([rows.gather(1, index), rows.argmax(dim=-1, keepdim=True) == index], dim=1)


def log_softmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``logits - logsumexp(logits)`` over the last of two dimensions, and that sum, in float32.

    On a CPU torch's own ``log_softmax`` is 3e-5 nats too high for 262k tokens.
    """
    result, sums = torch.empty_like(logits), logits.new_empty((len(logits), 1))
    pieces = (of.split(SOFTMAX_ROWS) for of in (logits, result, sums))  # type: ignore[no-untyped-call]
    for rows, block, norms in zip(*pieces, strict=True):
        torch.sub(rows, torch.logsumexp(rows, dim=-1, keepdim=True, out=norms), out=block)
    return result, sums[:, 0]
