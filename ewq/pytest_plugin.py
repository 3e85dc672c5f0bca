"""The pytest plugin: hooks and fixtures; the first benchmark imports heavy libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ewq.errors import BackendUnavailable, EwqError, InputError, NotApplicable
from ewq.files import caches_made
from ewq.harness.options import Options, add_options
from ewq.harness.state import MEMBER, TASK_MARK, PluginState, key_of, state_of, task_of
from ewq.instruments.processor_wait import wait_without_spinning
from ewq.progress import Progress
from ewq.record import Record, Verdict
from ewq.storage.journal import JOURNAL, JournalLost
from ewq.storage.runs import whole_benchmarks
from ewq.tasks.table import FAMILIES, find_task, known_task
from ewq.variants import REFERENCE

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter
    from pytest_benchmark.fixture import BenchmarkFixture

    from ewq.harness.handle import LoadVariant, VariantHandle
    from ewq.harness.session import Session
    from ewq.harness.subject import Subject


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ``--ewq-...`` options: the first hook, before a conftest may load torch."""
    wait_without_spinning()
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Read the options once; a bad one ends the run with one line (exit code 4)."""
    config.addinivalue_line("markers", f"{TASK_MARK}(name): the task a benchmark measures")
    try:
        options = Options.from_pytest(config)
    except InputError as error:
        raise pytest.UsageError(str(error)) from error
    config.pluginmanager.register(PluginState(config, options), "ewq-state")
    if options.dry_run:
        config.option.collectonly = True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each benchmark once per variant, unless the test names its own, and member."""
    if "variant" not in metafunc.fixturenames or task_of(metafunc.definition) is None:
        return
    own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if not any("variant" in str(names) for names in own):
        names = [variant.name for variant in state_of(metafunc.config).options.variants]
        metafunc.parametrize("variant", names, indirect=True, scope="session")
    if MEMBER in metafunc.fixturenames:
        asked = state_of(metafunc.config).options.members(task_of(metafunc.definition))
        metafunc.parametrize(MEMBER, asked or [""])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep each variant's tests together whatever else orders them, so that it loads once."""
    items[:] = [item for item in items if task_of(item) not in FAMILIES]
    keys = {index: key for index, item in enumerate(items) if (key := key_of(item))}
    order = {each.name: n for n, each in enumerate(state_of(config).options.variants)}
    for variant, _ in keys.values():
        order.setdefault(variant, len(order))
    order[REFERENCE] = -1

    def place(index: int) -> tuple[int, bool]:
        """By variant; memory first, since other tasks leave freed blocks behind."""
        variant, task = keys[index]
        return (order[variant], not ((known := known_task(task)) and known.first))

    grouped = [items[index] for index in sorted(keys, key=place)]
    for index, item in zip(keys, grouped, strict=True):
        items[index] = item


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note what is going to be measured, after all deselection."""
    state = state_of(session.config)
    keys = [key for item in session.items if (key := key_of(item))]
    try:
        for variant, task in keys:
            find_task(task)
            state.options.variant(variant)
    except InputError as error:
        raise pytest.UsageError(str(error)) from error
    state.selected = keys
    state.benchmarks = next((item.path.parent for item in session.items if key_of(item)), Path())
    if keys and session.config.getoption("benchmark_columns", "absent") is None:
        state.hide_timing_tables([item for item in session.items if not key_of(item)])


def pytest_report_header(config: pytest.Config) -> list[str]:
    """One line on what is measured, and one where nothing will be gated."""
    state = state_of(config)
    model = f"ewq: model {state.options.model or '(embedded)'}, tier {state.options.tier}"
    return [model, f"ewq: {state.ungated}"] if state.ungated else [model]


@pytest.fixture(scope="session")
def ewq_progress(pytestconfig: pytest.Config) -> Progress:
    """Progress drawn on a terminal."""
    from ewq.harness.terminal import find_progress

    return find_progress(pytestconfig)


@pytest.fixture(scope="session")
def ewq_loader() -> LoadVariant:
    """How a variant is loaded; override it to benchmark something else."""
    from ewq.harness.loading import load_variant

    return load_variant


@pytest.fixture(scope="session")
def ewq_subject(pytestconfig: pytest.Config, ewq_progress: Progress) -> Subject:
    """The model under test; override it to benchmark something else."""
    from ewq.harness.subject import find_device, find_subject

    options = state_of(pytestconfig).options
    with _or_exit():
        device = find_device(options.device)
        return find_subject(options.model, options.tier, device, ewq_progress, options.calibration)


@pytest.fixture(scope="session")
def ewq_session(
    pytestconfig: pytest.Config,
    ewq_subject: Subject,
    ewq_loader: LoadVariant,
    ewq_progress: Progress,
) -> Iterator[Session]:
    """The run's shared state; the reference is measured here where the run does not select it."""
    from ewq.harness.budget import budget_line
    from ewq.harness.fleet import measure_elsewhere
    from ewq.harness.measuring import prepare_references
    from ewq.harness.terminal import lines_drawn, tell

    state = state_of(pytestconfig)
    with _or_exit():
        session = state.open_session(ewq_subject, ewq_loader, ewq_progress)
        if not state.options.workers:
            tell(pytestconfig, budget_line(session))
    if not state.options.no_save:
        state.save_by_default()
    try:
        with _or_exit():
            prepare_references(session)
            if state.options.workers:
                with lines_drawn(pytestconfig) as drawn:
                    measure_elsewhere(session, *drawn)
        yield session
    finally:
        session.close()


