"""Variants measured by workers on Ray, on fake models; all but one test on a fake Ray too."""

import json
import sqlite3
import sys
from contextlib import closing

import pytest

from ewq.errors import EwqError
from ewq.harness import fleet
from ewq.harness.handle import OutOfMemory
from ewq.storage.journal import PREVIOUS_JOURNAL
from tests.harness.fake_ray import (
    FakeRay,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)
from tests.harness.fakes import TASKS, finished, set_behaviour

NAMES = ("fp16", "ewq-0.5", "ewq-1.0")
THREE = ("--ewq-variants", ",".join(NAMES), "--benchmark-autosave")
QUIET = ("-W", "default::pytest_benchmark.logger.PytestBenchmarkWarning")
CLOCKED = {"throughput", "memory"}
WORKERS = ("--ewq-workers", "2", *QUIET)
CARD = 1_000_000_000


def records(project):
    """Of the newest stored run."""
    run = json.loads(sorted(project.path.glob(".benchmarks/*/*.json"))[-1].read_text())
    found = [each["extra_info"]["ewq"] for each in run["benchmarks"]]
    return {(each["variant"], each["task"]): each for each in found}


def events(project, kind):
    with closing(sqlite3.connect(project.path / ".benchmarks" / PREVIOUS_JOURNAL)) as file:
        return file.execute("SELECT variant, task FROM events WHERE kind = ?", (kind,)).fetchall()


@pytest.fixture
def ray(monkeypatch, project):
    """A fake Ray of two cores; the variants differ."""
    made = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setattr("ewq.harness.options.find_spec", lambda name: True)
    set_behaviour(project.path, **{"ewq-0.5": {"noise": 0.3}, "ewq-1.0": {"noise": 0.1}})
    return made


@pytest.fixture
def cards(ray, monkeypatch):
    """Three cards on two nodes; FP16 takes two."""
    ray.resources = [{"CPU": 4, "GPU": 2}, {"CPU": 4, "GPU": 1}]
    monkeypatch.setattr(fleet, "gpus_of", lambda device: ["cuda:0"])
    monkeypatch.setattr(fleet, "free_memory", lambda device: (CARD, CARD))
    sizes = {"fp16": 1.3 * CARD, "ewq-0.5": 0.1 * CARD, "ewq-1.0": 0.2 * CARD}
    monkeypatch.setattr(fleet, "weights_bytes", lambda variant, *given: sizes[variant.name])
    return ray


def test_without_ray_workers_are_one_line(bench, monkeypatch):
    monkeypatch.setattr("ewq.harness.options.find_spec", lambda name: None)
    result = bench(*WORKERS)
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: --ewq-workers needs Ray: pip install 'ewq[[]ray]'"])


@pytest.mark.parametrize("asked", ["0", "two", "ray:/x"])
def test_workers_are_a_number_or_a_cluster(bench, asked):
    result = bench("--ewq-workers", asked)
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*give a number, auto or ray://HOST:PORT"])


def test_what_workers_find_is_what_one_process_finds(bench, project, ray):
    bench(*THREE).assert_outcomes(passed=3 * TASKS + 1)
    alone = records(project)
    bench(*THREE, *WORKERS).assert_outcomes(passed=3 * TASKS + 1)
    found = records(project)
    assert {*found} == {*alone}
    for key in alone:
        if key[1] not in CLOCKED:
            assert found[key] == alone[key], key
    measured = [key[:2] for key in ray.asked if len(key) == 3]
    assert sorted(measured) == sorted(key for key in alone if key[1] not in CLOCKED)
    assert finished(project.path / ".benchmarks" / PREVIOUS_JOURNAL).total() == len(alone)


def test_workers_measure_nothing_that_a_model_at_chance_cannot_say(bench, project, ray):
    set_behaviour(project.path, fp16={"guesses": True})
    bench("--ewq-variants", "fp16,ewq-0.5", *WORKERS, "-k", "mmlu or noise")
    measured = [key[:2] for key in ray.asked if len(key) == 3]
    assert sorted(measured) == [("ewq-0.5", "mmlu_cloze"), ("fp16", "mmlu"), ("fp16", "mmlu_cloze")]


def test_processes_of_ray_find_what_one_process_finds(bench, project):
    pytest.importorskip("ray")
    select = (*THREE, "-k", "fp16 or ewq-0.5")
    set_behaviour(project.path, **{"ewq-0.5": {"noise": 0.3}})
    bench(*select).assert_outcomes(passed=2 * TASKS + 1)
    alone = records(project)
    result = bench(*select, *WORKERS, subprocess=True)
    result.assert_outcomes(passed=2 * TASKS + 1)
    result.stdout.fnmatch_lines(["ewq: fp16: measured by a worker"])
    found = records(project)
    assert [found[key] == alone[key] for key in alone if key[1] not in CLOCKED]


def test_a_cluster_without_room_is_told(bench, ray):
    ray.resources = [{"memory": 1.0}]
    result = bench(*THREE, "--ewq-workers", "auto")
    result.stdout.fnmatch_lines(["*the cluster has no processor for fp16; resume later*"])


@pytest.mark.parametrize("death", [RayActorError("killed"), OutOfMemoryError("killed")])
def test_the_variant_of_a_dead_worker_is_tried_once_more(bench, project, ray, death):
    ray.errors = {("ewq-0.5", "perplexity"): [death]}
    bench(*THREE, *WORKERS).assert_outcomes(passed=3 * TASKS + 1)
    counts = finished(project.path / ".benchmarks" / PREVIOUS_JOURNAL)
    assert counts == dict.fromkeys(counts, 1)


