"""Which stored run to compare with, chosen deliberately; and two stored runs metric by metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from ewq.errors import InputError
from ewq.gating.change import Change, changes, incomparable
from ewq.gating.gates import lost_in_doubt, overall
from ewq.gating.thresholds import BUILT_IN, Thresholds
from ewq.record import Record, RecordKey, Verdict
from ewq.storage.environment import (
    RunIdentity,
    changed_settings,
    comparable,
    differences,
    git_lines,
)
from ewq.storage.runs import Run, read_storage, resolve_run

NEWEST = "newest"
ANCESTOR = "ancestor"
_REASONS_SHOWN = 5


@dataclass(frozen=True)
class Wanted:
    """What a baseline must have measured."""

    identity: RunIdentity
    selected: tuple[RecordKey, ...]
    records: Mapping[RecordKey, Record] = field(default_factory=dict)
    """What has been measured already, where the run is over: compared setting by setting."""


@dataclass(frozen=True)
class Choice:
    """The run chosen, or why there is none."""

    run: Run | None
    reasons: tuple[str, ...] = ()
    """Without a run: why each candidate was refused. With one: what it does not cover."""


def find_baseline(
    request: str, storage: Path, wanted: Wanted, repository: Path, exclude: Path | None = None
) -> Choice:
    """Choose the baseline that ``request`` asks for; ``exclude`` is the run itself, where stored.

    ``request`` is ``newest``, ``ancestor`` (of the nearest ancestor commit with such a run in the
    ``repository``), or a pinned run: an InputError where that does not exist or is damaged.
    """
    if request not in (NEWEST, ANCESTOR):
        return choose([resolve_run(request, storage, repository)], wanted)
    runs, damaged = read_storage(storage)
    runs = [run for run in runs if exclude is None or run.path.resolve() != exclude.resolve()]
    choice = choose(runs, wanted, ancestors(repository) if request == ANCESTOR else None)
    return replace(choice, reasons=(*choice.reasons, *damaged))


def baseline_of(run: Run, request: str, storage: Path, repository: Path) -> Run:
    """The baseline of a stored run; an InputError with the reasons where none qualifies."""
    if not run.records:
        raise InputError(f"run {run.path} has no measurements to compare")
    wanted = Wanted(run.identity, tuple(run.records), run.records)
    choice = find_baseline(request, storage, wanted, repository, exclude=run.path)
    if choice.run is None:
        raise InputError(f"no baseline for {run.name}: {'; '.join(choice.reasons)}")
    return choice.run


def choose(runs: Sequence[Run], wanted: Wanted, commits: Sequence[str] | None = None) -> Choice:
    """The run that qualifies, by what it covers, then by its commit, then the newest.

    With ``commits``, nearest first, only runs of clean files of one of these do.
    """
    distances = {commit: distance for distance, commit in enumerate(commits or ())}
    related = [run for run in runs if not run.dirty and run.commit in distances]
    if commits is not None and not related:
        note = f"none of the {len(runs)} stored runs comes from a clean ancestor commit"
        return Choice(None, (note,))
    runs = runs if commits is None else related
    refusals = {run.path: unsuitable(run, wanted) for run in runs}
    fit = [run for run in runs if not refusals[run.path]]
    if not fit:
        recent = sorted(runs, key=lambda run: run.datetime, reverse=True)
        shown = [f"{run.name}: {'; '.join(refusals[run.path])}" for run in recent[:_REASONS_SHOWN]]
        more = [f"and {len(runs) - len(shown)} older runs"] * (len(runs) > len(shown))
        return Choice(None, (*shown, *more) or ("there is no stored run",))

    def rank(run: Run) -> tuple[int, int, datetime, str]:
        covered = sum(key in run.records for key in wanted.selected)
        return (covered, -distances.get(run.commit or "", 0), run.datetime, run.path.name)

    best = max(fit, key=rank)
    missing = ["/".join(key) for key in wanted.selected if key not in best.records]
    gaps = [f"the baseline {best.name} does not cover {', '.join(missing)}"] if missing else []
    return Choice(best, tuple(gaps))


def unsuitable(run: Run, wanted: Wanted) -> list[str]:
    """Why a run must not serve as the baseline; empty when it may."""
    if run.foreign:
        return ["stored without ewq's plugin"]
    reasons = _broken(run)
    shared = [key for key in wanted.selected if key in run.records]
    if not shared:
        return [*reasons, "measured none of the selected benchmarks"]
    reasons += run.identity.differences(wanted.identity)
    for key in shared:
        if key in wanted.records:
            theirs, ours = run.records[key].settings, wanted.records[key].settings
            reasons += [f"{key[1]}: {reason}" for reason in changed_settings(theirs, ours)]
    # Variants of one engine differ from the candidate's in the same way: once is enough.
    return list(dict.fromkeys(reasons))


def ancestors(repository: Path, limit: int = 1000) -> list[str]:
    """Commits before the present state of the files, nearest first; an InputError without git.

    The commit checked out is itself an ancestor of files that differ from it.
    """
    dirty = git_lines(repository, "status", "--porcelain", "--untracked-files=no")
    commits = git_lines(repository, "rev-list", f"--max-count={limit}", "HEAD")
    if dirty is None or commits is None:
        reason = f"{repository.resolve()} is not a git repository with commits"
        raise InputError(f"cannot look for an ancestor's run: {reason}; name a run instead")
    return commits if dirty else commits[1:]


def _broken(run: Run) -> list[str]:
    reasons = []
    if run.failed or run.lost:
        names = [*map(str, run.failed), *("/".join(key) for key in run.lost)]
        reasons.append(f"failed: {', '.join(dict.fromkeys(names))}")
    elif not run.complete:
        reasons.append("partial")
    if run.refused:
        reasons.append(f"gates failed: {', '.join('/'.join(key) for key in run.refused)}")
    if doubtful := ["/".join(key) for key, it in run.records.items() if lost_in_doubt(it)]:
        # Else a slowdown would be waved through as noise once and be the norm from then on.
        reasons.append(f"possibly worse than its own baseline: {', '.join(doubtful)}")
    elif run.exit_status not in (0, None):
        reasons.append(f"its session ended with exit status {run.exit_status}")
    return reasons


@dataclass(frozen=True)
class Comparison:
    """Everything there is to say about two runs."""

    before: Run
    after: Run
    rows: tuple[Change, ...]
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
    def verdict(self) -> Verdict:
        """One verdict for the whole; refusals count as a missing baseline."""
        found = [row.verdict for row in self.rows if row.verdict is not None]
        found += [Verdict.NO_BASELINE] * bool(self.refusals)
        found += [Verdict.FAIL] * (bool(self.losses) and not self.foreign)
        return overall(found)

    @property
    def exit_code(self) -> int:
        """0 no regression, 1 regression, 2 something both measured was not comparable."""
        verdicts = {row.verdict for row in self.rows} - {None}
        if not self.foreign and (Verdict.FAIL in verdicts or self.losses):
            return 1
        return 2 if self.foreign or self.refusals or not verdicts else 0


def compare_runs(before: Run, after: Run, thresholds: Thresholds = BUILT_IN) -> Comparison:
    """Compare every benchmark that a run and its baseline ``before`` both hold."""
    shared = [key for key in after.records if key in before.records]
    old_only = [key for key in before.records if key not in (*after.records, *after.lost)]
    new_only = [key for key in after.records if key not in before.records]
    hardware = comparable(before.machine, after.machine)
    refusals, rows = list(hardware), list[Change]()
    # The checkpoint's fingerprint says nothing of its tokenizer; older runs do not know theirs.
    if len({run.settings.get("tokenizer") for run in (before, after)} - {None}) > 1:
        refusals.append("measured with another tokenizer")
    whole, device = bool(refusals), str(after.machine.get("device"))
    for key in shared:
        old, new = before.records[key], after.records[key]
        reasons = incomparable(old, new)
        refusals += [f"{'/'.join(key)}: {reason}" for reason in reasons]
        tolerances = {} if reasons or whole else thresholds.tolerances_for(key[1], device)
        rows += changes(old, new, tolerances)
    if not shared:
        refusals.append("the runs have no benchmark in common")
    lost = "selected, but this run has no result; the baseline has one"
    uncovered = [f"{'/'.join(key)}: only in the baseline" for key in old_only]
    uncovered += [f"{'/'.join(key)}: not in the baseline" for key in new_only]
    return Comparison(
        before=before,
        after=after,
        rows=tuple(rows),
        refusals=tuple(refusals),
        losses=tuple(f"{'/'.join(key)}: {lost}" for key in after.lost if key in before.records),
        uncovered=tuple(uncovered),
        differences=tuple(differences(before.machine, after.machine)),
        foreign=bool(hardware),
    )