@pytest.fixture(scope="session")
def variant(request: pytest.FixtureRequest, ewq_session: Session) -> Iterator[VariantHandle]:
    """One variant, loaded on first use, freed before the next one."""
    handle = ewq_session.handle(ewq_session.options.variant(request.param))
    yield handle
    handle.close()
    from ewq.harness.terminal import row_line, tell

    expected = state_of(request.config).expectation(handle.name)
    tell(request.config, row_line(ewq_session, handle.name), expected)


@pytest.fixture
def measure(
    request: pytest.FixtureRequest,
    ewq_session: Session,
    variant: VariantHandle,
    benchmark: BenchmarkFixture,
) -> Callable[[], Record]:
    """Measure the test's task on its variant, store the record, and apply the gate."""
    from ewq.harness.measuring import measure as measure_task

    task = task_of(request.node)
    if task is None:
        raise pytest.UsageError("a test that uses `measure` needs @pytest.mark.task(NAME)")

    def run() -> Record:
        if ewq_session.subject.is_dummy and not find_task(task).on_random_weights:
            pytest.skip(f"{task} says nothing about random weights")
        if ewq_session.at_chance(variant.name, task):
            reason = f"{REFERENCE} answers MMLU's letters at chance, so {task} says nothing"
            ewq_session.skipped[variant.name, task] = reason
            pytest.skip(reason)
        try:
            record = measure_task(ewq_session, variant, task, benchmark)
        except JournalLost as error:
            state_of(request.config).stop_saving()
            pytest.exit(f"ewq: {error}", returncode=3)
        except EwqError as error:
            absent = isinstance(error, BackendUnavailable)
            named = ewq_session.options.variants_named
            if isinstance(error, NotApplicable) or (absent and not named):
                ewq_session.skipped[variant.name, task] = str(error)
                pytest.skip(str(error))
            ewq_session.failures[variant.name, task] = str(error)
            pytest.fail(str(error), pytrace=False)
        _tell(request.node, record)
        return record

    return run


def _tell(item: pytest.Item, record: Record) -> None:
    """Put verdict and figures into JUnit XML, and fail the test where the gate does."""
    item.user_properties.append(("ewq_verdict", record.verdict.value))
    item.user_properties += [(f"ewq_{k}", m.value) for k, m in record.metrics.items()]
    if record.reasons:
        item.user_properties.append(("ewq_reasons", " | ".join(map(str, record.reasons))))
    if record.verdict is Verdict.FAIL:
        pytest.fail(" | ".join(map(str, record.reasons)), pytrace=False)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Add GPU and library versions; drop the clock readings that differ every second."""
    for volatile in [key for key in machine_info.get("cpu") or {} if key.startswith("hz_actual")]:
        del machine_info["cpu"][volatile]
    if session := state_of(config).session:
        machine_info["ewq"] = dict(session.identity.environment)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Say in the stored run whether it is complete and what its gates said."""
    if (state := state_of(config)).session:
        output_json["ewq"] = state.storage_json


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_benchmark_compare_machine_info(
    machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> None:
    """Keep pytest-benchmark from damaged rows, and from calling every machine different."""
    compared_benchmark["machine_info"] = machine_info
    compared_benchmark["benchmarks"] = whole_benchmarks(compared_benchmark["benchmarks"])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Around pytest-benchmark's saving: tell it how the session went, survive a full disk."""
    state = state_of(session.config)
    state.tests_failed = session.testsfailed
    state.drop_interrupted()
    try:
        yield
        state.retire_journal()
    except OSError as error:
        pytest.exit(
            f"ewq: cannot store the run ({error.strerror}); every measurement is kept in "
            f"{state.storage / JOURNAL}: free space, then run again with --ewq-resume",
            returncode=3,
        )


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    """The table people know from EWQ, and what the gates said."""
    state = state_of(config)
    for line in state.absent_variants:
        terminalreporter.write_line(line, yellow=True)
    if state.options.dry_run:
        terminalreporter.write_line(state.plan_in_words)
    elif state.session is not None and state.session.records:
        from ewq.harness.terminal import write_summary

        write_summary(terminalreporter, state.session, state.stored_file)
        if made := caches_made(state.cached):
            terminalreporter.write_line(f"ewq: {made}")
        return
    # What xdist's workers know stays with them.
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    if any(name == "ewq_verdict" for each in reports for name, _ in each.user_properties):
        terminalreporter.write_line(f"ewq: gates: {state.ungated}", yellow=True)


@contextmanager
def _or_exit() -> Iterator[None]:
    """An error that makes the whole run pointless ends it with one line."""
    try:
        yield
    except EwqError as error:
        pytest.exit(f"ewq: {error}", returncode=4 if isinstance(error, InputError) else 3)
