"""One benchmark from start to stored record: journal, timing, pairing, gate."""

import gc
import timeit
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from ewq.errors import EwqError, MeasurementError
from ewq.harness.handle import VariantHandle, report_out_of_memory
from ewq.harness.loading import content_of, plan_of
from ewq.harness.references import MEASURED_FOR_PAIRING, MISSING, References
from ewq.harness.session import Session
from ewq.instruments.processor_wait import ProcessorWait
from ewq.measurement import Doubt, DoubtKind, TaskResult
from ewq.planning.plan import QuantizationPlan
from ewq.record import Record, RecordKey, Verdict
from ewq.tasks.table import Kind, Pairing, figure_of, find_task
from ewq.variants import REFERENCE, Variant, find_variant

FIRST = "first_measurement"
"""Where a record keeps what it replaces."""
UNPAIRED = "unpaired"
"""Marks what the journal keeps of a worker, which did not know the reference's results."""


def measure(
    session: Session, handle: VariantHandle, task: str, benchmark: BenchmarkFixture
) -> Record:
    """Measure ``task``, or take it from the journal; judged, and kept or a JournalLost."""
    key = (handle.name, task)
    benchmark.group = task
    if error := session.failed_elsewhere.get(key):
        raise error
    stored = session.journal.completed.get(key)
    if stored and is_of(stored, handle.variant, session):
        record = _replay(session, stored, benchmark)
        if handle.name == REFERENCE:
            _restore_reference(session, handle, record, stored)
    elif twin := session.twin_of(handle.variant, task):
        record = _measured_as(session, twin, handle, task, benchmark)
    else:
        record = _measure_now(session, handle, key, benchmark)
    judged = session.gate.judge(record, session.placement.device)
    if session.options.confirm and _is_only_slow(judged):
        record = _measure_now(session, handle, key, benchmark, first=judged)
        judged = session.gate.judge(record, session.placement.device)
    benchmark.extra_info["ewq"] = judged.to_json()
    session.records[key] = judged
    return judged


def is_of(stored: Mapping[str, Any], variant: Variant, session: Session) -> bool:
    """Not where files have changed since: they are another variant under the same name."""
    settings: Mapping[str, Any] = stored["record"]["settings"]
    return content_of(variant, session.subject).items() <= settings.items()


def prepare_references(session: Session) -> None:
    """Recall or measure the reference for tasks that pair with it but do not select it.

    One that cannot be measured (FP16 may not fit where a plan does) takes paired figures away only.
    """
    paired = {
        task
        for _, task in session.selected
        if (REFERENCE, task) not in session.selected and find_task(task).pairing is not Pairing.NONE
        if find_task(task).on_random_weights or not session.subject.is_dummy
    }
    missing = [task for task in sorted(paired) if not session.references.recall(task)]
    if not missing:
        return
    with closing(session.handle(find_variant(REFERENCE))) as handle:
        for task in missing:
            try:
                with report_out_of_memory(f"{REFERENCE}, {task}", session.placement.device):
                    _measure_for_pairing(session, handle, task)
            except EwqError as error:
                session.references.origin[task] = f"{MISSING}: {error}"


def _measure_for_pairing(session: Session, handle: VariantHandle, task: str) -> None:
    if find_task(task).pairing is Pairing.DISTRIBUTIONS:
        session.distributions(handle, task)
        return
    work = find_task(task).prepare(session.inputs(handle))
    for _ in range(work.warmup_rounds + work.rounds):
        work.once()
    session.references.remember(task, work.result(), MEASURED_FOR_PAIRING)


def _restore_reference(
    session: Session, handle: VariantHandle, record: Record, stored: Mapping[str, Any]
) -> None:
    """After resuming: pair later variants with what was measured before the interruption.

    The journal does not keep the reference's distributions, which are large and deterministic.
    """
    task = record.task
    session.references.remember(task, result_of(record, stored["task_settings"]))
    session.references.replayed.add(task)
    known = {*session.journal.completed, *session.failed_elsewhere}
    todo = {key[1] for key in session.selected if key not in known}
    if find_task(task).pairing is Pairing.DISTRIBUTIONS and task in todo:
        session.distributions(handle, task)


