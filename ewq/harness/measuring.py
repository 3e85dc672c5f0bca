"""One benchmark from start to stored record: journal, timing, pairing, gate."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ewq.errors import EwqError, MeasurementError
from ewq.gating.gates import judge
from ewq.harness.handle import VariantHandle
from ewq.harness.out_of_memory import reported
from ewq.measurement import TaskResult
from ewq.record import Reason, Record, Verdict
from ewq.tasks.table import TASKS, Work
from ewq.variants import REFERENCE, GgufFile

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from ewq.harness.bench import Bench, Key


class JournalLost(EwqError):
    """Results can no longer be kept: going on would only lose more."""


CRASHES_TOLERATED = 2
"""A process may have been killed, and the resumed one too; the third time the variant did it."""


def measure(bench: Bench, handle: VariantHandle, task: str, benchmark: BenchmarkFixture) -> Record:
    """Measure ``task`` on a variant, or take it from the journal, and judge it.

    The record is on disk before this returns, whatever its verdict.

    Raises:
        EwqError: the measurement could not be made.
    """
    key = (handle.name, task)
    benchmark.group = task
    stored = bench.journal.completed.get(key)
    record = _replay(stored, benchmark) if stored else _fresh(bench, handle, task, benchmark)
    if handle.name == REFERENCE:
        if stored:
            bench.restore_distributions(task, handle)
            bench.references.replayed.add(task)
        bench.references.remember(task, _as_result(record, bench.placement.settings))
    judged = _judge(bench, record)
    benchmark.extra_info["ewq"] = judged.to_json()
    bench.records[key] = judged
    return judged


def _fresh(bench: Bench, handle: VariantHandle, task: str, benchmark: BenchmarkFixture) -> Record:
    key = (handle.name, task)
    _refuse_repeated_crash(bench, key)
    _kept(lambda: bench.journal.started(key))
    try:
        with reported(f"{handle.name}, {task}", bench.placement.device):
            work = TASKS[task].prepare(bench.inputs(handle))
            _time(benchmark, work)
            record = _record(bench, handle, task, work)
    except BaseException as error:  # Ctrl-C too: it is no crash of the variant
        reason = str(error) or type(error).__name__
        _kept(lambda: bench.journal.failed(key, reason))
        raise
    payload = {
        "record": record.to_json(),
        "durations_s": _durations(benchmark),
        "data": bench.data.digest(task),
    }
    _kept(lambda: bench.journal.finished(key, payload))
    return record


def _kept(write: Callable[[], None]) -> None:
    """Write to the journal; a run that cannot keep its results must end."""
    try:
        write()
    except EwqError as error:
        raise JournalLost(str(error)) from error


def _refuse_repeated_crash(bench: Bench, key: Key) -> None:
    """Counted over all tasks of a variant: most crashes happen while loading."""
    times = bench.past_crashes[key[0]]
    if times > CRASHES_TOLERATED:
        raise MeasurementError(
            f"{key[0]} took the whole process down {times} times; {key[1]} is not tried again"
        )


def _record(bench: Bench, handle: VariantHandle, task: str, work: Work) -> Record:
    result = work.result()
    reference = None if handle.name == REFERENCE else bench.references.get(task)
    metrics = {**result.metrics, **TASKS[task].pair(result, reference)}
    TASKS[task].check(metrics)
    return Record(
        model=bench.subject.label,
        fingerprint=bench.subject.fingerprint,
        variant=handle.name,
        task=task,
        tier=bench.options.tier,
        settings={**bench.placement.settings, **_file_settings(handle), **result.settings},
        metrics=metrics,
        items=result.items,
        plan=handle.plan.digest if handle.plan else None,
        doubts=(*result.doubts, *bench.references.doubts(task)),
        notes=(*result.notes, *_model_notes(handle), *bench.references.note(task)),
        side={**result.side, **_plan_for_reports(task, handle)},
    )


def _file_settings(handle: VariantHandle) -> dict[str, Any]:
    """A GGUF given by path is known by its content: its name says nothing."""
    recipe = handle.variant.recipe
    if not isinstance(recipe, GgufFile):
        return {}
    with recipe.path.open("rb") as file:
        return {"gguf_sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _model_notes(handle: VariantHandle) -> tuple[str, ...]:
    """What the engine has to say, such as a faster decode loop it could not use; and the export."""
    return (*getattr(handle.model, "notes", ()), *handle.load().notes())


def _plan_for_reports(task: str, handle: VariantHandle) -> dict[str, Any]:
    """What a report draws of the plan: stored once a variant, with the memory it explains."""
    plan = handle.plan
    if task != "memory" or plan is None:
        return {}
    blocks = [[b.index, b.entropy, b.precision and b.precision.value] for b in plan.blocks]
    drawn = {
        "rule": dict(plan.rule),
        "scorer": plan.scorer,
        "mean": plan.mean,
        "std": plan.std,
        "thresholds": dict(plan.thresholds),
        "blocks": blocks,
        "types": dict(Counter(plan.types.values()).most_common()),
        "expected_kld": plan.expected_kld.value if plan.expected_kld else None,
    }
    return {"plan": drawn}


def _judge(bench: Bench, record: Record) -> Record:
    if bench.ungated:
        return record.judged(Verdict.NO_BASELINE, (Reason(Verdict.NO_BASELINE, bench.ungated),))
    baseline, missing = None, bench.baseline_reasons
    if bench.baseline:
        baseline = bench.baseline.records.get(record.key)
        gap = f"the baseline {bench.baseline.name} does not cover {'/'.join(record.key)}"
        missing = () if baseline else (gap,)
    judgement = judge(
        record,
        bench.thresholds.for_(record.variant, record.task),
        baseline=baseline,
        tolerances=bench.thresholds.tolerances_for(record.task, bench.placement.device),
        missing_baseline=missing,
    )
    verdict = judgement.verdict
    if bench.options.require_baseline and verdict is Verdict.NO_BASELINE:
        verdict = Verdict.FAIL
    return record.judged(verdict, judgement.reasons)


def _replay(stored: Mapping[str, Any], benchmark: BenchmarkFixture) -> Record:
    """Hand an earlier process's measurement to pytest-benchmark as if made now."""
    durations: list[float] = stored["durations_s"]
    _time(benchmark, Work(lambda: None, _nothing, rounds=max(1, len(durations))))
    if benchmark.stats is not None and durations:
        benchmark.stats.stats.data[:] = durations
    return Record.from_json(stored["record"])


def _time(benchmark: BenchmarkFixture, work: Work) -> None:
    """Never ``benchmark(f)``: it would calibrate, and so run an hour's evaluation seven times."""
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        work.once, rounds=work.rounds, warmup_rounds=work.warmup_rounds, iterations=1
    )


def _nothing() -> TaskResult:
    raise MeasurementError("a replayed measurement has its record in the journal")


def _durations(benchmark: BenchmarkFixture) -> list[float]:
    """Seconds of each round; empty under ``--benchmark-disable``."""
    return [] if benchmark.stats is None else list(benchmark.stats.stats.data)


def _as_result(record: Record, shared: Mapping[str, Any]) -> TaskResult:
    """The task's own result again, without the settings that every record has."""
    settings = {key: value for key, value in record.settings.items() if key not in shared}
    return TaskResult(
        record.task,
        settings,
        record.metrics,
        record.items,
        record.doubts,
        record.notes,
        record.side,
    )
