"""One benchmark from start to stored record: journal, timing, pairing, gate."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ewq.errors import EwqError, MeasurementError
from ewq.harness.handle import VariantHandle, report_out_of_memory
from ewq.harness.loading import plan_of
from ewq.harness.references import MEASURED_FOR_PAIRING, MISSING
from ewq.harness.session import Session
from ewq.instruments.processor_wait import ProcessorWait
from ewq.measurement import Doubt, DoubtKind, TaskResult
from ewq.record import Record
from ewq.tasks.table import TASKS, Pairing, Work
from ewq.variants import REFERENCE, GgufFile, Variant, find_variant

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from ewq.planning.plan import QuantizationPlan
    from ewq.record import RecordKey


class JournalLost(EwqError):
    """Results can no longer be kept: going on would only lose more."""


WAITING_TOLERATED = 0.1
"""Share of a timed task's processor time that other programs may take without a doubt."""
CRASHES_TOLERATED = 2
"""A process may have been killed, and the resumed one too; the third time the variant did it."""


def measure(
    session: Session, handle: VariantHandle, task: str, benchmark: BenchmarkFixture
) -> Record:
    """Measure ``task`` on a variant, or take it from the journal, and judge it.

    The record is on disk before this returns, whatever its verdict.

    Raises:
        JournalLost: the record cannot be kept.
        EwqError: the measurement could not be made.
    """
    key = (handle.name, task)
    benchmark.group = task
    stored = session.journal.completed.get(key)
    if stored:
        record = _replay(stored, benchmark)
    elif twin := session.twin_of(handle.variant, task):
        record = _measured_as(session, twin, handle, task, benchmark)
    else:
        record = _measure_now(session, handle, task, benchmark)
    if stored and handle.name == REFERENCE:
        _restore_reference(session, handle, record, stored["task_settings"])
    judged = session.gate.judge(record, session.placement.device)
    benchmark.extra_info["ewq"] = judged.to_json()
    session.records[key] = judged
    return judged


def _measured_as(
    session: Session,
    twin: Variant,
    handle: VariantHandle,
    task: str,
    benchmark: BenchmarkFixture,
) -> Record:
    """The record of another variant that is the same model, under this one's name."""
    payload = session.journal.completed[twin.name, task]
    plan = plan_of(handle.variant, session.subject)
    found = _replay(payload, benchmark)
    record = replace(
        found,
        variant=handle.name,
        plan=plan.digest if plan else None,
        notes=(*found.notes, f"measured once, as {twin.name}: both plans give the same model"),
        side={**found.side, **_plan_for_reports(task, plan)},
    )
    with _ending_the_run():
        session.journal.finished(record.key, {**payload, "record": record.to_json()})
    return record


def prepare_references(session: Session) -> None:
    """Recall or measure the reference for tasks that pair with it but do not select it.

    A reference that cannot be measured (FP16 may not fit where a plan does) takes the paired
    figures away, not the others; records say so.
    """
    own = {task for variant, task in session.selected if variant == REFERENCE}
    others = {task for variant, task in session.selected if variant != REFERENCE}
    if session.subject.is_dummy:
        others = {task for task in others if TASKS[task].on_random_weights}
    paired = {task for task in others - own if TASKS[task].pairing is not Pairing.NONE}
    missing = [task for task in sorted(paired) if not session.references.recall(task)]
    if not missing:
        return
    handle = session.handle(find_variant(REFERENCE))
    try:
        for task in missing:
            try:
                with report_out_of_memory(f"{REFERENCE}, {task}", session.placement.device):
                    _measure_for_pairing(session, handle, task)
            except EwqError as error:
                session.references.origin[task] = f"{MISSING}: {error}"
    finally:
        handle.close()


def _measure_for_pairing(session: Session, handle: VariantHandle, task: str) -> None:
    if TASKS[task].pairing is Pairing.DISTRIBUTIONS:
        session.distributions(handle)
        return
    work = TASKS[task].prepare(session.inputs(handle))
    for _ in range(work.warmup_rounds + work.rounds):
        work.once()
    session.references.remember(task, work.result(), MEASURED_FOR_PAIRING)


