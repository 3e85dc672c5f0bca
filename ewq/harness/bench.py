"""Everything one run shares: the subject, its data, the references, the journal, the records."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ewq.harness.data import RunData
from ewq.harness.handle import VariantHandle, set_libraries_aside
from ewq.harness.loading import Loaded, get_ready, weights_bytes
from ewq.harness.options import Options
from ewq.harness.out_of_memory import reported
from ewq.harness.placement import Placement
from ewq.harness.references import References
from ewq.harness.subject import Subject
from ewq.progress import Progress
from ewq.record import Record
from ewq.tasks.table import TASKS, Inputs, Pairing
from ewq.tasks.tiers import Tier
from ewq.variants import REFERENCE, Variant

if TYPE_CHECKING:
    from ewq.gating.thresholds import Thresholds
    from ewq.instruments.load_watch import LoadReading
    from ewq.storage.journal import Journal
    from ewq.storage.runs import Run

Key = tuple[str, str]
"""``(variant, task)``."""
LoadVariant = Callable[[Variant, Subject, Placement], Loaded]


@dataclass
class Bench:
    """The state of one run. Created once, when the first benchmark needs it."""

    options: Options
    subject: Subject
    placement: Placement
    sizes: Tier
    data: RunData
    environment: Mapping[str, Any]
    thresholds: Thresholds
    baseline: Run | None
    baseline_reasons: tuple[str, ...]
    journal: Journal
    progress: Progress
    load: LoadVariant
    selected: tuple[Key, ...]
    ungated: str = ""
    """Why nothing is gated, where that is so."""
    records: dict[Key, Record] = field(default_factory=dict)
    skipped: dict[Key, str] = field(default_factory=dict)
    """Not measured because an optional library is missing."""
    failures: dict[Key, str] = field(default_factory=dict)
    loads: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.references = References(self)
        self.past_crashes = Counter[str]()
        """Variant -> how often it ended an earlier process of this run."""
        for key, times in self.journal.crashes.items():
            self.past_crashes[key[0]] += times

    def handle(self, variant: Variant) -> VariantHandle:
        """A handle that loads ``variant`` on first use; loads are counted."""
        return VariantHandle(variant, self._load_watched)

    def inputs(self, handle: VariantHandle) -> Inputs:
        """What a task gets to measure the variant of ``handle``."""
        return Inputs(
            model=lambda: handle.model,
            load_reading=lambda: handle.load_reading,
            questions=lambda: self.data.mmlu,
            texts=lambda: self.data.texts,
            definition=lambda: self.data.definition,
            distributions=lambda: self.references.distributions(handle),
            sizes=self.sizes,
            progress=self.progress,
        )

    def _load_watched(self, variant: Variant) -> tuple[Loaded, LoadReading]:
        from ewq.instruments.load_watch import LoadWatch

        device = self.placement.device
        needed = None
        if isinstance(self.subject, Subject):
            get_ready(variant, self.subject)
            needed = partial(weights_bytes, variant, self.subject, self.placement)
        if not self.loads:
            set_libraries_aside()
        self.loads[variant.name] += 1
        loading = reported(f"{variant.name}, loading", device, needed)
        self.progress.start(f"loading {variant.name}", 1, "model")
        try:
            with loading, LoadWatch(device) as watch:
                loaded = self.load(variant, self.subject, self.placement)
        finally:
            self.progress.finish()
        return loaded, watch.reading

    def identity(self, task: str) -> dict[str, Any]:
        """What a stored reference result must share with this run to stand in for it."""
        from ewq.storage.environment import LIBRARIES, code_version, hardware

        return {
            "fingerprint": self.subject.fingerprint,
            "tokenizer": self.subject.tokenizer_digest,
            "tier": [self.options.tier, repr(self.sizes)],
            "placement": repr(self.placement),
            "machine": hardware(self.environment),
            "libraries": {name: self.environment.get(name) for name in LIBRARIES},
            "code": code_version(),
            "data": self.data.digest(task),
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What two runs must share as a whole to be compared."""
        return run_settings(self.options, self.subject, self.placement, self.data, self.selected)

    def prepare_references(self) -> None:
        """Measure or recall the reference for tasks that pair with it but do not select it."""
        own = {task for variant, task in self.selected if variant == REFERENCE}
        others = {task for variant, task in self.selected if variant != REFERENCE}
        paired = {task for task in others if TASKS[task].pairing is not Pairing.NONE}
        if self.subject.is_dummy:
            paired = {task for task in paired if TASKS[task].on_random_weights}
        self.references.prepare(sorted(paired - own))

    def restore_distributions(self, task: str, handle: VariantHandle) -> None:
        """After resuming: record the reference's distributions again if a variant needs them.

        They are large and deterministic, so the journal does not keep them.
        """
        todo = [key for key in self.selected if key not in self.journal.completed]
        recorded = TASKS[task].pairing is Pairing.DISTRIBUTIONS
        if recorded and any(key[1] == task for key in todo):
            self.references.distributions(handle)

    def close(self) -> None:
        """End the run: delete temporary reference data, close the journal, collect as before."""
        self.references.close()
        self.journal.close()
        gc.unfreeze()


def run_settings(
    options: Options,
    subject: Subject,
    placement: Placement,
    data: RunData,
    selected: Sequence[Key],
) -> dict[str, Any]:
    """What two runs must share as a whole, as it is known before anything is measured."""
    tasks = [task for _, task in selected if not subject.is_dummy or TASKS[task].on_random_weights]
    return {
        "tier": options.tier,
        "tokenizer": subject.tokenizer_digest,
        "sizes": json.loads(json.dumps(asdict(data.sizes))),
        **asdict(placement),
        **{f"{task} data": digest for task, digest in data.digests(tasks).items()},
    }
