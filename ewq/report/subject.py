"""What a report is about: the run shown in detail and the runs before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ewq.errors import InputError
from ewq.record import Record
from ewq.report.rows import SizeUnit, VariantRow, size_unit, variant_rows
from ewq.storage.runs import Run
from ewq.variants import REFERENCE


@dataclass(frozen=True)
class Reported:
    """The newest of the runs given, and all of them in order of time."""

    run: Run
    history: tuple[Run, ...]
    """Oldest first; the last is ``run``."""

    @cached_property
    def rows(self) -> list[VariantRow]:
        """The run's variants."""
        return variant_rows(self.run.records.values())

    @property
    def reference(self) -> VariantRow | None:
        """The row that paired figures refer to, where the run measured it openly."""
        return next((row for row in self.rows if row.variant == REFERENCE), None)

    @cached_property
    def first(self) -> Record:
        """Any record: those of a run share model, fingerprint and tier."""
        return next(iter(self.run.records.values()))

    @property
    def records(self) -> list[Record]:
        """All records, variants in the order of tables."""
        return [record for row in self.rows for record in row.records.values()]

    @cached_property
    def unit(self) -> SizeUnit:
        """What sizes are given in."""
        return size_unit(self.rows)

    @property
    def measured_on(self) -> str:
        """The device that did the work, in words."""
        machine = self.run.machine
        name = machine.get("gpu") or machine.get("cpu")
        return f"{name}" if name else "an unknown device"


def reported(runs: Sequence[Run]) -> Reported:
    """Runs as a report takes them, in any order.

    Raises:
        InputError: the newest run holds nothing that ewq measured.
    """
    ordered = tuple(sorted(runs, key=lambda run: (run.datetime, run.path.name)))
    newest = ordered[-1]
    if not newest.records:
        raise InputError(f"run {newest.path} holds no ewq record: nothing to report")
    return Reported(newest, ordered)
