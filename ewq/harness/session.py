"""Everything one run shares: model, data, identity, gate, journal, references, records."""

import gc
import json
from collections import Counter
from collections.abc import Container
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ewq.checkpoint.embedded import fixture_path
from ewq.data.distributions import Reference
from ewq.data.lm_eval import Documents, load_documents
from ewq.data.mmlu import MmluData, load_mmlu
from ewq.data.texts import TextSet, load_texts
from ewq.data.windows import DEFINITIONS, SHORT, Definition, require_tokens
from ewq.errors import EwqError, NotApplicable
from ewq.files import cache_dir
from ewq.gating.gates import judge
from ewq.gating.thresholds import Thresholds
from ewq.harness.handle import LoadVariant, VariantHandle
from ewq.harness.loading import Loaded, check_variant, same_model
from ewq.harness.options import Options
from ewq.harness.references import References
from ewq.harness.subject import Placement, Subject
from ewq.measurement import DoubtKind
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.record import Reason, Record, RecordKey, Verdict
from ewq.sensitivity.calibration import calibration_texts, refuse_evaluation_text
from ewq.storage.environment import DATA, RunIdentity, describe
from ewq.storage.journal import Journal
from ewq.storage.runs import Run
from ewq.tasks.table import OF_FAMILY, Data, Inputs, Task, find_task
from ewq.tasks.tiers import Tier
from ewq.variants import REFERENCE, Variant, is_fit_name


@dataclass(frozen=True)
class RunData:
    """Questions and texts, loaded when asked for: what the options name, else the tier's own."""

    options: Options
    sizes: Tier
    progress: Progress = NO_PROGRESS
    loaded: dict[str, Documents] = field(default_factory=dict, compare=False)

    @cached_property
    def mmlu(self) -> MmluData:
        """The questions of this tier."""
        with step(self.progress, "reading MMLU questions", 1, "data set"):
            data = load_mmlu(self.options.mmlu or self._default("mmlu"))
        wanted = min(self.sizes.mmlu_questions or len(data.test), len(data.test))
        return data if wanted == len(data.test) else data.subset(wanted, seed=1234)

    @cached_property
    def texts(self) -> TextSet:
        """The texts to score; tasks take as many tokens per domain as the tier allows."""
        with step(self.progress, "reading texts", 1, "data set"):
            return load_texts(self.options.texts or self._default("texts"))

    @property
    def definition(self) -> Definition:
        """WikiText-2 as the quantization papers score it, other texts document by document."""
        if self.texts.domains == ("wikitext2",):
            return DEFINITIONS["papers"]
        return DEFINITIONS["disjoint"] if self.sizes.text_tokens is None else SHORT

    def documents(self, task: str) -> Documents:
        """What one task of lm-eval asks."""
        if task not in self.loaded:
            with step(self.progress, f"reading {task}", 1, "data set"):
                spec = self.options.lm_eval.get(task, task.partition(OF_FAMILY)[2])
                self.loaded[task] = load_documents(spec)
        return self.loaded[task]

    def digest(self, task: Task) -> str:
        """Of the data that a task reads; empty for tasks that make their own."""
        if task.data is Data.DOCUMENTS:
            return self.documents(task.name).digest
        if task.data is Data.QUESTIONS:
            return self.mmlu.digest
        return self.texts.digest if task.data is Data.TEXTS else ""

    def _default(self, name: str) -> str | Path:
        """The published data set in the full tier, else what ewq carries with it."""
        return "hub" if self.options.tier == "full" else fixture_path(name)


@dataclass(frozen=True)
class Gate:
    """What one run is judged by."""

    thresholds: Thresholds
    baseline: Run | None = None
    remarks: tuple[str, ...] = ()
    """Why there is no baseline, where one was asked for; else what it lacks, and damaged runs."""
    require_baseline: bool = False
    ungated: str = ""

    def judge(self, record: Record, device: str) -> Record:
        """The record with its verdict; ``device`` decides how much a speed may vary."""
        if self.ungated:
            reason = Reason(Verdict.NO_BASELINE, self.ungated)
            return replace(record, verdict=Verdict.NO_BASELINE, reasons=(reason,))
        baseline, missing = None, self.remarks
        if self.baseline:
            baseline = self.baseline.records.get(record.key)
            gap = f"the baseline {self.baseline.name} does not cover {'/'.join(record.key)}"
            missing = () if baseline else (gap,)
        judged = judge(
            record,
            self.thresholds.for_(record.variant, record.task),
            baseline=baseline,
            tolerances=self.thresholds.tolerances_for(record.task, device),
            missing_baseline=missing,
        )
        unmet = self.require_baseline and judged.verdict is Verdict.NO_BASELINE
        return replace(judged, verdict=Verdict.FAIL) if unmet else judged


