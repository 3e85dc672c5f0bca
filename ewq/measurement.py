"""What a task returns: metrics that carry their uncertainty, and the items behind them."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ewq.codec import decode, encode
from ewq.errors import MeasurementError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class Metric:
    """One measured figure; a MeasurementError if a number in it is NaN or infinite."""

    value: float
    unit: str
    """``fraction``, ``nats``, ``bits``, ``tokens/s``, ``bytes``, ``s``, ``ratio``, ``p`` ..."""
    higher_is_better: bool | None
    """``None`` where no direction is better, such as the share of answers that are A."""
    n: int
    """Observations behind the value: questions, tokens, rounds; 1 for a count of bytes."""
    stderr: float | None = None
    """Standard error in the value's unit; ``None`` only for exact counts and p-values."""
    freedom: int | None = None
    """Degrees of freedom of ``stderr`` where it rests on fewer parts than ``n``: clusters - 1."""
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        low, high = self.interval or (None, None)
        numbers = {"value": self.value, "stderr": self.stderr, "low": low, "high": high}
        for label, number in numbers.items():
            if number is not None and not math.isfinite(number):
                raise MeasurementError(f"{label} is {number}: a failed measurement is not stored")


@dataclass(frozen=True)
class Items:
    """Per-item results: rows with named fields, held column by column of the same length."""

    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Field -> one JSON value per row; a string is a column of single characters."""

    def __post_init__(self) -> None:
        if len({len(column) for column in self.columns.values()}) > 1:
            raise MeasurementError(f"item columns differ in length: {', '.join(self.columns)}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str) -> Sequence[Any]:
        """The values of one field, row by row; a MeasurementError where there is no such field."""
        if name not in self.columns:
            known = ", ".join(self.columns) or "none"
            raise MeasurementError(f"these items have no field {name!r}; they have {known}")
        return self.columns[name]

    def to_json(self) -> dict[str, Json]:
        """``{"fields": [...], "rows": [[...], ...]}``; rows of one character are one string."""
        columns = list(self.columns.values())
        if len(columns) == 1 and isinstance(columns[0], str):
            return {"fields": list(self.columns), "rows": columns[0]}
        rows: list[Json] = [list(row) for row in zip(*columns, strict=True)]
        return {"fields": list(self.columns), "rows": rows}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Items:
        """What :meth:`to_json` stored; a KeyError, TypeError or ValueError of anything else."""
        fields, rows = stored["fields"], stored["rows"]
        if not all(isinstance(name, str) for name in fields):
            raise ValueError("names of fields are no text")
        if isinstance(rows, str):
            (name,) = fields
            return cls({name: rows})
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(fields)
        return cls({name: list(column) for name, column in zip(fields, columns, strict=True)})


NO_ITEMS = Items()


class DoubtKind(StrEnum):
    """Why a figure may not be trusted. :mod:`ewq.gating.change` says what that does to verdicts."""

    NOISE = "noise"
    """Times that vary, or that are too short for the clock."""
    THROTTLING = "throttling"
    BUSY = "busy"
    OTHER_SESSION = "other_session"
    DECODE_MODE = "decode_mode"
    CHANCE = "chance"


@dataclass(frozen=True)
class Doubt:
    """A reason not to trust some figures of a measurement."""

    kind: DoubtKind
    text: str
    figures: Mapping[str, float] = field(default_factory=dict)
    """What the doubt rests on, such as the coefficient of variation."""


@dataclass(frozen=True)
class TaskResult:
    """The outcome of one task on one model."""

    task: str
    settings: Mapping[str, Json]
    """Everything two results must share to be comparable: protocol, data digest, batch policy."""
    metrics: Mapping[str, Metric]
    items: Items = NO_ITEMS
    doubts: tuple[Doubt, ...] = ()
    notes: tuple[str, ...] = ()
    side: Mapping[str, Json] = field(default_factory=dict)
    """Bulky extras for reports (generation samples, answers by subject); never compared."""

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON types, as references are kept in the cache."""
        return {**encode(self), "items": self.items.to_json()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TaskResult:
        """What :meth:`to_json` stored; a KeyError, TypeError or ValueError of anything else."""
        plain = {key: value for key, value in stored.items() if key != "items"}
        return replace(decode(cls, plain), items=Items.from_json(stored["items"]))


def require_same_settings(
    task: str, ours: Mapping[str, Json], theirs: Mapping[str, Json], keys: Iterable[str] = ()
) -> None:
    """Raise a MeasurementError for the first setting, of ``keys`` if given, that differs."""
    for key in keys or sorted({*ours, *theirs}):
        here, there = (reprlib.repr(settings.get(key)) for settings in (ours, theirs))
        if ours.get(key) != theirs.get(key):
            raise MeasurementError(f"{task} is not comparable: {key} is {here} here, {there} there")
