"""Whole variants measured by worker processes on Ray; what they find is journaled here first.

The tests replay it afterwards as a resumed run does, and measure what no worker measured.
"""

import math
import os
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ewq.errors import EwqError, InputError, MeasurementError
from ewq.harness.handle import OutOfMemory
from ewq.harness.loading import weights_bytes
from ewq.harness.measuring import UNPAIRED, is_of, pair, result_of
from ewq.harness.references import MISSING, References
from ewq.harness.session import Session
from ewq.harness.subject import Subject
from ewq.harness.terminal import Draw
from ewq.harness.worker import Worker
from ewq.instruments.gpu import free_memory, gpus_of
from ewq.instruments.processor_wait import usable_cores
from ewq.measurement import Doubt, DoubtKind
from ewq.planning.sizes import RUNTIME_BYTES
from ewq.progress import NO_PROGRESS, step
from ewq.record import Record, RecordKey
from ewq.storage.environment import RunIdentity, changed_settings
from ewq.tasks.table import Pairing, find_task
from ewq.variants import REFERENCE, Variant, find_variant

RECORDING = "reference log-probabilities"
"""What FP16's worker does for all others, among its tasks."""
TRIES = 2
"""Workers that a variant may take down, or run out of memory on."""


@dataclass(eq=False)
class Job:
    """A variant with what is left to measure of it."""

    variant: Variant
    todo: list[str]
    cards: int
    tries: int = 0

    @property
    def is_reference(self) -> bool:
        """Whether others are paired with it."""
        return self.variant.name == REFERENCE


@dataclass(eq=False)
class Seat:
    """A worker process and what it was told to do."""

    actor: Any
    job: Job
    promises: dict[Any, RecordKey]
    """Ray's, in order, for the measurements it was asked for; the first, for opening the run."""
    kind: str = ""
    """Of its cards; empty until it has opened the run."""


