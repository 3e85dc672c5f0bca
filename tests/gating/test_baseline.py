"""Which run becomes the baseline: a table of cases."""

import subprocess
from dataclasses import replace

import pytest

from ewq.errors import InputError
from ewq.gating.compare import (
    ANCESTOR,
    NEWEST,
    Wanted,
    ancestors,
    baseline_of,
    choose,
    find_baseline,
)
from ewq.record import Reason, Verdict
from ewq.storage.environment import RunIdentity
from ewq.storage.runs import read_run
from tests.make_runs import GPU, record, stored_run

FP16 = record(variant="fp16")
EWQ = record(variant="ewq-0.65")
MEMORY = record("memory", "ewq-0.65")
SELECTED = (EWQ.key, FP16.key)
OF_RUN = {"tier": "smoke", "mmlu data": "sha256:d", "tokenizer": "sha256:t"}
WANTED = Wanted(RunIdentity(EWQ.fingerprint, OF_RUN, GPU), SELECTED, {EWQ.key: EWQ})
FOREIGN_MODEL = record(fingerprint="sha256:" + "2" * 64)
OTHER_SETTINGS = record(settings={"shots": 0, "data": "sha256:d"})
OTHER_TIER = {"settings": OF_RUN | {"tier": "quick"}}
OTHER_TOKENIZER = {"settings": OF_RUN | {"tokenizer": "sha256:u"}}
OTHER_DATA = {"settings": OF_RUN | {"mmlu data": "sha256:e"}}
DOUBTFUL = record(
    verdict=Verdict.INCONCLUSIVE,
    reasons=(Reason(Verdict.INCONCLUSIVE, "decode_tokens_per_s: 60 -> 20 tokens/s", worse=True),),
)
LLAMA_CPP = record(variant="gguf-ewq-0.65", settings={"shots": 5, "batch_tokens": 512})
FAILED = record(verdict=Verdict.FAIL)
MISSING = {"selected": [["ewq-0.65", "mmlu"], ["ewq-0.5", "mmlu"]]}
KILLED = {"complete": False}
FAILURES = {"failed": {"ewq-0.5/mmlu": "out of memory"}, "exit_status": 1}
FULL = {"records": [FP16, EWQ]}