@dataclass
class Session:
    """The state of one run. Opened once, when the first benchmark needs it."""

    options: Options
    subject: Subject
    placement: Placement
    data: RunData
    identity: RunIdentity
    gate: Gate
    journal: Journal
    progress: Progress
    loader: LoadVariant
    selected: tuple[RecordKey, ...]
    records: dict[RecordKey, Record] = field(default_factory=dict)
    skipped: dict[RecordKey, str] = field(default_factory=dict)
    """Not measured: an optional library is missing, or the task would say nothing."""
    failures: dict[RecordKey, str] = field(default_factory=dict)
    failed_elsewhere: dict[RecordKey, EwqError] = field(default_factory=dict)
    """What workers could not measure."""
    recorded: dict[str, Reference | NotApplicable] = field(default_factory=dict)
    """The reference's distributions by task, or why it can have none."""
    loads: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.references = References(self.identity)

    def handle(self, variant: Variant) -> VariantHandle:
        """A handle that loads ``variant`` on first use."""

        def load(*arguments: Any) -> Loaded:
            self.loads[variant.name] += 1
            return self.loader(*arguments)

        return VariantHandle(variant, self.subject, self.placement, load, self.progress)

    def twin_of(
        self, variant: Variant, task: str, among: Container[RecordKey] = ()
    ) -> Variant | None:
        """A variant that is the same model and for which ``task`` has been measured, or will be."""
        # A project's own kind of subject has no plans.
        others = self.options.variants if isinstance(self.subject, Subject) else ()
        known = among or self.journal.completed
        measured = [each for each in others if (each.name, task) in known]
        return next((each for each in measured if same_model(each, variant, self.subject)), None)

    def at_chance(self, variant: str, task: str) -> bool:
        """Whether the reference guesses at what a task asks, which then says nothing."""
        probe, baseline = self.references.get(find_task(task).probe), self.gate.baseline
        if probe is None or (variant, task) == (REFERENCE, probe.task):
            return False
        if baseline and (variant, task) in baseline.records:
            return False  # What was gated once is measured: a reference may have broken since.
        return any(doubt.kind is DoubtKind.CHANCE for doubt in probe.doubts)

    def inputs(self, handle: VariantHandle) -> Inputs:
        """What a task gets to measure the variant of ``handle``."""
        return Inputs(
            model=lambda: handle.model,
            load_reading=lambda: handle.load_reading,
            questions=lambda: self.data.mmlu,
            texts=lambda: self.data.texts,
            definition=lambda: self.data.definition,
            distributions=lambda task: self.distributions(handle, task),
            window_nll=handle.window_nll,
            sizes=self.data.sizes,
            progress=self.progress,
            documents=self.data.documents,
        )

    def distributions(self, handle: VariantHandle, task: str) -> Reference:
        """The reference's distributions for a task, recorded now if ``handle`` is its."""
        if task not in self.recorded and handle.name == REFERENCE:
            inputs, folder = replace(self.inputs(handle), task=task), cache_dir("distributions")
            try:
                recorded = find_task(task).module.record(inputs, folder)
            except NotApplicable as error:
                recorded = error
            self.recorded[task] = recorded
        found = self.recorded.get(task)
        if found is None:
            why = self.references.origin.get(task, "it failed earlier in this run")
            raise EwqError(f"no distributions of the reference: {why}")
        if isinstance(found, NotApplicable):
            raise NotApplicable(str(found))
        return found

    def close(self) -> None:
        """End the run: delete temporary reference data, close the journal, collect as before."""
        for each in self.recorded.values():
            if not isinstance(each, NotApplicable):
                each.close()
        self.journal.close()
        gc.unfreeze()


def check_variants(
    options: Options, subject: Subject, data: RunData, selected: tuple[RecordKey, ...]
) -> None:
    """Refuse variants that cannot be loaded, and fitted ones judged on the text they are made on.

    A project's own kind of subject knows its variants itself.
    """
    variants = [options.variant(name) for name in dict.fromkeys(name for name, _ in selected)]
    if isinstance(subject, Subject):
        _ = subject.tokenizer
        for variant in variants:
            check_variant(variant, subject, named=options.variants_named)
    if any(is_fit_name(variant.name) for variant in variants):
        refuse_evaluation_text(calibration_texts(options.calibration), data.texts)


def identify(
    subject: Subject, placement: Placement, data: RunData, selected: tuple[RecordKey, ...]
) -> RunIdentity:
    """Reads the data of every task, so that broken data ends the run here."""
    tasks = [find_task(name) for name in sorted({task for _, task in selected})]
    if subject.is_dummy:
        tasks = [task for task in tasks if task.on_random_weights]
    if any(task.data is Data.TEXTS for task in tasks):
        config: Any = subject.checkpoint.text_config
        context = config.get("max_position_embeddings") or config.get("n_positions")
        known = isinstance(context, int)
        definition = data.definition.fit(context) if known else DEFINITIONS["disjoint"]
        require_tokens(data.texts, subject.tokenizer, definition)
    settings = {
        "tier": data.options.tier,
        "tokenizer": subject.tokenizer_digest,
        "sizes": json.loads(json.dumps(asdict(data.sizes))),
        **asdict(placement),
        **{task.name + DATA: digest for task in tasks if (digest := data.digest(task))},
    }
    return RunIdentity(subject.fingerprint, settings, describe(placement.device))
