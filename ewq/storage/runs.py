"""Stored runs. The only module that knows pytest-benchmark's JSON."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from ewq.codec import decode
from ewq.errors import EwqError, InputError
from ewq.record import Record, RecordKey, Verdict
from ewq.storage.environment import RunIdentity, git_lines
from ewq.tasks.table import known_task

STORAGE = Path(".benchmarks")
"""Where pytest-benchmark keeps runs unless ``--benchmark-storage`` says otherwise."""


@dataclass(frozen=True)
class Run:
    """One stored session."""

    path: Path
    commit: str | None
    """Full hash; ``None`` outside version control."""
    dirty: bool
    branch: str | None
    datetime: datetime
    machine: Mapping[str, Any]
    """``machine_info["ewq"]``: see :mod:`ewq.storage.environment`; empty in a foreign run."""
    records: Mapping[RecordKey, Record]
    complete: bool
    """Whether everything selected was measured and stored."""
    selected: tuple[RecordKey, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    """What was selected and could not be measured, with reasons."""
    exit_status: int | None = None
    """pytest's own; ``None`` where it was not stored."""
    foreign: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Short name for tables: the storage's number and the commit's first digits."""
        number = re.match(r"\d{4,}(?=_)", self.path.name)
        commit = (self.commit or "no commit")[:10] + ("+dirty" if self.dirty else "")
        return f"{number.group() if number else self.path.stem[:40]} ({commit})"

    @property
    def identity(self) -> RunIdentity:
        """What must be equal where its figures meet others."""
        record = next(iter(self.records.values()))
        return RunIdentity(record.fingerprint, {"tier": record.tier, **self.settings}, self.machine)

    @property
    def refused(self) -> tuple[RecordKey, ...]:
        """Records whose own gate failed."""
        return tuple(key for key, record in self.records.items() if record.verdict is Verdict.FAIL)

    @property
    def lost(self) -> tuple[RecordKey, ...]:
        """What was selected and has no record."""
        return tuple(key for key in self.selected if key not in self.records)


def read_run(path: Path) -> Run:
    """Read one stored session; an InputError if absent, damaged, or not pytest-benchmark's."""
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text, parse_constant=_no_constant, parse_int=_whole_number)
        if isinstance(document, dict) and isinstance(document.get("benchmarks"), list):
            return _run(path, document)
    except OSError as error:
        raise InputError(f"cannot read run {path}: {error.strerror}") from error
    except (EwqError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        message = f"run {path} is damaged: {error}; delete it or store it again"
        raise InputError(message) from error
    raise InputError(f"{path} is not a run stored by pytest-benchmark: it has no benchmarks")


def stored_runs(storage: Path) -> list[Path]:
    """Paths of all stored sessions under ``storage``, in order of their names."""
    files = (path for pattern in ("*.json", "*/*.json") for path in storage.glob(pattern))
    return sorted(files, key=lambda path: (path.name, path))


def read_storage(storage: Path) -> tuple[list[Run], list[str]]:
    """All readable runs, newest first, and a sentence for each file that is not readable."""
    runs, damaged = [], []
    for path in stored_runs(storage):
        try:
            runs.append(read_run(path))
        except InputError as error:
            damaged.append(str(error))
    runs.sort(key=lambda run: (run.datetime, run.path.name), reverse=True)
    return runs, damaged


def resolve_run(text: str, storage: Path = STORAGE, repository: Path = Path()) -> Run:
    """The run that a file, a number, a commit, branch or tag means; else an InputError."""
    if Path(text).is_file():
        return read_run(Path(text))
    if re.fullmatch(r"\d{1,6}", text):
        numbered = [p for p in stored_runs(storage) if re.match(rf"0*{int(text)}_", p.name)]
        if numbered:
            return read_run(numbered[-1])
    runs, damaged = read_storage(storage)
    name = f"{text}^{{commit}}"
    known = git_lines(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", name)
    commit = known[-1] if known else text
    found = [run for run in runs if len(commit) >= 4 and (run.commit or "").startswith(commit)]
    if found:
        # A finished run of clean files stands for its commit better than a later partial one.
        return max(found, key=lambda run: (run.complete, not run.dirty))
    unreadable = f" ({len(damaged)} unreadable)" if damaged else ""
    where = f"a number nor a commit among the {len(runs)} runs in {storage}{unreadable}"
    raise InputError(f"no stored run {text!r}: not a file, and neither {where}")


def newest_run(storage: Path = STORAGE) -> Run:
    """The latest stored run that is readable; an InputError where there is none."""
    runs, damaged = read_storage(storage)
    if not runs:
        advice = f"no stored run in {storage}: run `pytest benchmarks/` first"
        raise InputError("; ".join([advice, *damaged]))
    return runs[0]


def whole_benchmarks(benchmarks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that pytest-benchmark can compare: named, and with every statistic of its tables."""
    from pytest_benchmark.stats import Stats

    names = [name for name in Stats.fields if name != "outliers"]
    named = [each for each in benchmarks if isinstance(each.get("fullname"), str)]
    numbers = int | float
    return [b for b in named if all(isinstance(b["stats"].get(n), numbers) for n in names)]


def storage_path(text: str) -> Path:
    """A storage as pytest-benchmark takes it: a folder, with or without ``file://``."""
    return Path(text.removeprefix("file://"))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _whole_number(digits: str) -> int:
    if len(digits) > 30:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _run(path: Path, document: Mapping[str, Any]) -> Run:
    session: Mapping[str, Any] = document.get("ewq") or {}
    commit: Mapping[str, Any] = document.get("commit_info") or {}
    known = re.fullmatch(r"[0-9a-f]{7,40}", str(commit.get("id")))
    stored = (benchmark["extra_info"].get("ewq") for benchmark in document["benchmarks"])
    found = [Record.from_json(data) for data in stored if data is not None]
    for record in found:
        _check_details(record)
    records = {record.key: record for record in found}
    selected = tuple((str(variant), str(task)) for variant, task in session.get("selected", ()))
    covered = bool(records) and all(key in records for key in selected)
    return Run(
        path=path,
        commit=known and known[0],
        dirty=bool(commit.get("dirty")),
        branch=str(commit.get("branch")) if commit.get("branch") else None,
        datetime=_moment(document.get("datetime")),
        machine=dict((document.get("machine_info") or {}).get("ewq") or {}),
        records=records,
        complete=bool(session.get("complete")) and covered,
        selected=selected,
        failed={str(name): str(why) for name, why in dict(session.get("failed") or {}).items()},
        exit_status=session.get("exit_status"),
        foreign=not session,
        settings=dict(session.get("settings") or {}),
    )


@dataclass(frozen=True)
class _DrawnPlan:
    """What reports read of a stored plan."""

    blocks: tuple[tuple[int | None, float | None, str | None], ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    factor: float | None = None
    mean: float | None = None
    std: float | None = None
    types: Mapping[str, int] = field(default_factory=dict)
    expected_kld: float | None = None


@dataclass(frozen=True)
class _Details:
    """What comparisons and reports read of a record beside its metrics, where it is there."""

    plan: _DrawnPlan
    subjects: tuple[tuple[str, int], ...]
    items: Mapping[str, tuple[float, ...]]


def _check_details(record: Record) -> None:
    """Raise a ValueError or TypeError where subjects, items or a plan are of another kind."""
    plan: Any = record.side.get("plan")
    known = {**plan, **plan["rule"]} if plan else {}
    figures = task.figures if (task := known_task(record.task)) else ()
    means = [mean for figure in figures if (mean := figure.mean) and mean.size]
    measured = {"value", *(name for mean in means for name in (mean.column, mean.size))}
    columns = record.items.columns
    details = {
        "plan": {key: known[key] for key in _DrawnPlan.__annotations__ if key in known},
        "subjects": record.settings.get("subjects") or [],
        "items": {name: columns[name] for name in columns if name in measured},
    }
    decode(_Details, details, "/".join(record.key))


def _moment(text: object) -> datetime:
    """The time of storing; runs of unknown age count as the oldest."""
    moment = datetime.fromisoformat(text) if isinstance(text, str) else datetime.min
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
