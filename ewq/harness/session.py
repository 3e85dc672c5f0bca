"""Everything one run shares: model, data, identity, gate, journal, references, records."""

from __future__ import annotations

import gc
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ewq.errors import EwqError, InputError
from ewq.files import cache_dir
from ewq.harness.data import RunData
from ewq.harness.gate import Gate, open_gate
from ewq.harness.handle import LoadVariant, VariantHandle
from ewq.harness.loading import same_model
from ewq.harness.options import Options
from ewq.harness.references import References
from ewq.harness.subject import Placement, Subject, find_placement
from ewq.progress import Progress
from ewq.record import Record
from ewq.tasks.table import Data, Inputs, find_task
from ewq.tasks.tiers import tier_sizes
from ewq.variants import REFERENCE, GgufPlanned, Planned, Variant, is_fit_name

if TYPE_CHECKING:
    from ewq.data.reference_logprobs import Reference
    from ewq.record import RecordKey
    from ewq.storage.environment import RunIdentity
    from ewq.storage.journal import Journal


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
    """Not measured because an optional library is missing."""
    failures: dict[RecordKey, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.references = References(self.identity)
        self._handles: list[VariantHandle] = []
        self._distributions: Reference | None = None

    @property
    def loads(self) -> Counter[str]:
        """How often each variant was loaded."""
        counts = Counter[str]()
        for handle in self._handles:
            counts[handle.name] += handle.loads
        return +counts

    def handle(self, variant: Variant) -> VariantHandle:
        """A handle that loads ``variant`` on first use."""
        handle = VariantHandle(variant, self.subject, self.placement, self.loader, self.progress)
        self._handles.append(handle)
        return handle

    def twin_of(self, variant: Variant, task: str) -> Variant | None:
        """A variant that is the same model and for which ``task`` has been measured."""
        # A project's own kind of subject has no plans.
        others = self.options.variants if isinstance(self.subject, Subject) else ()
        measured = [each for each in others if (each.name, task) in self.journal.completed]
        twins = (each for each in measured if same_model(each, variant, self.subject))
        return next(twins, None)

    def inputs(self, handle: VariantHandle) -> Inputs:
        """What a task gets to measure the variant of ``handle``."""
        return Inputs(
            model=lambda: handle.model,
            load_reading=lambda: handle.load_reading,
            questions=lambda: self.data.mmlu,
            texts=lambda: self.data.texts,
            definition=lambda: self.data.definition,
            distributions=lambda: self.distributions(handle),
            sizes=self.data.sizes,
            progress=self.progress,
        )

    def distributions(self, handle: VariantHandle) -> Reference:
        """The reference's log-probabilities; recorded now if ``handle`` is the reference.

        Raises:
            EwqError: they were not recorded, because the reference failed.
        """
        from ewq.tasks import divergence

        if self._distributions is None and handle.name == REFERENCE:
            self._distributions = divergence.record_reference(
                handle.model,
                self.data.texts,
                cache_dir("reference-logprobs"),
                max_tokens_per_domain=self.data.sizes.divergence_tokens,
                progress=self.progress,
            )
        if self._distributions is None:
            why = self.references.origin.get("divergence", "it failed earlier in this run")
            raise EwqError(f"no distributions of the reference: {why}")
        return self._distributions

    def close(self) -> None:
        """End the run: delete temporary reference data, close the journal, collect as before."""
        if self._distributions is not None:
            self._distributions.close()
            self._distributions = None
        self.journal.close()
        gc.unfreeze()


def open_session(
    options: Options,
    subject: Subject,
    selected: tuple[RecordKey, ...],
    *,
    rootdir: Path,
    storage: Path,
    baseline_request: str,
    loader: LoadVariant,
    progress: Progress,
    ungated: str = "",
) -> Session:
    """Refuse whatever can be refused before a model loads, then set up the run.

    Raises:
        EwqError: anything that makes the run pointless; one line that says what to do.
    """
    if ungated and (options.require_baseline or baseline_request):
        raise InputError(f"cannot gate against a baseline: {ungated}")
    if ungated and options.resume:
        raise InputError(f"nothing to resume: {ungated}")
    placement = find_placement(options.device, options.dtype, options.decode, subject.checkpoint)
    _check_plan_files(options, subject)
    data = RunData(options, tier_sizes(options.tier, placement.device), progress)
    _check_calibration(options, data)
    identity = _identity(options, subject, placement, data, selected)
    gate = open_gate(
        options,
        identity,
        selected,
        rootdir=rootdir,
        storage=storage,
        baseline_request=baseline_request,
        ungated=ungated,
    )
    return Session(
        options=options,
        subject=subject,
        placement=placement,
        data=data,
        identity=identity,
        gate=gate,
        journal=_journal(options, identity, None if ungated else storage),
        progress=progress,
        loader=loader,
        selected=selected,
    )


def _check_plan_files(options: Options, subject: Subject) -> None:
    for variant in options.variants:
        recipe = variant.recipe
        if isinstance(recipe, Planned | GgufPlanned) and isinstance(recipe.plan, Path):
            subject.plan(recipe.plan)


def _check_calibration(options: Options, data: RunData) -> None:
    """Refuse to judge fitted plans on the text that they are made on."""
    if any(is_fit_name(variant.name) for variant in options.variants):
        from ewq.sensitivity.calibration import calibration_texts, refuse_evaluation_text

        refuse_evaluation_text(calibration_texts(options.calibration), data.texts)


def _identity(
    options: Options,
    subject: Subject,
    placement: Placement,
    data: RunData,
    selected: tuple[RecordKey, ...],
) -> RunIdentity:
    """Reads the data of every task that will be measured, so that broken data ends the run here."""
    from ewq.data.windows import require_tokens
    from ewq.storage.environment import DATA, RunIdentity, describe

    tasks = [find_task(name) for name in sorted({task for _, task in selected})]
    if subject.is_dummy:
        tasks = [task for task in tasks if task.on_random_weights]
    if any(task.data is Data.TEXTS for task in tasks):
        require_tokens(data.texts, subject.tokenizer)
    digests = {task.name + DATA: digest for task in tasks if (digest := data.digest(task.name))}
    sizes: dict[str, Any] = json.loads(json.dumps(asdict(data.sizes)))
    settings = {
        "tier": options.tier,
        "tokenizer": subject.tokenizer_digest,
        "sizes": sizes,
        **asdict(placement),
        **digests,
    }
    return RunIdentity(subject.fingerprint, settings, describe(placement.device))


def _journal(options: Options, identity: RunIdentity, storage: Path | None) -> Journal:
    from ewq.storage.journal import JOURNAL, Journal

    if storage is None:
        return Journal.unkept(identity)
    if options.resume:
        return Journal.resume(storage / JOURNAL, identity)
    # An interrupted run's measurements stay until the next run, whatever is asked for now.
    return Journal.create(storage / JOURNAL, identity)