def measure_elsewhere(session: Session, show: Draw | None, tell: Callable[[str], None]) -> None:
    """Let workers measure what the session selects, as ``--ewq-workers`` says.

    CPU workers share cores: speeds and memory are left to the tests, which are alone then.

    Raises:
        EwqError: no cluster, or a worker that has other code, libraries, model or data.
    """
    asked = session.options.workers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # meant for developers
        import ray

        where: dict[str, Any] = {"address": asked}
        if asked.isdigit():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            where = {"address": "local", "num_cpus": max(usable_cores(), int(asked))}
        try:
            ray.init(**where, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise EwqError(f"--ewq-workers {asked}: cannot start or join Ray: {error}") from error
        try:
            Fleet(session, ray, show, tell).run()
        finally:
            ray.shutdown()


class Fleet:
    """Jobs, and the workers that they are given to."""

    def __init__(
        self, session: Session, ray: Any, show: Draw | None, tell: Callable[[str], None]
    ) -> None:
        self._session, self._ray, self._show, self._tell = session, ray, show, tell
        cards = gpus_of(session.placement.device)
        self._card_bytes = free_memory(cards[0])[1] if cards else None
        self._local = int(session.options.workers) if session.options.workers.isdigit() else 0
        self._seats: list[Seat] = []
        self._recorded: Any = ray.put(session.recorded) if session.recorded else None
        """Ray's promise of FP16's log-probabilities, or why there are none."""
        self._speeds = defaultdict[str, References](lambda: References(session.identity))
        """FP16's speeds by kind of card."""
        self._queue = deque(self._jobs())

    def run(self) -> None:
        """Until nothing is left to measure."""
        total = sum(len(job.todo) for job in self._queue)
        progress = NO_PROGRESS if self._show else self._session.progress
        with step(progress, "workers", total, "measurements") as self._advance:
            while self._queue or self._seats:
                self._start_workers()
                busy = {promise: seat for seat in self._seats for promise in seat.promises}
                for promise in self._ray.wait([*busy], timeout=1)[0] if busy else ():
                    self._receive(busy[promise], promise)
                if not busy:
                    time.sleep(0.1)
                if self._show:
                    asked = [[*seat.promises.values()] for seat in self._seats]
                    self._show([f"{' '.join(now)}, {len(more)} more" for now, *more in asked])

    def _jobs(self) -> Iterator[Job]:
        """The reference first; a model that two variants share is measured once."""
        session, wanted = self._session, defaultdict[str, list[str]](list)
        known: set[RecordKey] = set()
        for key in session.selected:
            (name, task), stored = key, session.journal.completed.get(key)
            variant = session.options.variant(name)
            is_known = stored is not None and is_of(stored, variant, session)
            if stored and is_known and name == REFERENCE:
                found = result_of(Record.from_json(stored["record"]), stored["task_settings"])
                session.references.remember(task, found)
            alone = (
                self._card_bytes is None if find_task(task).is_clocked else session.subject.is_dummy
            )
            with suppress(EwqError):  # it is told when the variant is loaded
                alone = alone or session.twin_of(variant, task, known) is not None
            if not (alone or is_known or session.journal.crashes[name] > 2):
                wanted[name].append(task)
            known.add(key)
        paired = {task for name in wanted if name != REFERENCE for task in wanted[name]}
        needed = any(find_task(task).pairing is Pairing.DISTRIBUTIONS for task in paired)
        if needed and not session.recorded:
            wanted[REFERENCE].insert(0, RECORDING)
        for name in sorted(wanted, key=lambda name: name != REFERENCE):
            variant = session.options.variant(name)
            todo = sorted(wanted[name], key=lambda t: t == RECORDING or not find_task(t).is_clocked)
            yield Job(variant, todo, self._cards_for(variant))

    def _cards_for(self, variant: Variant) -> int:
        """Cards that hold the weights, a tenth for cache and activations, and the libraries."""
        session = self._session
        if self._card_bytes is None:
            return 0
        with suppress(EwqError):  # it is told when the variant is loaded
            weights = weights_bytes(variant, session.subject, session.placement)
            return math.ceil((1.1 * weights + RUNTIME_BYTES) / self._card_bytes)
        return 1

    def _start_workers(self) -> None:
        """One for each job that can begin, as far as there is room."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        feasible = [job for job in self._queue if self._feasible(job)]
        self._queue = deque(job for job in self._queue if job.todo)
        for job in feasible:
            sizes = [int(node.get("GPU" if job.cards else "CPU", 0)) for node in nodes]
            # On the largest node it may still fit, and says so where it does not.
            job.cards = min(job.cards, max(sizes, default=0) or job.cards)
            room = sum(sizes) if job.cards else self._local or sum(map(bool, sizes))
            taken = sum(max(1, seat.job.cards) for seat in self._seats)
            if taken + max(1, job.cards) <= min(room, self._local or room):
                shares = [n["CPU"] // max(1, n.get("GPU", 0)) for n in nodes if "CPU" in n]
                share = usable_cores() // self._local if self._local else int(min(shares))
                self._start(job, max(1, share) * max(1, job.cards))
            elif not room and not self._seats:
                what = "card" if job.cards else "processor"
                raise EwqError(f"the cluster has no {what} for {job.variant.name}; resume later")

    def _start(self, job: Job, cores: int) -> None:
        """A worker with so many threads."""
        session = self._session
        own = None if isinstance(session.subject, Subject) else session.subject
        told = session.options, own, session.placement, session.loader, session.selected
        remote = self._ray.remote(num_cpus=cores, num_gpus=job.cards)(Worker)
        actor = remote.remote()
        opening = {actor.open.remote(str(Path.cwd()), *told): (job.variant.name, "starting")}
        self._queue.remove(job)
        self._seats.append(Seat(actor, job, opening))

    def _feasible(self, job: Job) -> list[str]:
        """What can be measured now: at first FP16 does what others wait for, they what does not."""
        if self._is_early:
            is_first = job.is_reference
            return [t for t in job.todo if _is_waited_for(t, is_first) == is_first]
        at_chance, name = self._session.at_chance, job.variant.name
        job.todo = [t for t in job.todo if t == RECORDING or not at_chance(name, t)]
        return job.todo

    @property
    def _is_early(self) -> bool:
        jobs = [*self._queue, *(seat.job for seat in self._seats)]
        todo = (task for job in jobs if job.is_reference for task in job.todo)
        return any(_is_waited_for(task, is_reference=True) for task in todo)

    def _instruct(self, seat: Seat) -> None:
        """Ask for all that can be measured of the job; without any, end the worker."""
        job, measure, subject = seat.job, seat.actor.measure, self._session.subject
        plan = subject.plans.get(job.variant.name) if isinstance(subject, Subject) else None
        tasks, known = self._feasible(job), self._speeds[seat.kind]
        for task in tasks:
            if task == RECORDING:
                record = seat.actor.record.options(num_returns=2)
                promise, self._recorded = record.remote(job.variant)
            else:
                is_alone = job.is_reference or not find_task(task).same_session
                if not (is_alone or known.get(task) or known.origin.get(task)):
                    other = measure.remote(find_variant(REFERENCE), None, task, None)
                    seat.promises[other] = (REFERENCE, task)
                needs = find_task(task).pairing is Pairing.DISTRIBUTIONS and not job.is_reference
                promise = measure.remote(job.variant, plan, task, self._recorded if needs else None)
            seat.promises[promise] = (job.variant.name, task)
        if not tasks:
            self._end(seat)

    def _end(self, seat: Seat) -> None:
        self._ray.kill(seat.actor)
        self._seats.remove(seat)

    def _receive(self, seat: Seat, promise: Any) -> None:
        errors, (name, task), is_lost = self._ray.exceptions, seat.promises[promise], False
        try:
            found = self._ray.get(promise)
        except (errors.RayActorError, errors.OutOfMemoryError) as error:
            self._bury(seat, str(error).strip().splitlines()[-1])
            return
        except errors.ObjectLostError:  # with the node that had recorded it
            if not self._is_early:
                reference = find_variant(REFERENCE)
                self._queue.appendleft(Job(reference, [RECORDING], self._cards_for(reference)))
            is_lost, found = True, None
        except errors.RayTaskError as error:
            found = error.cause
            if not isinstance(found, EwqError):
                found = MeasurementError(f"{name}, {task}: {found!r}")
        del seat.promises[promise]
        if not seat.kind:
            self._welcome(seat, found)
        elif isinstance(found, EwqError):
            self._fail(seat, name, task, found)
        elif not is_lost:
            self._keep(seat, name, task, found)
        if not seat.promises and seat in self._seats:
            self._go_on(seat)

    def _go_on(self, seat: Seat) -> None:
        """With what has become feasible of the job meanwhile, or with another of its size."""
        if not self._feasible(seat.job):
            if seat.job.todo:
                self._queue.append(seat.job)
            others = (job for job in self._queue if job.cards == seat.job.cards)
            if other := next(filter(self._feasible, others), None):
                self._queue.remove(other)
                seat.job = other
        self._instruct(seat)

    def _welcome(self, seat: Seat, found: tuple[str, RunIdentity] | EwqError) -> None:
        """Refuse a worker that would measure something else; cards may be of another kind."""
        if isinstance(found, EwqError):
            raise type(found)(f"a worker cannot open the run: {found}")
        (node, theirs), ours = found, self._session.identity
        settings = {**theirs.settings, "device": ours.settings["device"]}
        reasons = ours.code_differences(theirs) + changed_settings(ours.settings, settings)
        if theirs.fingerprint != ours.fingerprint:
            reasons.insert(0, f"the model has fingerprint {theirs.fingerprint}")
        if reasons:
            raise InputError(f"worker on {node}: {'; '.join(reasons)}; give it what this run has")
        seat.kind = _kind(theirs)

    def _keep(self, seat: Seat, name: str, task: str, payload: dict[str, Any] | None) -> None:
        """Journal a measurement, and remember it where others are paired with it."""
        if payload is not None:
            record = Record.from_json(payload["record"])
            result = result_of(record, payload["task_settings"])
            of_kind = find_task(task).same_session
            known = self._speeds[seat.kind] if of_kind else self._session.references
            if name == REFERENCE:
                known.remember(task, result)
            if of_kind:
                paired = pair(record, result, known)
                if seat.kind != (own := _kind(self._session.identity)):
                    other = f"measured on {seat.kind}, the run's card is {own}"
                    doubt = Doubt(DoubtKind.OTHER_SESSION, other)
                    paired = replace(paired, doubts=(*paired.doubts, doubt))
                payload = {**payload, "record": paired.to_json(), UNPAIRED: False}
            if seat.job.variant.name == name:
                self._session.journal.started((name, task))
                self._session.journal.finished((name, task), payload)
        self._done(seat, name, task)

    def _fail(self, seat: Seat, name: str, task: str, error: EwqError) -> None:
        """Keep a failure for its test; what a device had no room for is tried once more."""
        job = seat.job
        if isinstance(error, OutOfMemory) and job.variant.name == name and job.tries + 1 < TRIES:
            self._end(seat)
            job.tries, job.cards = job.tries + 1, job.cards + (job.cards > 0)
            self._queue.append(job)
            return
        if task == RECORDING:
            self._recorded = EwqError(f"no distributions of the reference: {error}")
        else:
            if job.variant.name == name:
                self._session.journal.started((name, task))
                self._session.journal.failed((name, task), str(error))
                self._session.failed_elsewhere[name, task] = error
            if name == REFERENCE:
                self._speeds[seat.kind].origin[task] = f"{MISSING}: {error}"
        self._done(seat, name, task)

    def _bury(self, seat: Seat, why: str) -> None:
        """Give the variant of a worker that died to another one, once."""
        job, name = seat.job, seat.job.variant.name
        self._end(seat)
        job.tries += 1
        if job.tries < TRIES:
            self._queue.appendleft(job)
            return
        lost = MeasurementError(f"{name}: {TRIES} workers died measuring it: {why}")
        for task in [*job.todo]:
            self._fail(seat, name, task, lost)

    def _done(self, seat: Seat, name: str, task: str) -> None:
        """A task is over, unless it was FP16's on the way to another variant's."""
        if seat.job.variant.name == name:
            seat.job.todo.remove(task)
            self._advance(1)
            if not seat.job.todo:
                self._tell(f"ewq: {name}: measured by a worker")


def _is_waited_for(task: str, is_reference: bool) -> bool:
    """Whether it needs what FP16 gave before; on FP16, what others need."""
    if task == RECORDING or find_task(task).pairing is Pairing.DISTRIBUTIONS:
        return True
    probe = find_task(task).probe
    # A probe tells of FP16's own other tasks too whether they are worth asking.
    return find_task(task).same_session or (probe == task if is_reference else bool(probe))


def _kind(identity: RunIdentity) -> str:
    """A card's name, however many of it there are."""
    return str(identity.environment.get("gpu") or identity.environment.get("cpu")).split(" x ")[-1]
