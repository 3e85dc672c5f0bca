"""How a run's records are judged: limits of the thresholds, and changes against a baseline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ewq.errors import InputError
from ewq.record import Reason, Record, Verdict

if TYPE_CHECKING:
    from ewq.gating.thresholds import Thresholds
    from ewq.harness.options import Options
    from ewq.record import RecordKey
    from ewq.storage.environment import RunIdentity
    from ewq.storage.runs import Run

THRESHOLDS = "thresholds.toml"


@dataclass(frozen=True)
class Gate:
    """What one run is judged by."""

    thresholds: Thresholds
    baseline: Run | None = None
    remarks: tuple[str, ...] = ()
    """Why there is no baseline, where one was asked for; else what it lacks, and damaged runs."""
    require_baseline: bool = False
    ungated: str = ""
    """Why nothing is judged, where that is so."""

    def judge(self, record: Record, device: str) -> Record:
        """The record with its verdict; ``device`` decides how much a speed may vary."""
        from ewq.gating.gates import judge

        if self.ungated:
            reason = Reason(Verdict.NO_BASELINE, self.ungated)
            return replace(record, verdict=Verdict.NO_BASELINE, reasons=(reason,))
        baseline, missing = None, self.remarks
        if self.baseline:
            baseline = self.baseline.records.get(record.key)
            gap = f"the baseline {self.baseline.name} does not cover {'/'.join(record.key)}"
            missing = () if baseline else (gap,)
        judgement = judge(
            record,
            self.thresholds.for_(record.variant, record.task),
            baseline=baseline,
            tolerances=self.thresholds.tolerances_for(record.task, device),
            missing_baseline=missing,
        )
        verdict = judgement.verdict
        if self.require_baseline and verdict is Verdict.NO_BASELINE:
            verdict = Verdict.FAIL
        return replace(record, verdict=verdict, reasons=judgement.reasons)


def open_gate(
    options: Options,
    identity: RunIdentity,
    selected: tuple[RecordKey, ...],
    *,
    rootdir: Path,
    storage: Path,
    baseline_request: str,
    ungated: str,
) -> Gate:
    """Read the thresholds and choose the baseline.

    Raises:
        InputError: bad thresholds, or no baseline where one is required.
    """
    from ewq.gating.baseline import NEWEST, Choice, Wanted, find_baseline

    thresholds = _thresholds(options, rootdir)
    choice = Choice(None)
    if request := baseline_request or (NEWEST if options.require_baseline else ""):
        choice = find_baseline(request, storage, Wanted(identity, selected), rootdir)
    if options.require_baseline and choice.run is None:
        raise InputError(f"no baseline to gate against: {'; '.join(choice.reasons)}")
    return Gate(thresholds, choice.run, choice.reasons, options.require_baseline, ungated)


def _thresholds(options: Options, rootdir: Path) -> Thresholds:
    from ewq.gating.thresholds import BUILT_IN, load_thresholds

    path = options.thresholds or rootdir / "benchmarks" / THRESHOLDS
    known = [variant.name for variant in options.variants]
    if options.thresholds is None and not path.is_file():
        return BUILT_IN
    return load_thresholds(path, known)