def result_of(record: Record, settings: Sequence[str]) -> TaskResult:
    """The task's own result that a record was made of; ``settings`` are the names of its own."""
    own = {name: record.settings[name] for name in settings}
    return TaskResult(
        record.task, own, record.metrics, record.items, record.doubts, record.notes, record.side
    )


def _measured_as(
    session: Session, twin: Variant, handle: VariantHandle, task: str, benchmark: BenchmarkFixture
) -> Record:
    """The record of another variant that is the same model, under this one's name."""
    payload = session.journal.completed[twin.name, task]
    plan = plan_of(handle.variant, session.subject)
    found = _replay(session, payload, benchmark)
    record = replace(
        found,
        variant=handle.name,
        plan=plan.digest if plan else None,
        notes=(*found.notes, f"measured once, as {twin.name}: both plans give the same model"),
        side={**found.side, **_plan_for_reports(task, plan)},
    )
    paired = {"record": record.to_json(), UNPAIRED: False}
    session.journal.finished(record.key, payload | paired)
    return record


def _is_only_slow(record: Record) -> bool:
    """Whether a record fails by speeds alone, measured once: clocks vary, other figures repeat."""
    failed = [each.metric for each in record.reasons if each.verdict is Verdict.FAIL]
    figures = [figure_of(record.task, metric) for metric in failed]
    clocked = all(figure and figure.kind is Kind.CLOCK for figure in figures)
    return (
        bool(failed) and clocked and find_task(record.task).in_rounds and FIRST not in record.side
    )


def _second(session: Session, first: Record, record: Record) -> Record:
    """The record of the second measurement, which decides; it says what became of the first."""
    verdict = session.gate.judge(record, session.placement.device).verdict
    outcome = "confirmed" if verdict is Verdict.FAIL else "withdrawn"
    told = "; ".join(each.text for each in first.reasons if each.verdict is Verdict.FAIL)
    kept = {"outcome": outcome, "metrics": first.to_json()["metrics"]}
    return replace(
        record,
        notes=(*record.notes, f"measured again, {outcome}: {told}"),
        side={**record.side, FIRST: kept},
    )


def _measure_now(
    session: Session,
    handle: VariantHandle,
    key: RecordKey,
    benchmark: BenchmarkFixture,
    first: Record | None = None,
) -> Record:
    """Measure and keep the record; ``first`` is one whose gate failed and that is replaced."""
    variant, task = key
    times = session.journal.crashes[variant]
    if times > 2:
        # The process may have been killed, and the resumed one too; the third time the variant did
        # it. Counted over all tasks: most crashes happen while loading.
        raise MeasurementError(f"{variant} crashed the process {times} times; skipping {task}")
    session.journal.started(key)
    try:
        with report_out_of_memory(f"{variant}, {task}", session.placement.device):
            result, durations_s = _timed(session, handle, task, benchmark)
            record = _record(session, handle, result)
            record = _second(session, first, record) if first else record
    except BaseException as error:  # Ctrl-C too: it is no crash of the variant
        session.journal.failed(key, str(error) or type(error).__name__)
        raise
    if variant == REFERENCE:
        session.references.remember(task, result)
    session.journal.finished(key, _payload(record, result, durations_s))
    return record


def measure_unpaired(session: Session, handle: VariantHandle, task: str) -> dict[str, Any]:
    """What the journal keeps of a measurement that is paired when it is replayed."""
    with report_out_of_memory(f"{handle.name}, {task}", session.placement.device):
        result, durations_s = _timed(session, handle, task, None)
        payload = _payload(_record(session, handle, result), result, durations_s)
    return {**payload, UNPAIRED: True}


def _payload(record: Record, result: TaskResult, durations_s: list[float]) -> dict[str, Any]:
    own = sorted(result.settings)
    return {"record": record.to_json(), "durations_s": durations_s, "task_settings": own}


