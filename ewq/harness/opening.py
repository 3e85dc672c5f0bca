"""From options to a bench: everything that can be refused is refused before a model loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ewq.errors import InputError
from ewq.harness.bench import Bench, Key, LoadVariant, run_settings
from ewq.harness.data import RunData
from ewq.harness.options import Options
from ewq.harness.placement import Placement, find_placement
from ewq.harness.session import PREVIOUS_JOURNAL
from ewq.harness.subject import Subject
from ewq.progress import Progress
from ewq.tasks.table import Data, find_task
from ewq.tasks.tiers import Tier, tier_sizes
from ewq.variants import GgufPlanned, Planned

if TYPE_CHECKING:
    from ewq.gating.thresholds import Thresholds
    from ewq.storage.journal import Journal

JOURNAL = "journal.jsonl"
THRESHOLDS = "thresholds.toml"


def open_bench(
    options: Options,
    subject: Subject,
    selected: list[Key],
    *,
    rootdir: Path,
    storage: Path,
    baseline_request: str,
    load: LoadVariant,
    progress: Progress,
    ungated: str = "",
) -> Bench:
    """Check model, thresholds, baseline and journal, then set up the run.

    Raises:
        EwqError: anything that makes the run pointless; one line that says what to do.
    """
    from ewq.data.windows import require_tokens
    from ewq.gating.baseline import NEWEST, Choice, Wanted, find_baseline
    from ewq.storage.environment import describe
    from ewq.storage.journal import Journal

    if ungated and (options.require_baseline or baseline_request):
        raise InputError(f"a baseline was asked for, but {ungated}")
    if ungated and options.resume:
        raise InputError(f"there is nothing to go on with: {ungated}")
    placement = find_placement(
        options.device, options.dtype, options.decode, subject.checkpoint.config
    )
    sizes = tier_sizes(options.tier, placement.device)
    _check_plan_files(options, subject)
    environment = describe(placement.device)
    thresholds = _thresholds(options, rootdir)
    data = RunData(options, sizes, progress)
    # What is wrong with the data is said before anything is measured.
    tasks = [task for _, task in selected if _is_measured(task, subject)]
    if any(find_task(task).data is Data.TEXTS for task in tasks):
        require_tokens(data.texts, subject.tokenizer)
    data.digests(tasks)
    choice = Choice(None)
    if request := baseline_request or (NEWEST if options.require_baseline else ""):
        settings = run_settings(options, subject, placement, data, selected)
        wanted = Wanted(subject.fingerprint, environment, tuple(selected), settings)
        choice = find_baseline(request, storage, wanted, rootdir)
    if options.require_baseline and choice.run is None:
        raise InputError(f"no baseline to gate against: {'; '.join(choice.reasons)}")
    header = _header(options, subject, placement, sizes, environment)
    journal = Journal.unkept(header) if ungated else _journal(options, header, storage)
    _require_same_data(journal, data)
    return Bench(
        options=options,
        subject=subject,
        placement=placement,
        sizes=sizes,
        data=data,
        environment=environment,
        thresholds=thresholds,
        baseline=choice.run,
        baseline_reasons=() if choice.run else choice.reasons,
        journal=journal,
        progress=progress,
        load=load,
        selected=tuple(selected),
        ungated=ungated,
    )


def _is_measured(task: str, subject: Subject) -> bool:
    return not subject.is_dummy or find_task(task).on_random_weights


def _check_plan_files(options: Options, subject: Subject) -> None:
    for variant in options.variants:
        recipe = variant.recipe
        if isinstance(recipe, Planned | GgufPlanned) and isinstance(recipe.plan, Path):
            subject.plan(recipe.plan)


def _thresholds(options: Options, rootdir: Path) -> Thresholds:
    from ewq.gating.thresholds import BUILT_IN, load_thresholds

    path = options.thresholds or rootdir / "benchmarks" / THRESHOLDS
    known = [variant.name for variant in options.variants]
    if options.thresholds is None and not path.is_file():
        return BUILT_IN
    return load_thresholds(path, known)


def _header(
    options: Options,
    subject: Subject,
    placement: Placement,
    sizes: Tier,
    environment: dict[str, Any],
) -> dict[str, Any]:
    """What must be the same for an interrupted run to be resumed."""
    from ewq.storage.environment import LIBRARIES, code_version, hardware

    return {
        "fingerprint": subject.fingerprint,
        "tokenizer": subject.tokenizer_digest,
        "tier": options.tier,
        "sizes": repr(sizes),
        "placement": repr(placement),
        "data": [options.mmlu, options.texts],
        "machine": hardware(environment),
        "libraries": {name: environment.get(name) for name in LIBRARIES},
        "code": code_version(),
    }


def _journal(options: Options, header: dict[str, Any], storage: Path) -> Journal:
    from ewq.storage.journal import Journal

    path = storage / JOURNAL
    if options.resume:
        return Journal.resume(path, header)
    # An interrupted run's measurements stay until the next run, whatever is asked for now.
    return Journal.create(path, header, storage / PREVIOUS_JOURNAL)


def _require_same_data(journal: Journal, data: RunData) -> None:
    """Files of the same name may hold other questions or texts than before the interruption.

    Raises:
        InputError: a measurement to be taken over was made on other data.
    """
    for (variant, task), payload in journal.completed.items():
        before, now = payload["data"], data.digest(task)
        if now != before:
            journal.close()
            raise InputError(
                f"cannot resume {journal.path}: {variant}/{task} was measured on other data "
                f"({before}, now {now}); run without resuming"
            )
