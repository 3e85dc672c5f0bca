"""MMLU questions, from a folder of CSV files or from the hub."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from ewq.data.texts import hub_rows, is_visible, read_text
from ewq.errors import InputError

LETTERS = "ABCD"
HUB = "hub"
HUB_DATASET = "cais/mmlu"
GROUPS = tomllib.loads(Path(__file__).with_name("mmlu_groups.toml").read_text(encoding="utf-8"))
GROUP_OF = {subject: group for group, subjects in GROUPS.items() for subject in subjects}
"""Subject to group; subjects outside MMLU belong to none."""
SHOWN = 40


@dataclass(frozen=True)
class Question:
    """One question with four choices."""

    subject: str
    text: str
    choices: tuple[str, str, str, str]
    answer: int


@dataclass(frozen=True)
class MmluData:
    """Test questions, subject after subject, and the worked examples that go before them."""

    test: tuple[Question, ...]
    dev: Mapping[str, tuple[Question, ...]]
    source: str

    @cached_property
    def subjects(self) -> dict[str, int]:
        """Number of test questions by subject, in their order."""
        return {name: len(rows) for name, rows in self.by_subject()}

    @cached_property
    def digest(self) -> str:
        """``sha256:...`` over every question in order and the worked examples of their subjects."""
        rows = [*self.test, *(q for name in self.subjects for q in self.dev.get(name, ()))]
        sha = hashlib.sha256()
        for q in rows:
            line = json.dumps([q.subject, q.text, q.choices, q.answer], ensure_ascii=False)
            sha.update(line.encode() + b"\n")
        return f"sha256:{sha.hexdigest()}"

    def by_subject(self) -> Iterator[tuple[str, list[Question]]]:
        """Test questions of each subject, in order."""
        for subject, rows in groupby(self.test, lambda q: q.subject):
            yield subject, list(rows)

    def subset(self, n: int, seed: int = 0) -> MmluData:
        """A sample of ``n`` questions, every subject by its share, the same on every machine."""
        if not 1 <= n <= len(self.test):
            raise InputError(f"cannot take {n} of {len(self.test)} MMLU questions")
        quota = _shares(self.subjects, n)
        chosen: list[Question] = []
        for subject, rows in self.by_subject():
            keys = (f"{seed}/{subject}/{i}".encode() for i in range(len(rows)))
            ranks = [hashlib.sha256(key).digest() for key in keys]
            ranked = sorted(range(len(rows)), key=ranks.__getitem__)
            chosen += [rows[i] for i in sorted(ranked[: quota[subject]])]
        return MmluData(tuple(chosen), self.dev, f"{self.source}, {n} of {len(self.test)}")


def load_mmlu(source: str | Path) -> MmluData:
    """Read MMLU: ``hub`` for ``cais/mmlu``, or a folder of CSV files.

    Those are ``dev/SUBJECT_dev.csv`` and ``test/SUBJECT_test.csv`` without header: question, four
    choices, answer letter. What is not as described is an InputError, as is a hub out of reach.
    """
    if str(source) == HUB:
        # One configuration holds all subjects; its dev rows keep each subject's order.
        parts = [hub_rows(HUB_DATASET, "all", split=name) for name in ("dev", "test")]
        return from_rows(parts[0], parts[1], HUB_DATASET)
    folder = Path(source)
    files = {f.name.removesuffix("_test.csv"): f for f in (folder / "test").glob("*_test.csv")}
    if not files:
        raise InputError(f"{folder} has no test/SUBJECT_test.csv: give the MMLU folder, or 'hub'")
    test: list[Question] = []
    dev: dict[str, tuple[Question, ...]] = {}
    for subject, file in sorted(files.items()):
        test += _read_csv(file, subject)
        examples = folder / "dev" / f"{subject}_dev.csv"
        dev[subject] = tuple(_read_csv(examples, subject)) if examples.exists() else ()
    return MmluData(tuple(test), dev, str(folder))


def _read_csv(file: Path, subject: str) -> list[Question]:
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        rows = [
            _question(subject, row, f"{file}: row {number}")
            for number, row in enumerate(reader, start=1)
        ]
    except csv.Error as error:
        raise InputError(f"{file}: line {reader.line_num + 1}: {error}") from error
    if not rows:
        raise InputError(f"{file}: no questions; remove the file or restore its rows")
    return rows


def _question(subject: str, row: Sequence[str], where: str) -> Question:
    if len(row) != 6:
        wanted = "6 (question, A, B, C, D, answer letter)"
        raise InputError(f"{where}: {len(row)} columns, expected {wanted}")
    text, a, b, c, d, letter = row
    if letter not in LETTERS or len(letter) != 1:
        raise InputError(f"{where}: answer {letter[:SHOWN]!r}, expected one of A, B, C, D")
    if not is_visible(text):
        raise InputError(f"{where}: the question is empty")
    return Question(subject, text, (a, b, c, d), LETTERS.index(letter))


def from_rows(
    dev: Iterable[Mapping[str, Any]], test: Iterable[Mapping[str, Any]], source: str
) -> MmluData:
    """Build the data from rows as the hub has them: ``subject, question, choices, answer``."""
    asked = sorted(_parse(test, f"{source} test"), key=lambda q: q.subject)
    worked: dict[str, tuple[Question, ...]] = {}
    for q in _parse(dev, f"{source} dev"):
        worked[q.subject] = (*worked.get(q.subject, ()), q)
    return MmluData(tuple(asked), worked, source)


def _parse(rows: Iterable[Mapping[str, Any]], where: str) -> Iterator[Question]:
    letters = dict(enumerate(LETTERS))
    for number, row in enumerate(rows, start=1):
        cells = [row["question"], *row["choices"], letters.get(row["answer"], str(row["answer"]))]
        yield _question(row["subject"], cells, f"{where}: row {number}")


def _shares(sizes: Mapping[str, int], n: int) -> dict[str, int]:
    """Divide ``n`` in proportion to the sizes, the largest remainders rounded up."""
    total = sum(sizes.values())
    quota = {name: n * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(n * sizes[name] % total), name))
    for name in by_remainder[: n - sum(quota.values())]:
        quota[name] += 1
    return quota