def test_a_variant_that_kills_two_workers_fails_alone(bench, project, ray):
    ray.errors = {("ewq-0.5", "perplexity"): [RayActorError("one\nkilled")] * 2}
    result = bench(*THREE, *WORKERS, "-k", "perplexity or divergence or cloze")
    result.assert_outcomes(passed=8, failed=1)
    line = "ewq-0.5: 2 workers died measuring it: killed"
    result.stdout.fnmatch_lines([f"not measured: ewq-0.5: {line}"])
    assert not ray.actors


def test_without_reference_divergence_fails_in_one_line(bench, project, ray):
    ray.errors = {("record",): [RayActorError("killed")] * 2}
    result = bench(*THREE, *WORKERS, "-k", "ewq and divergence or fp16 and divergence")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*no distributions of the reference: fp16: 2 workers died*"])


def test_a_reference_lost_with_its_node_is_recorded_again(bench, project, ray):
    ray.errors = {("ewq-0.5", "divergence"): [ObjectLostError()]}
    bench(*THREE, *WORKERS, "-k", "divergence or perplexity").assert_outcomes(passed=6)
    assert sum(key[0] == "record" for key in ray.asked) == 2


def test_a_failure_in_a_worker_fails_its_own_test(bench, project, ray):
    ray.errors = {("ewq-0.5", "perplexity"): [RayTaskError(EwqError("the text is gone"))]}
    result = bench(*THREE, *WORKERS, "-k", "perplexity")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*the text is gone*"])
    bench(*THREE, *WORKERS, "-k", "perplexity", "--ewq-resume").assert_outcomes(passed=3)


def test_letters_are_not_asked_by_workers_where_the_reference_guesses(bench, project, ray):
    set_behaviour(project.path, fp16={"guesses": True})
    bench(*THREE, *WORKERS, "-k", "mmlu").assert_outcomes(passed=4, skipped=2)
    assert ("ewq-0.5", "mmlu") not in [key[:2] for key in ray.asked]


def test_a_reference_that_is_not_selected_is_measured_first(bench, project, ray):
    result = bench(*THREE, *WORKERS, "-k", "ewq and divergence or ewq and perplexity")
    result.assert_outcomes(passed=4)
    assert records(project)["ewq-0.5", "perplexity"]["metrics"]["ln_ppl_ratio"]["value"] > 0


@pytest.mark.parametrize("changed", ["ewq_code", "torch"])
def test_a_worker_with_other_code_is_refused_by_name(bench, project, ray, monkeypatch, changed):
    opened = fleet.Worker.open

    def other(*arguments):
        node, identity = opened(*arguments)
        identity.environment[changed] = "another"
        return node, identity

    monkeypatch.setattr(fleet.Worker, "open", other)
    result = bench(*THREE, *WORKERS, "-k", "perplexity")
    assert result.ret == 4
    result.stdout.fnmatch_lines([f"*worker on *: {changed} was *, is another*"])


def test_variants_take_the_cards_that_they_need(bench, project, cards):
    bench(*THREE, "--ewq-workers", "auto").assert_outcomes(passed=3 * TASKS + 1)
    taken = {key[:2]: key[2] for key in cards.asked if len(key) == 3}
    assert {name: {taken[key] for key in taken if key[0] == name} for name in NAMES} == {
        "fp16": {2},
        "ewq-0.5": {1},
        "ewq-1.0": {1},
    }
    assert cards.most_cards == 3
    assert {key[1] for key in taken} >= CLOCKED
    assert cards.where["address"] == "auto"


def test_speeds_are_paired_with_those_of_the_same_kind_of_card(bench, project, cards, monkeypatch):
    opened = fleet.Worker.open

    def other(worker, *arguments):
        node, identity = opened(worker, *arguments)
        holders = [actor.cards for actor in cards.actors if actor.worker is worker]
        identity.environment["gpu"] = "2 x B" if holders == [2] else "A"
        return node, identity

    monkeypatch.setattr(fleet.Worker, "open", other)
    select = ("-k", "fp16 and throughput or ewq-0.5 and throughput")
    bench(*THREE, *select, "--ewq-workers", "auto").assert_outcomes(passed=2)
    timed = [key for key in cards.asked if key[1:2] == ("throughput",)]
    assert timed == [
        ("fp16", "throughput", 2),
        ("fp16", "throughput", 1),
        ("ewq-0.5", "throughput", 1),
    ]
    doubts = records(project)["ewq-0.5", "throughput"]["doubts"]
    assert [each["kind"] for each in doubts if "measured on A" in each["text"]] == ["other_session"]
    assert "decode_ratio" in records(project)["ewq-0.5", "throughput"]["metrics"]


def test_a_variant_that_runs_out_of_memory_gets_one_card_more(bench, project, cards):
    cards.errors = {("ewq-0.5", "perplexity"): [RayTaskError(OutOfMemory("cards are full"))]}
    bench(*THREE, "-k", "perplexity", "--ewq-workers", "auto").assert_outcomes(passed=3)
    assert [key[2] for key in cards.asked if key[:2] == ("ewq-0.5", "perplexity")] == [1, 2]
