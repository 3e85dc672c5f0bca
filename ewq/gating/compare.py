"""Two stored runs against each other: every metric with its change and verdict."""

from dataclasses import dataclass

from ewq.gating.change import Change, changes, incomparable
from ewq.gating.gates import overall
from ewq.gating.thresholds import BUILT_IN, Thresholds
from ewq.record import Verdict
from ewq.storage.environment import comparable, differences
from ewq.storage.runs import Run


@dataclass(frozen=True)
class Row:
    """One metric of one benchmark, before and after."""

    variant: str
    task: str
    change: Change


@dataclass(frozen=True)
class Comparison:
    """Everything there is to say about two runs."""

    before: Run
    after: Run
    rows: tuple[Row, ...]
    refusals: tuple[str, ...]
    """Why something both runs measured could not be compared."""
    losses: tuple[str, ...]
    """What the run was to measure and did not, though the baseline has it: a regression."""
    uncovered: tuple[str, ...]
    """What only one of the runs measured, because the other was not asked to."""
    differences: tuple[str, ...]
    foreign: bool = False
    """Whether the runs come from different hardware: nothing is a regression then."""

    @property
    def regressions(self) -> tuple[Row, ...]:
        """Rows that got worse beyond tolerance and noise."""
        return tuple(row for row in self.rows if row.change.verdict is Verdict.FAIL)

    @property
    def verdict(self) -> Verdict:
        """One verdict for the whole; refusals count as a missing baseline."""
        found = [row.change.verdict for row in self.rows if row.change.verdict is not None]
        found += [Verdict.NO_BASELINE] * bool(self.refusals)
        found += [Verdict.FAIL] * (bool(self.losses) and not self.foreign)
        return overall(found)

    @property
    def exit_code(self) -> int:
        """0 no regression, 1 regression, 2 something both measured was not comparable."""
        if not self.foreign and (self.regressions or self.losses):
            return 1
        gated = any(row.change.verdict is not None for row in self.rows)
        return 2 if self.foreign or self.refusals or not gated else 0


def compare_runs(before: Run, after: Run, thresholds: Thresholds = BUILT_IN) -> Comparison:
    """Compare every benchmark that a run and its baseline ``before`` both hold."""
    shared = [key for key in after.records if key in before.records]
    old_only = [key for key in before.records if key not in (*after.records, *after.lost)]
    new_only = [key for key in after.records if key not in before.records]
    hardware = comparable(before.machine, after.machine)
    refusals, rows = list(hardware), []
    # The checkpoint's fingerprint says nothing of its tokenizer; older runs do not know theirs.
    if len({run.settings.get("tokenizer") for run in (before, after)} - {None}) > 1:
        refusals.append("measured with another tokenizer")
    whole, device = bool(refusals), str(after.machine.get("device"))
    for key in shared:
        old, new = before.records[key], after.records[key]
        reasons = incomparable(old, new)
        refusals += [f"{'/'.join(key)}: {reason}" for reason in reasons]
        tolerances = {} if reasons or whole else thresholds.tolerances_for(key[1], device)
        rows += [Row(*key, change) for change in changes(old, new, tolerances)]
    if not shared:
        refusals.append("the runs have no benchmark in common")
    return Comparison(
        before=before,
        after=after,
        rows=tuple(rows),
        refusals=tuple(refusals),
        losses=tuple(
            f"{'/'.join(key)}: selected, but this run has no result; the baseline has one"
            for key in after.lost
            if key in before.records
        ),
        uncovered=(
            *(f"{'/'.join(key)}: only in the baseline" for key in old_only),
            *(f"{'/'.join(key)}: not in the baseline" for key in new_only),
        ),
        differences=tuple(differences(before.machine, after.machine)),
        foreign=bool(hardware),
    )
