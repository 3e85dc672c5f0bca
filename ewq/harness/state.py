"""What the plugin knows about one pytest run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ewq.files import sync_file
from ewq.harness.options import Options

if TYPE_CHECKING:
    from ewq.harness.session import Session
    from ewq.record import RecordKey

TASK_MARK = "task"
LONG_S = 60
"""A first variant that takes longer is worth a word on all."""


@dataclass(eq=False)
class PluginState:
    """One per pytest run, registered with the plugin manager."""

    options: Options
    selected: list[RecordKey] = field(default_factory=list)
    session: Session | None = None
    tests_failed: int = 0
    json_path: str = ""
    """Where ``--benchmark-json`` puts the run."""
    started_s: float = field(default_factory=time.time)
    _told_expectation: bool = False

    def retire_journal(self, config: pytest.Config) -> None:
        """After a complete run was stored there is nothing to resume."""
        from ewq.storage.journal import PREVIOUS_JOURNAL

        saving = getattr(config, "_benchmarksession", None)
        kept = saving and (saving.save or saving.autosave or saving.json)
        stored = self.stored_file(storage_folder(config))
        if self.session is not None and kept and stored and self.storage_json["complete"]:
            sync_file(stored)
            path = self.session.journal.path
            path.replace(path.with_name(PREVIOUS_JOURNAL))

    def stored_file(self, storage: Path) -> Path | None:
        """Where this session was stored; ``None`` where it was not."""
        if self.json_path:
            return Path(self.json_path)
        files = sorted(storage.glob("*/[0-9]*.json"), key=lambda path: path.stat().st_mtime_ns)
        fresh = [path for path in files if path.stat().st_mtime > self.started_s]
        return fresh[-1] if fresh else None

    @property
    def plan_in_words(self) -> str:
        """How much is going to be measured."""
        variants = list(dict.fromkeys(variant for variant, _ in self.selected))
        tasks = {task for _, task in self.selected}
        return (
            f"ewq: {len(self.selected)} measurements: {len(tasks)} tasks on {len(variants)} "
            f"variants ({', '.join(variants)})"
        )

    def expectation(self, variant: str) -> str:
        """How long all variants will take, after the first; empty where that is soon or known."""
        variants = {name for name, _ in self.selected}
        passed_s = time.time() - self.started_s
        if self._told_expectation or len(variants) < 2 or passed_s < LONG_S:
            return ""
        self._told_expectation = True
        one, whole = (f"{passed_s * n / 60:.0f}" for n in (1, len(variants)))
        return f"ewq: {variant} took {one} min; about {whole} for all {len(variants)}"

    @property
    def storage_json(self) -> dict[str, Any]:
        """What the stored run says about itself, beside its benchmarks."""
        session = self.session
        records = session.records if session else {}
        failures = session.failures if session else {}
        skipped = session.skipped if session else {}
        wanted = [key for key in self.selected if key not in skipped]
        return {
            "schema": 1,
            "complete": bool(records) and all(key in records for key in wanted),
            "selected": [list(key) for key in wanted],
            "skipped": {"/".join(key): reason for key, reason in skipped.items()},
            "failed": {"/".join(key): reason for key, reason in failures.items()},
            "verdicts": {"/".join(key): record.verdict for key, record in records.items()},
            "loads": dict(session.loads) if session else {},
            "settings": dict(session.identity.settings) if session else {},
            "exit_status": int(self.tests_failed > 0),
        }


def state_of(config: pytest.Config) -> PluginState:
    """The session's state."""
    found = config.pluginmanager.get_plugin("ewq-state")
    assert isinstance(found, PluginState)
    return found


def task_of(item: pytest.Item) -> str | None:
    """The task a benchmark test measures; ``None`` for other tests."""
    mark = item.get_closest_marker(TASK_MARK)
    return str(mark.args[0]) if mark else None


def key_of(item: pytest.Item) -> RecordKey | None:
    """``(variant, task)`` of a benchmark test."""
    task = task_of(item)
    callspec = getattr(item, "callspec", None)
    if task is None or callspec is None or "variant" not in callspec.params:
        return None
    return (str(callspec.params["variant"]), task)


def storage_folder(config: pytest.Config) -> Path:
    """Where pytest-benchmark stores runs; the default folder where it stores elsewhere."""
    session = getattr(config, "_benchmarksession", None)
    path = getattr(getattr(session, "storage", None), "path", None)
    return Path(path) if path else config.rootpath / ".benchmarks"


def why_ungated(config: pytest.Config) -> str:
    """A sentence where pytest-benchmark is switched off, and so nothing is stored or gated."""
    if config.getoption("benchmark_skip", False) or config.getoption("benchmark_disable", False):
        return "benchmarks are disabled: nothing is stored or gated"
    if getattr(getattr(config, "_benchmarksession", None), "disabled", False):
        return "pytest-benchmark is disabled under xdist: nothing is stored or gated"
    return ""


def save_by_default(config: pytest.Config) -> None:
    """Keep a run for which nobody said where: hours of measuring are not to be lost."""
    saving = getattr(config, "_benchmarksession", None)
    if saving is not None and not (saving.save or saving.autosave or saving.json):
        from pytest_benchmark.utils import get_tag

        saving.autosave = get_tag()  # type: ignore[no-untyped-call]


def hide_timing_tables(config: pytest.Config, others: Sequence[pytest.Item]) -> None:
    """Leave pytest-benchmark's tables out where all its benchmarks are ewq's.

    What they time is an evaluation, once; ``--benchmark-columns`` brings them back.
    """
    saving = getattr(config, "_benchmarksession", None)
    theirs = any("benchmark" in getattr(item, "fixturenames", ()) for item in others)
    if saving is not None and not theirs:
        saving.quiet = True


def stop_saving(config: pytest.Config) -> None:
    """Keep pytest-benchmark from writing a run where nothing can be written any more."""
    session = getattr(config, "_benchmarksession", None)
    if session is not None:
        session.save = session.autosave = session.json = None


def compared_files(config: pytest.Config) -> str:
    """The baseline that ``--benchmark-compare`` asks for: ``newest``, a run, or nothing."""
    asked = config.getoption("benchmark_compare", None)
    if not asked:
        return ""
    return "newest" if asked is True else str(asked)
