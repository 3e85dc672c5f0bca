"""The text that sensitivity is measured on, as token sequences."""

import hashlib
import random
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ewq.checkpoint.embedded import fixture_path
from ewq.data.texts import Document, TextSet, load_texts
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
    """The texts at ``source`` (a file, or a folder of domains), else those ewq carries for this."""
    return load_texts(source or fixture_path("calibration"))


def make_calibration(texts: TextSet, tokenizer: Any, how: Calibrating) -> Calibration:
    """Cut texts into sequences and draw some of them, as evenly over domains as they allow.

    Each begins with the tokenizer's beginning-of-text token where it adds one, whether or not a
    text spells it out; the last one of a domain may have fewer ``tokens``. An InputError of texts
    that are too short.
    """
    from ewq.data.windows import bos_token, spelt_bos

    bos, spelt = bos_token(tokenizer), spelt_bos(tokenizer)
    prefix = () if bos is None else (bos,)
    shuffle, by_domain = random.Random(how.seed), []
    for domain in texts.domains:
        text = "\n\n".join(document.text.removeprefix(spelt) for document in texts.of(domain))
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        by_domain.append(_windows(list(ids), prefix, how.tokens))
        shuffle.shuffle(by_domain[-1])
    turns = zip_longest(*by_domain)
    drawn = [window for turn in turns for window in turn if window is not None][: how.sequences]
    if len(drawn) < min(LEAST_SEQUENCES, how.sequences):
        raise InputError(
            f"the calibration text holds {len(drawn)} sequences of {how.tokens} tokens; give at "
            f"least {LEAST_SEQUENCES * how.tokens} tokens, better {SEQUENCES * how.tokens}"
        )
    return Calibration(tuple(drawn))


def random_calibration(vocabulary: int, how: Calibrating) -> Calibration:
    """Sequences of tokens drawn evenly, for people without a text."""
    draw = random.Random(how.seed)
    rows = [[draw.randrange(vocabulary) for _ in range(how.tokens)] for _ in range(how.sequences)]
    return Calibration(tuple(map(tuple, rows)))


def _windows(ids: list[int], prefix: tuple[int, ...], length: int) -> list[tuple[int, ...]]:
    """Windows of full length, and what is left over where it is half of one or all there is."""
    step = length - len(prefix)
    cut = [(*prefix, *ids[first : first + step]) for first in range(0, len(ids), step)]
    least = min(length, LEAST_TOKENS) if len(cut) == 1 else length // 2
    return [window for window in cut if len(window) >= least]


def refuse_evaluation_text(calibration: TextSet, evaluation: TextSet) -> None:
    """An InputError where the two share more than a tenth of a document's long lines."""
    known = {line for document in calibration.documents for line in _long_lines(document)}
    for document in evaluation.documents:
        lines = _long_lines(document)
        shared = sum(line in known for line in lines)
        if lines and shared > MOST_SHARED * len(lines):
            raise InputError(
                f"the calibration text holds {shared} of {len(lines)} long lines of the evaluation "
                f"text {document.domain}/{document.name}; calibrate on other text"
            )


def _long_lines(document: Document) -> list[str]:
    lines = map(str.strip, document.text.splitlines())
    return [line for line in lines if len(line) >= LONG_LINE]