# Runs from oldest to newest (day 1, 2, ...), which is chosen, what the reasons say.
CASES = {
    "no run at all": ([], None, "there is no stored run"),
    "the only run": ([FULL], 1, ""),
    "the newest of two": ([FULL, FULL], 2, ""),
    "inconclusive and improved gates are no failures": (
        [{"records": [FP16, record(verdict=Verdict.INCONCLUSIVE)]}],
        1,
        "",
    ),
    "a newer run of plain pytest-benchmark": ([FULL, {"records": [], "foreign": True}], 1, ""),
    "only a run of plain pytest-benchmark": (
        [{"records": [], "foreign": True}],
        None,
        "stored without ewq's plugin",
    ),
    "a newer partial run": ([FULL, FULL | {"session": KILLED}], 1, ""),
    "only a partial run": ([FULL | {"session": KILLED}], None, "partial"),
    "a newer run in which a variant was lost": ([FULL, FULL | {"session": MISSING}], 1, ""),
    "only a run in which a variant was lost": (
        [FULL | {"session": MISSING}],
        None,
        "failed: ewq-0.5/mmlu",
    ),
    "only a run in which a variant failed": (
        [FULL | {"session": FAILURES}],
        None,
        "failed: ewq-0.5/mmlu",
    ),
    "a newer run whose gates failed": ([FULL, {"records": [FP16, FAILED]}], 1, ""),
    "only a run whose gates failed": (
        [{"records": [FP16, FAILED], "session": {"exit_status": 1}}],
        None,
        "gates failed: ewq-0.65/mmlu",
    ),
    "a session that other tests failed": (
        [FULL | {"session": {"exit_status": 1}}],
        None,
        "exit status 1",
    ),
    "a newer run without a single benchmark": ([FULL, {"records": []}], 1, ""),
    "a newer run of another model": ([FULL, {"records": [FOREIGN_MODEL]}], 1, ""),
    "only a run of another model": ([{"records": [FOREIGN_MODEL]}], None, "another model"),
    "a newer run of another tier": ([FULL, FULL | {"session": OTHER_TIER}], 1, ""),
    "only a run of another tier": ([FULL | {"session": OTHER_TIER}], None, "tier was 'quick'"),
    "only a run of another tier that kept no settings": (
        [{"records": [replace(FP16, tier="quick"), replace(EWQ, tier="quick")]}],
        None,
        "tier was 'quick'",
    ),
    "only a run with another tokenizer": (
        [FULL | {"session": OTHER_TOKENIZER}],
        None,
        "setting tokenizer was 'sha256:u'",
    ),
    "a newer run on other data": ([FULL, FULL | {"session": OTHER_DATA}], 1, ""),
    "a newer run that is perhaps worse": ([FULL, {"records": [FP16, DOUBTFUL]}], 1, ""),
    "only a run that is perhaps worse": (
        [{"records": [FP16, DOUBTFUL]}],
        None,
        "possibly worse than its own baseline: ewq-0.65/mmlu",
    ),
    "engines that batch differently": ([{"records": [FP16, EWQ, LLAMA_CPP]}], 1, ""),
    "a newer run with other settings": ([FULL, {"records": [OTHER_SETTINGS]}], 1, ""),
    "only a run with other settings": (
        [{"records": [OTHER_SETTINGS]}],
        None,
        "mmlu: setting shots was 0, is 5",
    ),
    "a newer run on another GPU": ([FULL, FULL | {"machine": GPU | {"gpu": "L4"}}], 1, ""),
    "only a run on another GPU": ([FULL | {"machine": GPU | {"gpu": "L4"}}], None, "another gpu"),
    "only a run on a CPU": (
        [FULL | {"machine": {"device": "cpu"}}],
        None,
        "measured on cpu and on cuda",
    ),
    "another driver is no obstacle": ([FULL | {"machine": GPU | {"driver": "1"}}], 1, ""),
    "a newer run of another task": ([FULL, {"records": [MEMORY]}], 1, ""),
    "only a run of another task": ([{"records": [MEMORY]}], None, "none of the selected"),
    "a newer run of fewer variants": ([FULL, {"records": [EWQ]}], 1, ""),
    "only a run of fewer variants": ([{"records": [EWQ]}], 1, "does not cover fp16/mmlu"),
    "changed files may serve where no commit is asked for": ([FULL | {"dirty": True}], 1, ""),
}


def store(folder, specifications):
    return [
        read_run(stored_run(folder, number=day, day=day, **specification))
        for day, specification in enumerate(specifications, start=1)
    ]


@pytest.mark.parametrize(("runs", "expected", "reason"), CASES.values(), ids=CASES.keys())
def test_newest_suitable_run(tmp_path, runs, expected, reason):
    choice = choose(store(tmp_path, runs), WANTED)

    chosen = None if choice.run is None else choice.run.datetime.day
    assert chosen == expected, choice.reasons
    assert reason in "; ".join(choice.reasons)
    assert bool(choice.reasons) == bool(reason)


C = ["c" * 40, "b" * 40, "a" * 40]
OTHER_BRANCH = "d" * 40
HEAD_FULL, PARENT_FULL, OLDEST_FULL, SIDE_FULL = (
    FULL | {"commit": commit} for commit in (*C, OTHER_BRANCH)
)

# Ancestors are c, b, a from the nearest; runs from oldest to newest.
ANCESTOR_CASES = {
    "nearest, though measured earlier": ([HEAD_FULL, PARENT_FULL], 1, ""),
    "newest of the nearest commit": ([HEAD_FULL, HEAD_FULL, PARENT_FULL], 2, ""),
    "the nearest covers less": ([PARENT_FULL, HEAD_FULL | {"records": [EWQ]}], 1, ""),
    "the nearest is partial": ([PARENT_FULL, HEAD_FULL | {"session": KILLED}], 1, ""),
    "the nearest was measured from changed files": (
        [PARENT_FULL, HEAD_FULL | {"dirty": True}],
        1,
        "",
    ),
    "commits without runs are passed over": ([OLDEST_FULL], 1, ""),
    "another branch is no ancestor": ([SIDE_FULL], None, "none of the 1 stored runs"),
    "a run outside version control": ([FULL | {"commit": None}], None, "none of the 1"),
    "ancestors exist, none suitable": (
        [HEAD_FULL | {"session": KILLED}, OLDEST_FULL | {"machine": GPU | {"gpu": "L4"}}],
        None,
        "another gpu",
    ),
    "no run at all": ([], None, "none of the 0 stored runs"),
}


