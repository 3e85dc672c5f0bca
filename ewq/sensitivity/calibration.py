"""The text that sensitivity is measured on, as token sequences."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ewq.checkpoint.embedded import fixture_path
from ewq.data.texts import TextSet, load_texts
from ewq.errors import InputError

SEQUENCES = 32
"""Fewer give worse plans on some models; more gave none better."""
SEQUENCE_TOKENS = 512
LEAST_TOKENS = 32
"""Shorter windows say too little about a token's context."""
LEAST_SEQUENCES = 4
LONG_LINE = 80
"""Characters from which on a line that two texts share is no coincidence."""
MOST_SHARED = 0.1


@dataclass(frozen=True)
class Calibrating:
    """How sensitivity is measured."""

    source: str | Path | None = None
    """A text file or a folder of domains; the text that ewq carries unless given."""
    sequences: int = SEQUENCES
    tokens: int = SEQUENCE_TOKENS
    seed: int = 0
    device: str = "cpu"
    cache: bool = True
    data_free: bool = False
    """Random tokens instead of a text, and one sensitivity for all weights of a matrix."""


@dataclass(frozen=True)
class Calibration:
    """Token sequences, each run by itself."""

    sequences: tuple[tuple[int, ...], ...]

    @property
    def digest(self) -> str:
        """``sha256:...`` of the token ids."""
        digest = hashlib.sha256(repr(self.sequences).encode())
        return f"sha256:{digest.hexdigest()}"

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(map(len, self.sequences))


def calibration_texts(source: str | Path | None = None) -> TextSet:
    """The texts at ``source`` (a file, or a folder of domains), else those ewq carries for this.

    Raises:
        InputError: nothing is there, or not UTF-8.
    """
    return load_texts(source or fixture_path("calibration"))


def make_calibration(
    texts: TextSet,
    tokenizer: Any,
    *,
    sequences: int = SEQUENCES,
    tokens: int = SEQUENCE_TOKENS,
    context_length: int | None = None,
    seed: int = 0,
) -> Calibration:
    """Cut texts into sequences and draw some of them, as evenly over domains as they allow.

    Each sequence begins with the tokenizer's beginning-of-text token where it adds one.

    Args:
        texts: domains, each joined to one text.
        tokenizer: the checkpoint's own.
        sequences: how many; fewer where the texts hold no more.
        tokens: most of each; the last one of a domain may be shorter.
        context_length: the model's, which no sequence exceeds.
        seed: of the drawing.

    Raises:
        InputError: the texts are too short.
    """
    from ewq.data.windows import bos_token

    length = min(tokens, context_length or tokens)
    bos = bos_token(tokenizer)
    prefix = () if bos is None else (bos,)
    by_domain = [
        _windows(_domain_ids(texts, domain, tokenizer), prefix, length) for domain in texts.domains
    ]
    shuffle = random.Random(seed)
    for windows in by_domain:
        shuffle.shuffle(windows)
    drawn = list(_in_turn(by_domain))[:sequences]
    if len(drawn) < min(LEAST_SEQUENCES, sequences):
        raise InputError(
            f"the calibration text holds {len(drawn)} sequences of {length} tokens; "
            f"give at least {LEAST_SEQUENCES * length} tokens, better {SEQUENCES * length}"
        )
    return Calibration(tuple(drawn))


def random_calibration(vocabulary: int, how: Calibrating) -> Calibration:
    """Sequences of tokens drawn evenly, for people without a text."""
    draw = random.Random(how.seed)
    rows = [[draw.randrange(vocabulary) for _ in range(how.tokens)] for _ in range(how.sequences)]
    return Calibration(tuple(tuple(row) for row in rows))


def _domain_ids(texts: TextSet, domain: str, tokenizer: Any) -> list[int]:
    text = "\n\n".join(document.text for document in texts.of(domain))
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _windows(ids: list[int], prefix: tuple[int, ...], length: int) -> list[tuple[int, ...]]:
    """Windows of full length, and what is left over where it is half of one or all there is."""
    step = length - len(prefix)
    cut = [(*prefix, *ids[first : first + step]) for first in range(0, len(ids), step)]
    least = min(length, LEAST_TOKENS) if len(cut) == 1 else length // 2
    return [window for window in cut if len(window) >= least]


def _in_turn(by_domain: Sequence[list[tuple[int, ...]]]) -> Iterator[tuple[int, ...]]:
    for turn in range(max(map(len, by_domain), default=0)):
        for windows in by_domain:
            if turn < len(windows):
                yield windows[turn]


def refuse_evaluation_text(calibration: TextSet, evaluation: TextSet) -> None:
    """A plan must not be judged on the text that it was made from.

    Raises:
        InputError: the two share more than a tenth of a document's long lines.
    """
    known = set(_long_lines([document.text for document in calibration.documents]))
    for document in evaluation.documents:
        lines = list(_long_lines([document.text]))
        shared = sum(line in known for line in lines)
        if lines and shared > MOST_SHARED * len(lines):
            raise InputError(
                f"the calibration text holds {shared} of {len(lines)} long lines of the evaluation "
                f"text {document.domain}/{document.name}; calibrate on other text"
            )


def _long_lines(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        yield from (line.strip() for line in text.splitlines() if len(line.strip()) >= LONG_LINE)