def _timed(
    session: Session, handle: VariantHandle, task: str, benchmark: BenchmarkFixture | None
) -> tuple[TaskResult, list[float]]:
    """A task's result, and the seconds of its rounds."""
    work = find_task(task).prepare(session.inputs(handle))
    with ProcessorWait() as waiting:
        durations_s = _time(benchmark, work.once, work.rounds, work.warmup_rounds)
    result, share = work.result(), waiting.share
    if not find_task(task).in_rounds or share is None or share <= 0.1:
        return result, durations_s
    # Waiting for other programs varies from run to run, not within one.
    text = f"other programs kept the processor busy: {share:.0%} of the time was spent waiting"
    doubt = Doubt(DoubtKind.BUSY, text, {"waited": share})
    return replace(result, doubts=(*result.doubts, doubt)), durations_s


def _record(session: Session, handle: VariantHandle, result: TaskResult) -> Record:
    task = result.task
    record = Record(
        model=session.subject.label,
        fingerprint=session.subject.fingerprint,
        variant=handle.name,
        task=task,
        tier=session.options.tier,
        settings={
            "device": session.placement.device,
            **result.settings,
            **handle.model.settings,
            **content_of(handle.variant, session.subject),
        },
        metrics=result.metrics,
        items=result.items,
        plan=handle.plan.digest if handle.plan else None,
        doubts=result.doubts,
        notes=(*result.notes, *handle.notes),
        side={**result.side, **_plan_for_reports(task, handle.plan)},
    )
    return pair(record, result, session.references)


def pair(record: Record, result: TaskResult, references: References) -> Record:
    """The record with what its result gives against the reference's, and what is doubtful of it."""
    task, origin = record.task, references.origin.get(record.task)
    reference = None if record.variant == REFERENCE else references.get(task)
    metrics = {**record.metrics, **find_task(task).pair(result, reference)}
    find_task(task).check(metrics, record.items)
    return replace(
        record,
        metrics=metrics,
        doubts=(*record.doubts, *references.doubts(task, result)),
        notes=(*record.notes, *([origin] if origin else [])),
    )


def _plan_for_reports(task: str, plan: QuantizationPlan | None) -> dict[str, Any]:
    """What a report draws of the plan: stored once a variant, with the memory it explains."""
    if task != "memory" or plan is None:
        return {}
    drawn = {
        "rule": dict(plan.rule),
        "scorer": plan.scorer,
        "mean": plan.mean,
        "std": plan.std,
        "thresholds": dict(plan.thresholds),
        "blocks": [[b.index, b.entropy, b.precision and b.precision.value] for b in plan.blocks],
        "types": dict(Counter(plan.types.values()).most_common()),
        "expected_kld": plan.expected_kld.value if plan.expected_kld else None,
    }
    return {"plan": drawn}


def _replay(session: Session, stored: Mapping[str, Any], benchmark: BenchmarkFixture) -> Record:
    """Hand another process's measurement to pytest-benchmark as if made now."""
    durations_s: list[float] = stored["durations_s"]
    _time(benchmark, lambda: None, rounds=max(1, len(durations_s)))
    if benchmark.stats is not None and durations_s:
        benchmark.stats.stats.data[:] = durations_s
    record = Record.from_json(stored["record"])
    if not stored.get(UNPAIRED):
        return record
    return pair(record, result_of(record, stored["task_settings"]), session.references)


def _time(
    benchmark: BenchmarkFixture | None,
    once: Callable[[], object],
    rounds: int,
    warmup_rounds: int = 0,
) -> list[float]:
    """Seconds of each round; none where pytest-benchmark is disabled.

    Never ``benchmark(f)``: it would calibrate, and so run an hour's evaluation seven times.
    It times once in a test; what is timed after that replaces the first durations.
    """
    measured = None if benchmark is None else benchmark.stats
    if benchmark is None or measured is not None:
        # timeit would keep garbage for as long as an evaluation takes.
        times = timeit.repeat(once, gc.enable, number=1, repeat=warmup_rounds + rounds)
        if measured is not None:
            measured.stats.data[:] = times[warmup_rounds:]
        return times[warmup_rounds:]
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        once, rounds=rounds, warmup_rounds=warmup_rounds, iterations=1
    )
    return [] if benchmark.stats is None else list(benchmark.stats.stats.data)
