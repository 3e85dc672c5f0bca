"""Perplexity's definitions: how texts become windows, and which tokens of them are scored."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ewq.data.texts import TextSet
from ewq.errors import InputError
from ewq.measurement import Json
from ewq.model import LanguageModel


@dataclass(frozen=True)
class Definition:
    """One way to compute perplexity."""

    name: str
    window: int
    """Tokens per window, BOS included; at most the model's context length."""
    joined: bool
    """A domain's rows are joined with blank lines and encoded as one text, BOS before it; scored in
    whole windows only. Else each document is by itself, with BOS before each window."""

    def with_window(self, window: int) -> Definition:
        """The same definition with another window."""
        return replace(self, window=window)

    def fit(self, context_length: int) -> Definition:
        """The definition with its window cut to the model's context."""
        return self.with_window(min(self.window, context_length))


FEWEST_TOKENS = 2
"""Of one token there is no error."""
MOST_CHARACTERS_A_TOKEN = 500
"""No text has fewer tokens than this says."""

DEFINITIONS = {
    definition.name: definition
    for definition in (
        # Every window from scratch: the cheapest honest default.
        Definition("disjoint", 2048, joined=False),
        # GPTQ, AWQ, QuIP ...: WikiText's rows joined by blank lines, encoded once.
        Definition("papers", 2048, joined=True),
    )
}
SHORT = DEFINITIONS["disjoint"].with_window(512)
"""For as much text as costs little: many documents say more than long contexts of few."""


@dataclass(frozen=True)
class Window:
    """One sequence to run; its tokens from ``start`` on are scored."""

    domain: str
    document: int
    """Number of the document in the text set; of the domain's first one where joined."""
    ids: tuple[int, ...]
    start: int
    """At least 1: no token is ever scored without one before it."""
    scored_bytes: int

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return len(self.ids) - self.start


def fitted_windows(
    model: LanguageModel, texts: TextSet, definition: Definition, max_tokens: int | None
) -> tuple[dict[str, Json], tuple[Window, ...]]:
    """Settings that two results must share, and windows that fit the model's context."""
    fitted = definition.fit(model.info.context_length)
    settings: dict[str, Json] = {
        "definition": fitted.name,
        "window": fitted.window,
        "stride": fitted.window,
        "bos_added": bos_token(model.tokenizer) is not None,
        "max_tokens_per_domain": max_tokens,
        "data": texts.digest,
    }
    return settings, make_windows(texts, model.tokenizer, fitted, max_tokens)


def window_notes(
    texts: TextSet, tokenizer: Any, wanted: Definition, context_length: int
) -> tuple[str, ...]:
    """What to know of the windows: cut to the model's context, or without a BOS spelt out."""
    notes = []
    if wanted.fit(context_length) != wanted:
        notes.append(
            f"the model's context of {context_length} tokens is shorter than the {wanted.window} "
            f"of the {wanted.name} definition: not comparable with published figures"
        )
    spelt = spelt_bos(tokenizer)
    if spelt and (number := sum(each.text.startswith(spelt) for each in texts.documents)):
        notes.append(
            f"{number} of {len(texts.documents)} texts spell out {spelt!r} at their start, which "
            "the tokenizer adds by itself: it is counted once and not scored"
        )
    return tuple(notes)


def spelt_bos(tokenizer: Any) -> str:
    """The text of the BOS that the tokenizer adds; empty where it adds none."""
    spelt = getattr(tokenizer, "bos_token", None)
    return "" if bos_token(tokenizer) is None else str(spelt or "")


def bos_token(tokenizer: Any) -> int | None:
    """The beginning-of-text token this tokenizer puts before a text, if it does."""
    added = tokenizer.encode("a", add_special_tokens=True)
    bos = tokenizer.bos_token_id
    return int(bos) if bos is not None and added[:1] == [bos] else None


def make_windows(
    texts: TextSet, tokenizer: Any, definition: Definition, max_tokens: int | None = None
) -> tuple[Window, ...]:
    """Cut ``texts`` into windows, in order.

    Of a domain each document gives a window in turn, up to the one that reaches ``max_tokens``
    scored tokens. A text that begins with the BOS which the tokenizer adds is read without it. Too
    short ones are an InputError.
    """
    return tuple(
        window
        for domain in texts.domains
        for window in _domain_windows(texts, domain, tokenizer, definition, max_tokens)
    )


