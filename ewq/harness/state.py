"""What the plugin knows about one pytest run: what it asks of pytest-benchmark, what it opens."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ewq.errors import InputError
from ewq.files import cached_kinds, sync_file
from ewq.harness.options import Options
from ewq.progress import Progress
from ewq.record import RecordKey
from ewq.storage.environment import RunIdentity
from ewq.storage.journal import JOURNAL, PREVIOUS_JOURNAL, Journal
from ewq.tasks.table import OF_FAMILY
from ewq.tasks.tiers import tier_sizes
from ewq.variants import find_variant

if TYPE_CHECKING:
    from ewq.harness.handle import LoadVariant
    from ewq.harness.session import Gate, Session
    from ewq.harness.subject import Subject

TASK_MARK, MEMBER = "task", "member"


@dataclass(eq=False)
class PluginState:
    """One per pytest run, registered with the plugin manager."""

    config: pytest.Config
    options: Options
    selected: list[RecordKey] = field(default_factory=list)
    benchmarks: Path = Path()
    """The folder of the first benchmark."""
    session: Session | None = None
    tests_failed: int = 0
    cached: list[str] = field(default_factory=cached_kinds)
    """Kinds of caches there were before the run."""
    started_s: float = field(default_factory=time.time)
    _told_expectation: bool = False

    @property
    def storage(self) -> Path:
        """Where pytest-benchmark stores runs; the default folder where it stores elsewhere."""
        path = getattr(getattr(self._benchmarks, "storage", None), "path", None)
        return Path(path) if path else self.config.rootpath / ".benchmarks"

    @property
    def stored_file(self) -> Path | None:
        """Where this session was stored; ``None`` where it was not."""
        if asked := self.config.getoption("benchmark_json", None):
            return Path(str(asked))
        stored_s = {path: path.stat().st_mtime for path in self.storage.glob("*/[0-9]*.json")}
        newest = max(stored_s, key=stored_s.__getitem__, default=None)
        return newest if newest and stored_s[newest] > self.started_s else None

    @property
    def ungated(self) -> str:
        """A sentence where pytest-benchmark is switched off, and so nothing is stored or gated."""
        asked = self.config.getoption
        if asked("benchmark_skip", False) or asked("benchmark_disable", False):
            return "benchmarks are disabled: nothing is stored or gated"
        if getattr(self._benchmarks, "disabled", False):
            return "pytest-benchmark is disabled under xdist: nothing is stored or gated"
        return ""

    @property
    def baseline_request(self) -> str:
        """What to compare with, also by ``--benchmark-compare``: ``newest``, a run, or nothing."""
        asked = self.config.getoption("benchmark_compare", None)
        return self.options.baseline or ("newest" if asked is True else str(asked or ""))

    @property
    def _benchmarks(self) -> Any:
        """pytest-benchmark's session; ``None`` where that plugin is switched off."""
        return getattr(self.config, "_benchmarksession", None)

    @property
    def _is_saving(self) -> bool:
        saving = self._benchmarks
        return bool(saving and (saving.save or saving.autosave or saving.json))

    def save_by_default(self) -> None:
        """Keep a run for which nobody said where: hours of measuring are not to be lost."""
        if self._benchmarks and not self._is_saving:
            from pytest_benchmark.utils import get_tag

            self._benchmarks.autosave = get_tag()  # type: ignore[no-untyped-call]

    def stop_saving(self) -> None:
        """Keep pytest-benchmark from writing a run where nothing can be written any more."""
        if saving := self._benchmarks:
            saving.save = saving.autosave = saving.json = None

    def drop_interrupted(self) -> None:
        """Leave out the benchmark that Ctrl-C cut off: saving one without a round fails."""
        if saving := self._benchmarks:
            saving.benchmarks[:] = [each for each in saving.benchmarks if each.stats.data]

    def hide_timing_tables(self, others: Sequence[pytest.Item]) -> None:
        """Leave pytest-benchmark's tables out where all its benchmarks are ewq's."""
        theirs = any("benchmark" in getattr(item, "fixturenames", ()) for item in others)
        if self._benchmarks and not theirs:
            self._benchmarks.quiet = True

    def retire_journal(self) -> None:
        """After a complete run was stored there is nothing to resume."""
        stored = self.stored_file
        if self.session and stored and self._is_saving and self.storage_json["complete"]:
            sync_file(stored)
            path = self.session.journal.path
            path.replace(path.with_name(PREVIOUS_JOURNAL))

    def open_session(self, subject: Subject, loader: LoadVariant, progress: Progress) -> Session:
        """Set up the run; an EwqError, before a model loads, for whatever makes it pointless."""
        from ewq.harness.session import RunData, Session, check_variants, identify
        from ewq.harness.subject import find_placement

        asked, ungated, keys = self.options, self.ungated, tuple(self.selected)
        if ungated and (asked.require_baseline or self.baseline_request):
            raise InputError(f"cannot gate against a baseline: {ungated}")
        if ungated and asked.workers:
            raise InputError(f"--ewq-workers: {ungated}")
        if ungated and asked.resume:
            raise InputError(f"nothing to resume: {ungated}")
        placement = find_placement(asked.device, asked.dtype, asked.decode, subject.checkpoint)
        data = RunData(asked, tier_sizes(asked.tier, placement.device), progress)
        check_variants(asked, subject, data, keys)
        identity = identify(subject, placement, data, keys)
        gate = self._gate(identity)
        # An interrupted run's measurements stay until the next run, whatever is asked for now.
        kept = Journal.resume if asked.resume else Journal.create
        path = self.storage / JOURNAL
        journal = Journal.unkept(identity) if ungated else kept(path, identity)
        self.session = Session(
            asked, subject, placement, data, identity, gate, journal, progress, loader, keys
        )
        return self.session

    def _gate(self, identity: RunIdentity) -> Gate:
        """By the thresholds named, or those of the project, or those beside the benchmarks."""
        from ewq.gating.compare import NEWEST, Choice, Wanted, find_baseline
        from ewq.gating.thresholds import BUILT_IN, load_thresholds
        from ewq.harness.session import Gate

        root, asked = self.config.rootpath, self.options
        files = (folder / "thresholds.toml" for folder in (root / "benchmarks", self.benchmarks))
        thresholds, choice = BUILT_IN, Choice(None)
        if path := asked.thresholds or next((file for file in files if file.is_file()), None):
            thresholds = load_thresholds(path, [variant.name for variant in asked.variants])
        if request := self.baseline_request or (NEWEST if asked.require_baseline else ""):
            wanted = Wanted(identity, tuple(self.selected))
            choice = find_baseline(request, self.storage, wanted, root)
        if asked.require_baseline and choice.run is None:
            raise InputError(f"no baseline to gate against: {'; '.join(choice.reasons)}")
        return Gate(thresholds, choice.run, choice.reasons, asked.require_baseline, self.ungated)

    @property
    def plan_in_words(self) -> str:
        """How much is going to be measured."""
        variants, tasks = (dict.fromkeys(key[part] for key in self.selected) for part in (0, 1))
        asked = f"{len(tasks)} tasks on {len(variants)} variants ({', '.join(variants)})"
        return f"ewq: {len(self.selected)} measurements: {asked}"

    @property
    def absent_variants(self) -> Iterator[str]:
        """A line for each variant that ``-k`` names and this run does not have."""
        here = [variant.name for variant in self.options.variants]
        words = re.findall(r"[\w.+-]+", self.config.getoption("keyword") or "")
        for word in (word for word in words if not any(word in name for name in here)):
            with suppress(InputError):
                name = find_variant(word).name
                option = f"variants fp16,{name}"
                if name.startswith("ewq-") and not self.options.variants_named:
                    option = f"factors {name.removeprefix('ewq-')}"
                yield f"ewq: -k {word} selects nothing: to measure it, add --ewq-{option}"

    def expectation(self, variant: str) -> str:
        """How long all variants will take, after the first; empty where that is soon or known."""
        variants = {name for name, _ in self.selected}
        passed_s = time.time() - self.started_s
        if self._told_expectation or len(variants) < 2 or passed_s < 60:
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
        return {
            "schema": 1,
            "complete": bool(session.records) and session.records.keys() >= {*wanted},
            "selected": [list(key) for key in wanted],
            "skipped": {"/".join(key): reason for key, reason in session.skipped.items()},
            "failed": {"/".join(key): reason for key, reason in session.failures.items()},
            "verdicts": {"/".join(key): each.verdict for key, each in session.records.items()},
            "loads": dict(session.loads),
            "settings": dict(session.identity.settings),
            "exit_status": int(self.tests_failed > 0),
        }


def state_of(config: pytest.Config) -> PluginState:
    """The session's state."""
    found = config.pluginmanager.get_plugin("ewq-state")
    assert isinstance(found, PluginState)
    return found


def task_of(item: pytest.Item) -> str | None:
    """The task a benchmark test measures, of a family its ``member``; ``None`` for other tests."""
    mark, callspec = item.get_closest_marker(TASK_MARK), getattr(item, "callspec", None)
    member = callspec.params.get(MEMBER) if callspec else None
    return None if mark is None else OF_FAMILY.join(filter(None, (mark.args[0], member)))


def key_of(item: pytest.Item) -> RecordKey | None:
    """``(variant, task)`` of a benchmark test."""
    task, callspec = task_of(item), getattr(item, "callspec", None)
    if task is None or callspec is None or "variant" not in callspec.params:
        return None
    return (str(callspec.params["variant"]), task)
