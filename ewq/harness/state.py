"""What the plugin knows about one pytest run, and asks of pytest-benchmark's session."""

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

        stored = self.stored_file(storage_folder(config))
        if self.session and stored and _is_saving(config) and self.storage_json["complete"]:
            sync_file(stored)
            path = self.session.journal.path
            path.replace(path.with_name(PREVIOUS_JOURNAL))

    def stored_file(self, storage: Path) -> Path | None:
        """Where this session was stored; ``None`` where it was not."""
        if self.json_path:
            return Path(self.json_path)
        stored_s = {path: path.stat().st_mtime for path in storage.glob("*/[0-9]*.json")}
        newest = max(stored_s, key=stored_s.__getitem__, default=None)
        return newest if newest and stored_s[newest] > self.started_s else None

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
        assert session is not None
        wanted = [key for key in self.selected if key not in session.skipped]
        complete = bool(session.records) and all(key in session.records for key in wanted)
        return {
            "schema": 1,
            "complete": complete,
            "selected": [list(key) for key in wanted],
            "skipped": _named(session.skipped),
            "failed": _named(session.failures),
            "verdicts": _named({key: record.verdict for key, record in session.records.items()}),
            "loads": dict(session.loads),
            "settings": dict(session.identity.settings),
            "exit_status": int(self.tests_failed > 0),
        }


def _named(table: dict[RecordKey, Any]) -> dict[str, Any]:
    return {"/".join(key): value for key, value in table.items()}


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


def _benchmarks(config: pytest.Config) -> Any:
    """pytest-benchmark's session; ``None`` where that plugin is switched off."""
    return getattr(config, "_benchmarksession", None)


def _is_saving(config: pytest.Config) -> bool:
    session = _benchmarks(config)
    return bool(session and (session.save or session.autosave or session.json))


def storage_folder(config: pytest.Config) -> Path:
    """Where pytest-benchmark stores runs; the default folder where it stores elsewhere."""
    path = getattr(getattr(_benchmarks(config), "storage", None), "path", None)
    return Path(path) if path else config.rootpath / ".benchmarks"


def why_ungated(config: pytest.Config) -> str:
    """A sentence where pytest-benchmark is switched off, and so nothing is stored or gated."""
    if config.getoption("benchmark_skip", False) or config.getoption("benchmark_disable", False):
        return "benchmarks are disabled: nothing is stored or gated"
    if getattr(_benchmarks(config), "disabled", False):
        return "pytest-benchmark is disabled under xdist: nothing is stored or gated"
    return ""


def save_by_default(config: pytest.Config) -> None:
    """Keep a run for which nobody said where: hours of measuring are not to be lost."""
    session = _benchmarks(config)
    if session and not _is_saving(config):
        from pytest_benchmark.utils import get_tag

        session.autosave = get_tag()  # type: ignore[no-untyped-call]


def hide_timing_tables(config: pytest.Config, others: Sequence[pytest.Item]) -> None:
    """Leave pytest-benchmark's tables out where all its benchmarks are ewq's.

    What they time is an evaluation, once; ``--benchmark-columns`` brings them back.
    """
    session = _benchmarks(config)
    theirs = any("benchmark" in getattr(item, "fixturenames", ()) for item in others)
    if session and not theirs:
        session.quiet = True


def stop_saving(config: pytest.Config) -> None:
    """Keep pytest-benchmark from writing a run where nothing can be written any more."""
    if session := _benchmarks(config):
        session.save = session.autosave = session.json = None


def compared_files(config: pytest.Config) -> str:
    """The baseline that ``--benchmark-compare`` asks for: ``newest``, a run, or nothing."""
    asked = config.getoption("benchmark_compare", None)
    return "newest" if asked is True else str(asked or "")