def require_tokens(texts: TextSet, tokenizer: Any, definition: Definition) -> None:
    """Raise an InputError of a domain too short to be scored, without tokenizing long ones."""
    needed = definition.window if definition.joined else FEWEST_TOKENS
    for domain in texts.domains:
        documents = texts.of(domain)
        if sum(len(each.text) for each in documents) < MOST_CHARACTERS_A_TOKEN * needed:
            make_windows(replace(texts, documents=documents), tokenizer, definition)


def _domain_windows(
    texts: TextSet, domain: str, tokenizer: Any, definition: Definition, max_tokens: int | None
) -> list[Window]:
    windows: list[Window] = []
    bos, scored = bos_token(tokenizer), 0
    numbered = _texts_of(texts, domain, definition, spelt_bos(tokenizer))
    turns = deque(
        _document_windows(domain, number, text, tokenizer, definition, bos)
        for number, text in numbered
    )
    while turns and (max_tokens is None or scored < max_tokens):
        if window := next(turns[0], None):
            windows.append(window)
            scored += window.scored
            turns.rotate(-1)
        else:
            turns.popleft()
    if scored < FEWEST_TOKENS:
        wanted = f"one {definition.name} window of {definition.window} tokens"
        wanted = wanted if definition.joined else f"an error: {FEWEST_TOKENS} are needed"
        short = f"{scored} tokens to score are not enough for {wanted}"
        raise InputError(f"the texts of {domain!r} are too short: {short}; give longer texts")
    return sorted(windows, key=lambda window: window.document)


def _document_windows(
    domain: str, number: int, text: str, tokenizer: Any, definition: Definition, bos: int | None
) -> Iterator[Window]:
    encoded, bytes_before = _encode(tokenizer, text)
    for ids, begin, end in _cut(encoded, definition, bos):
        size = int(bytes_before[end] - bytes_before[begin])
        yield Window(domain, number, tuple(ids), 1, size)


def _texts_of(
    texts: TextSet, domain: str, definition: Definition, bos: str
) -> Iterator[tuple[int, str]]:
    numbered = [
        (number, replace(each, text=each.text.removeprefix(bos)))
        for number, each in enumerate(texts.documents)
        if each.domain == domain
    ]
    if definition.joined:
        rows = itertools.chain.from_iterable(each.rows() for _, each in numbered)
        yield numbered[0][0], "\n\n".join(rows)
    else:
        yield from ((number, each.text) for number, each in numbered)


def _encode(tokenizer: Any, text: str) -> tuple[list[int], NDArray[np.int64]]:
    """Token ids of a text without BOS, and the bytes of it before each token and after the last."""
    # verbose=False: the text is longer than the model's context on purpose.
    encoding = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False
    )
    ids = list(encoding["input_ids"])
    if not tokenizer.is_fast:
        # No positions to be had: spread the bytes evenly over the tokens.
        return ids, np.linspace(0, len(text.encode()), len(ids) + 1).astype(np.int64)
    widths = [len(character.encode()) for character in text]
    ends = np.array([0, *(end for _, end in encoding["offset_mapping"])], dtype=np.int64)
    bytes_before = np.cumsum([0, *widths], dtype=np.int64)
    return ids, bytes_before[np.maximum.accumulate(ends)]


def _cut(
    ids: list[int], definition: Definition, bos: int | None
) -> Iterator[tuple[list[int], int, int]]:
    """Windows as ``(ids, begin, end)``, ``begin:end`` being what is scored: all but the first."""
    prefix = [] if bos is None else [bos]
    before_text, before_window = (prefix, []) if definition.joined else ([], prefix)
    sequence = before_text + ids
    step = definition.window - len(before_window)
    for position in range(0, len(sequence), step):
        part = sequence[position : position + step]
        if len(part) < step and definition.joined:
            return
        window = before_window + part
        if len(window) > 1:
            end = position + len(part) - len(before_text)
            yield window, end - len(window) + 1, end
