"""Texts as token ids, a context and its continuation divided where their joint encoding is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ewq.errors import InputError, MeasurementError
from ewq.model import LanguageModel


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids as a user of the tokenizer gets them: with BOS where it adds one by itself.

    A text that already begins with the BOS string is not given a second one.
    """
    bos: str = getattr(tokenizer, "bos_token", None) or ""
    doubled = bool(bos and texts) and texts[0].startswith(bos)
    # verbose: no remark on lengths, which are checked against the model later.
    coded = tokenizer(list(texts), add_special_tokens=not doubled, verbose=False)
    return [list(ids) for ids in coded["input_ids"]]


def encode_pairs(
    tokenizer: Any, contexts: Sequence[str], continuations: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of contexts and of their continuations, encoded jointly.

    A continuation alone would often be other tokens: ``" A"`` after text and ``"A"`` at the start
    of one differ in most vocabularies. Trailing spaces of a context belong to its continuation,
    where tokenizers put them.

    Raises:
        InputError: the tokenizer puts an end-of-text token after every text.
    """
    stripped = [context.rstrip() for context in contexts]
    moved = [
        context[len(short) :] + continuation
        for context, short, continuation in zip(contexts, stripped, continuations, strict=True)
    ]
    heads = encode(tokenizer, stripped)
    eos = getattr(tokenizer, "eos_token_id", None)
    if eos is not None and heads and heads[0][-1:] == [eos]:
        raise InputError(
            "the tokenizer ends every text with its end-of-text token; "
            "switch that off (add_eos_token) to score continuations"
        )
    whole = encode(tokenizer, [a + b for a, b in zip(stripped, moved, strict=True)])
    return heads, [ids[len(head) :] for ids, head in zip(whole, heads, strict=True)]


def common_prefix(rows: Sequence[list[int]]) -> list[int]:
    """The longest run of tokens that all rows begin with."""
    # Whatever the smallest and the largest row share, all rows share.
    low, high = min(rows), max(rows)
    length = 0
    while length < min(len(low), len(high)) and low[length] == high[length]:
        length += 1
    return low[:length]


def require_context(model: LanguageModel, tokens: int, what: str) -> None:
    """Raise a MeasurementError where the model's context does not hold so many tokens."""
    limit = model.info.context_length
    if tokens > limit:
        raise MeasurementError(
            f"{what}: {tokens} tokens exceed the model's context of {limit}, and nothing is "
            "truncated; ask for less"
        )