def _restore_reference(
    session: Session, handle: VariantHandle, record: Record, settings: Sequence[str]
) -> None:
    """After resuming: pair later variants with what was measured before the interruption.

    The reference's distributions are large and deterministic, so the journal does not keep them:
    they are recorded again if a variant still needs them.
    """
    task = record.task
    own = {name: record.settings[name] for name in settings}
    result = TaskResult(
        task, own, record.metrics, record.items, record.doubts, record.notes, record.side
    )
    session.references.remember(task, result)
    session.references.replayed.add(task)
    todo = [key for key in session.selected if key not in session.journal.completed]
    recorded = TASKS[task].pairing is Pairing.DISTRIBUTIONS
    if recorded and any(key[1] == task for key in todo):
        session.distributions(handle)


def _measure_now(
    session: Session, handle: VariantHandle, task: str, benchmark: BenchmarkFixture
) -> Record:
    key = (handle.name, task)
    _refuse_repeated_crash(session, key)
    with _ending_the_run():
        session.journal.started(key)
    try:
        with report_out_of_memory(f"{handle.name}, {task}", session.placement.device):
            work = TASKS[task].prepare(session.inputs(handle))
            with ProcessorWait() as waiting:
                _time(benchmark, work)
            result = work.result()
            if TASKS[task].in_rounds:
                result = replace(result, doubts=(*result.doubts, *_busy(waiting.share)))
            record = _record(session, handle, result)
    except BaseException as error:  # Ctrl-C too: it is no crash of the variant
        with _ending_the_run():
            session.journal.failed(key, str(error) or type(error).__name__)
        raise
    if handle.name == REFERENCE:
        session.references.remember(task, result)
    payload = {
        "record": record.to_json(),
        "durations_s": _durations(benchmark),
        "task_settings": sorted(result.settings),
    }
    with _ending_the_run():
        session.journal.finished(key, payload)
    return record


def _busy(share: float | None) -> tuple[Doubt, ...]:
    """Times that include waiting for other programs vary from run to run, not within one."""
    if share is None or share <= WAITING_TOLERATED:
        return ()
    text = f"other programs kept the processor busy: {share:.0%} of the time was spent waiting"
    return (Doubt(DoubtKind.BUSY, text, {"waited": share}),)


@contextmanager
def _ending_the_run() -> Iterator[None]:
    """A journal that cannot be written ends the run."""
    try:
        yield
    except EwqError as error:
        raise JournalLost(str(error)) from error


def _refuse_repeated_crash(session: Session, key: RecordKey) -> None:
    """Counted over all tasks of a variant: most crashes happen while loading."""
    variant, task = key
    times = session.journal.crashes[variant]
    if times > CRASHES_TOLERATED:
        raise MeasurementError(f"{variant} crashed the process {times} times; skipping {task}")


def _record(session: Session, handle: VariantHandle, result: TaskResult) -> Record:
    task = result.task
    reference = None if handle.name == REFERENCE else session.references.get(task)
    metrics = {**result.metrics, **TASKS[task].pair(result, reference)}
    TASKS[task].check(metrics)
    return Record(
        model=session.subject.label,
        fingerprint=session.subject.fingerprint,
        variant=handle.name,
        task=task,
        tier=session.options.tier,
        settings={
            "device": session.placement.device,
            **result.settings,
            **handle.model.settings,
            **_file_settings(handle),
        },
        metrics=metrics,
        items=result.items,
        plan=handle.plan.digest if handle.plan else None,
        doubts=(*result.doubts, *session.references.doubts(task, result)),
        notes=(*result.notes, *_model_notes(handle), *session.references.notes(task)),
        side={**result.side, **_plan_for_reports(task, handle.plan)},
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


def _plan_for_reports(task: str, plan: QuantizationPlan | None) -> dict[str, Any]:
    """What a report draws of the plan: stored once a variant, with the memory it explains."""
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
