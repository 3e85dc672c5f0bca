"""The reference's results, which paired figures need before the other variants load.

Where the reference is part of the run it is measured first and remembered.
Where it is not (``-k ewq``), its stored result is used if one exists for the
same checkpoint, settings, device and code, and else it is measured once,
before any other model is in memory, and marked so.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ewq.errors import EwqError
from ewq.files import cache_dir
from ewq.harness.out_of_memory import reported
from ewq.measurement import Doubt, DoubtKind, TaskResult
from ewq.tasks.table import TASKS, Pairing
from ewq.variants import REFERENCE, find_variant

if TYPE_CHECKING:
    from ewq.data.reference_logprobs import Reference
    from ewq.harness.bench import Bench
    from ewq.harness.handle import VariantHandle

MEASURED_FOR_PAIRING = "the reference was measured for this comparison only"
BEFORE_INTERRUPTION = Doubt(
    DoubtKind.OTHER_SESSION, "the reference's speed was measured before the run was interrupted"
)
STORED = "paired with a stored result of the reference"
MISSING = "not paired with the reference, which could not be measured"


class References:
    """Results of the reference variant by task."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._results: dict[str, TaskResult] = {}
        self._origin: dict[str, str] = {}
        self.replayed: set[str] = set()
        """Tasks whose reference was measured before the run was interrupted."""
        self._distributions: Reference | None = None

    def remember(self, task: str, result: TaskResult) -> None:
        """Keep the reference's own result, for this run and for later ones."""
        self._results[task] = result
        if not TASKS[task].same_session:
            self._store(task, result)

    def get(self, task: str) -> TaskResult | None:
        """The reference's result; ``None`` where the task pairs in another way or failed."""
        return self._results.get(task)

    def note(self, task: str) -> tuple[str, ...]:
        """Where the reference's result came from, unless this run measured it openly."""
        origin = self._origin.get(task)
        return (origin,) if origin else ()

    def doubts(self, task: str) -> tuple[Doubt, ...]:
        """Why figures paired with the reference are not to be trusted."""
        replayed = task in self.replayed and TASKS[task].same_session
        return (BEFORE_INTERRUPTION,) if replayed else ()

    def prepare(self, tasks: Iterable[str]) -> None:
        """Get the reference's results for ``tasks``, which this run does not measure openly.

        A reference that cannot be measured (FP16 may not fit where a plan does) takes the paired
        figures away, not the others; records say so.
        """
        missing = [task for task in tasks if not self._recall(task)]
        if missing:
            self._measure(missing)

    def distributions(self, handle: VariantHandle) -> Reference:
        """The reference's log-probabilities; recorded now if ``handle`` is the reference.

        Raises:
            EwqError: they were not recorded, because the reference failed.
        """
        if self._distributions is None and handle.name == REFERENCE:
            self._record(handle)
        if self._distributions is None:
            why = self._origin.get("divergence", "the reference failed earlier in this run")
            raise EwqError(f"no reference distributions: {why}")
        return self._distributions

    def close(self) -> None:
        """Delete recorded distributions."""
        if self._distributions is not None:
            self._distributions.close()
        self._distributions = None

    def _record(self, handle: VariantHandle) -> None:
        from ewq.tasks import divergence

        self._distributions = divergence.record_reference(
            handle.model,
            self._bench.data.texts,
            cache_dir("reference-logprobs"),
            max_tokens_per_domain=self._bench.sizes.divergence_tokens,
            progress=self._bench.progress,
        )

    def _measure(self, tasks: list[str]) -> None:
        handle = self._bench.handle(find_variant(REFERENCE))
        try:
            for task in tasks:
                try:
                    with reported(f"{REFERENCE}, {task}", self._bench.placement.device):
                        self._measure_one(task, handle)
                except EwqError as error:
                    self._origin[task] = f"{MISSING}: {error}"
        finally:
            handle.close()

    def _measure_one(self, task: str, handle: VariantHandle) -> None:
        if TASKS[task].pairing is Pairing.DISTRIBUTIONS:
            self._record(handle)
            return
        work = TASKS[task].prepare(self._bench.inputs(handle))
        for _ in range(work.warmup_rounds + work.rounds):
            work.once()
        self.remember(task, work.result())
        self._origin[task] = MEASURED_FOR_PAIRING

    def _recall(self, task: str) -> bool:
        known, path = TASKS[task], self._path(task)
        if known.pairing is not Pairing.RESULTS or known.same_session or not path.is_file():
            return known.pairing is Pairing.NONE
        try:
            self._results[task] = TaskResult.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError):
            return False
        self._origin[task] = STORED
        return True

    def _store(self, task: str, result: TaskResult) -> None:
        path = self._path(task)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
                json.dump(result.to_json(), file)
            Path(file.name).replace(path)
        except OSError:
            # A cache that cannot be written costs time in a later run, nothing else.
            return

    def _path(self, task: str) -> Path:
        key = json.dumps([task, self._bench.identity(task)], sort_keys=True)
        return cache_dir("references", hashlib.sha256(key.encode()).hexdigest() + ".json")