@pytest.mark.parametrize(
    ("runs", "expected", "reason"), ANCESTOR_CASES.values(), ids=ANCESTOR_CASES.keys()
)
def test_nearest_ancestor(tmp_path, runs, expected, reason):
    choice = choose(store(tmp_path, runs), WANTED, C)

    chosen = None if choice.run is None else choice.run.datetime.day
    assert chosen == expected, choice.reasons
    assert reason in "; ".join(choice.reasons)


def git(folder, *arguments):
    command = ["git", "-c", "user.name=n", "-c", "user.email=e", *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q")
    for content in ("one", "two", "three"):
        (folder / "file").write_text(content)
        git(folder, "add", "file")
        git(folder, "commit", "-q", "-m", content)
    return folder


def test_ancestors_are_the_commits_before_the_present_files(repository):
    head, parent, first = git(repository, "rev-list", "HEAD").split()

    assert ancestors(repository) == [parent, first]
    (repository / "file").write_text("changed")
    assert ancestors(repository) == [head, parent, first]
    (repository / "untracked").write_text("no matter")
    git(repository, "checkout", "-q", "--", "file")
    assert ancestors(repository) == [parent, first]


def test_without_git_an_ancestor_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="not a git repository"):
        ancestors(tmp_path)


def test_requests_find_their_run_in_the_storage(repository, tmp_path):
    storage = tmp_path / ".benchmarks"
    head, parent, _ = git(repository, "rev-list", "HEAD").split()
    of_parent = stored_run(storage, [FP16, EWQ], number=1, day=1, commit=parent)
    of_head = stored_run(storage, [FP16, EWQ], number=2, day=2, commit=head)

    def path_of(request):
        return find_baseline(request, storage, WANTED, repository).run.path

    assert path_of(NEWEST) == of_head
    assert path_of(ANCESTOR) == of_parent
    assert path_of(str(of_parent)) == of_parent
    assert path_of("0001") == of_parent
    assert path_of(parent[:8]) == of_parent
    assert path_of("HEAD") == of_head


@pytest.mark.parametrize("request_", [NEWEST, ANCESTOR])
def test_a_stored_run_of_two_engines_finds_its_baseline(request_, repository, tmp_path):
    storage = tmp_path / "runs"
    head, parent, _ = git(repository, "rev-list", "HEAD").split()
    records = [EWQ, LLAMA_CPP]
    before = stored_run(storage, records, number=1, day=1, commit=parent)
    after = stored_run(storage, records, number=2, day=2, commit=head)

    assert baseline_of(read_run(after), request_, storage, repository).path == before


def test_a_pinned_run_that_is_unsuitable_is_not_taken(tmp_path):
    path = stored_run(tmp_path, [FP16, FAILED])

    choice = find_baseline(str(path), tmp_path, WANTED, tmp_path)
    assert choice.run is None
    assert "gates failed" in choice.reasons[0]


def test_a_pinned_run_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no stored run 'v9'"):
        find_baseline("v9", tmp_path, WANTED, tmp_path)


def test_a_pinned_run_that_is_damaged_is_an_error(tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text("{")
    with pytest.raises(InputError, match="damaged"):
        find_baseline(str(path), tmp_path, WANTED, tmp_path)


def test_a_damaged_file_in_the_storage_is_passed_over_and_named(tmp_path):
    broken = tmp_path / "0009_x.json"
    broken.write_text('{"benchmarks": [')

    assert str(broken) in "; ".join(find_baseline(NEWEST, tmp_path, WANTED, tmp_path).reasons)
    good = stored_run(tmp_path, [FP16, EWQ])
    found = find_baseline(NEWEST, tmp_path, WANTED, tmp_path)
    assert found.run.path == good
    assert str(broken) in "; ".join(found.reasons)


def test_of_many_refused_runs_the_newest_are_explained_and_the_others_counted(tmp_path):
    refused = store(tmp_path, [{"records": [FOREIGN_MODEL]}] * 7)
    *shown, more = choose(refused, WANTED).reasons

    assert [reason.split(":")[0] for reason in shown] == [run.name for run in refused[:1:-1]]
    assert more == "and 2 older runs"
