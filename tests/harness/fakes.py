"""A fake model and subject: the whole harness runs on them in well under a second a variant.

Used through pytester: ``write_project`` lays out a project whose ``conftest.py``
overrides the two fixtures that decide what is benchmarked.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ewq.checkpoint.embedded import fixture_path
from ewq.data.mmlu import load_mmlu
from ewq.errors import EwqError, MeasurementError
from ewq.harness.loading import Loaded
from ewq.model import Generation, ModelInfo
from ewq.tasks.mmlu import question_text
from ewq.tasks.table import TASKS as TABLE

REPOSITORY = Path(__file__).parents[2]
TASKS = len(TABLE) - 3
"""Of every variant; the reference has the noise floor besides, and families are asked for."""
VOCABULARY = 260
RECOGNIZED = 60
"""Tokens at the end of a question by which fakes know it."""
_TOKEN = re.compile(rb" [A-D](?![A-Za-z])|.", re.DOTALL)
_LETTERS = {f" {letter}".encode(): 256 + i for i, letter in enumerate("ABCD")}


class ByteTokenizer:
    """One token per byte, and one for each of ``" A"`` to ``" D"``; no BOS."""

    is_fast = True
    bos_token = None
    bos_token_id = None
    eos_token_id = 0

    def _encode(self, text):
        pieces = [match.group() for match in _TOKEN.finditer(text.encode())]
        return [_LETTERS.get(piece, piece[0]) for piece in pieces]

    def encode(self, text, add_special_tokens=True, **_):
        return self._encode(text)

    def __call__(self, text, **_):
        if not isinstance(text, str):
            return {"input_ids": [self._encode(one) for one in text]}
        ids, offsets, at = [], [], 0
        for match in _TOKEN.finditer(text.encode()):
            length = len(match.group().decode("utf-8", errors="ignore")) or 0
            offsets.append((at, at + length))
            at += length
        ids = self._encode(text)
        return {"input_ids": ids, "offset_mapping": offsets}

    def decode(self, ids, **_):
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


@cache
def answers():
    """The last tokens of every question -> its answer: a fake is no guesser."""
    encode = ByteTokenizer().encode
    questions = load_mmlu(fixture_path("mmlu")).test
    return {tuple(encode(question_text(each))[-RECOGNIZED:]): each.answer for each in questions}


class FakeModel:
    """Logits from a fixed table by the last two tokens; ``noise`` is the damage."""

    slow_calls = math.inf
    """How many generations ``step_s`` slows."""
    interrupted = False

    def __init__(self, noise: float, step_s: float = 0.0, weights_bytes: int = 1_000_000):
        rng = np.random.default_rng(1)
        self._last = rng.normal(0, 1.5, (VOCABULARY, VOCABULARY)).astype(np.float32)
        self._before = rng.normal(0, 1.0, (VOCABULARY, VOCABULARY)).astype(np.float32)
        damage = np.random.default_rng(2).normal(0, 1, self._last.shape)
        self._last += noise * damage.astype(np.float32)
        self._ballast = np.ones(4_000_000)
        self._step_s = step_s
        self.answers = answers()
        self.tokenizer = ByteTokenizer()
        self.info = ModelInfo("fake", "cpu", "float32", 8192, VOCABULARY, weights_bytes, 16.0)

    @property
    def settings(self):
        return {"engine": "fake", "dtype": "float32", "batch_tokens": 1}

    def _rows(self, ids, start):
        """Log-probabilities for positions ``start`` to the end, ``[n, vocab]``."""
        if self.interrupted:
            raise KeyboardInterrupt
        if len(ids) > self.info.context_length:
            raise MeasurementError(f"sequence of {len(ids)} tokens exceeds the context")
        ids = np.asarray(ids)
        logits = self._last[ids[start - 1 :]].copy()
        if start >= 2:
            logits += self._before[ids[start - 2 : -1]]
        return torch.from_numpy(logits).log_softmax(-1)

    def last_logprobs(self, prefix, suffixes, columns):
        rows = [[*prefix, *suffix] for suffix in suffixes]
        found = np.stack([self._rows(r, len(r))[0, list(columns)].numpy() for r in rows])
        for row, ids in zip(found, rows, strict=True):
            if (answer := self.answers.get(tuple(ids[-RECOGNIZED:]))) is not None:
                row[np.arange(len(row)) != answer] -= 4
        return found

    def token_logprobs(self, prefix, suffixes):
        results = []
        for suffix in suffixes:
            ids = [*prefix, *suffix]
            rows = self._rows(ids, len(prefix))[:-1]
            results.append(rows[range(len(suffix)), list(suffix)].numpy())
        return results

    def continuation_scores(self, asked):
        plain = [self.token_logprobs(*each) for each in asked]
        return [[np.stack([row, np.zeros_like(row)], axis=1) for row in rows] for rows in plain]

    def logprobs(self, ids, start):
        yield self._rows(ids, start)[:-1]

    def generate(self, prompts, new_tokens, stop=None):
        self.slow_calls -= 1
        step_s = self._step_s if self.slow_calls >= 0 else 0.0
        time.sleep(step_s * new_tokens)
        rows = []
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(new_tokens):
                ids.append(int(self._rows(ids[-2:], min(2, len(ids)))[-1].argmax()))
            rows.append(tuple(ids[len(prompt) :]))
        # Long enough for gates to trust.
        step = 0.01 + 10 * step_s
        return Generation(tuple(rows), 0.1 + step_s, (step,) * (new_tokens - 1))

    def synchronize(self):
        pass

    def close(self):
        self._ballast = self._last = self._before = None


@dataclass
class FakeSubject:
    """A model under test without a checkpoint."""

    label: str = "fake"
    fingerprint: str = "sha256:fake"
    tokenizer_digest: str = "sha256:bytes"
    is_dummy: bool = False
    checkpoint: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(config={}, text_config={})
    )
    tokenizer: ByteTokenizer = field(default_factory=ByteTokenizer)


@dataclass(frozen=True)
class Behaviour:
    """How a fake variant behaves; read from ``behaviour.json`` so that a test can change it."""

    noise: float = 0.0
    weights_bytes: int = 1_000_000
    error: str = ""
    step_s: float = 0.0
    slow_calls: float = math.inf
    guesses: bool = False
    """It knows no answers."""
    kill: str = ""
    """Name of a signal the process sends itself while loading."""
    interrupted: bool = False
    """Its first forward pass meets Ctrl-C."""


def behaviour_of(variant: str) -> Behaviour:
    file = Path("behaviour.json")
    table = json.loads(file.read_text()) if file.exists() else {}
    return Behaviour(**{**table.get("*", {}), **table.get(variant, {})})


def load_fake(variant, subject, placement) -> Loaded:
    """The ``ewq_loader`` of fake projects; logs each load to ``loads.txt``."""
    behaviour = behaviour_of(variant.name)
    with Path("loads.txt").open("a") as log:
        log.write(f"{variant.name}\n")
    if behaviour.kill:
        os.kill(os.getpid(), getattr(signal, behaviour.kill))
    if behaviour.error:
        raise EwqError(behaviour.error)
    model = FakeModel(behaviour.noise, behaviour.step_s, behaviour.weights_bytes)
    model.slow_calls = behaviour.slow_calls
    model.interrupted = behaviour.interrupted
    model.answers = {} if behaviour.guesses else answers()
    return Loaded(model)


CONFTEST = """
import pytest
from tests.harness.fakes import FakeSubject, load_fake

@pytest.fixture(scope="session")
def ewq_loader():
    return load_fake

@pytest.fixture(scope="session")
def ewq_subject():
    return FakeSubject()
"""


def write_project(folder: Path, **behaviours) -> None:
    """A project with ewq's own benchmark files that measures fakes."""
    benchmarks = folder / "benchmarks"
    benchmarks.mkdir(exist_ok=True)
    for file in (REPOSITORY / "benchmarks").glob("test_*.py"):
        shutil.copy(file, benchmarks)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\n    ignore:Benchmark fixture was not used\n"
    )
    set_behaviour(folder, **behaviours)


def finished(journal: Path) -> Counter[str]:
    """How often each ``variant/task`` was finished, over all processes of a run."""
    with closing(sqlite3.connect(journal)) as file:
        rows = file.execute("SELECT variant || '/' || task FROM events WHERE kind = 'finished'")
        return Counter(name for (name,) in rows)


def set_behaviour(folder: Path, **behaviours) -> None:
    """``set_behaviour(path, fp16={"noise": 0.1})``; ``_`` in names stands for ``-``."""
    table = {name.replace("ewq_", "ewq-"): value for name, value in behaviours.items()}
    (folder / "behaviour.json").write_text(json.dumps(table))
