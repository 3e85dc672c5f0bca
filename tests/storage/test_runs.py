import json
import subprocess
from datetime import UTC, datetime

import pytest

from ewq.errors import InputError
from ewq.record import Verdict
from ewq.storage.runs import newest_run, read_run, read_storage, resolve_run
from tests.make_runs import COMMIT, GPU, metric, record, stored_run


@pytest.fixture
def storage(tmp_path):
    return tmp_path / ".benchmarks"


def test_reads_what_the_plugin_stored(storage):
    records = [record(), record("memory", "fp16", {"weights_bytes": metric(10)})]
    run = read_run(stored_run(storage, records))

    assert [each.to_json() for each in run.records.values()] == [each.to_json() for each in records]
    assert run.selected == (("ewq-0.65", "mmlu"), ("fp16", "memory"))
    assert run.commit == COMMIT
    assert run.datetime == datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert run.machine == GPU
    assert run.complete
    assert not run.foreign
    assert run.refused == run.lost == ()
    assert run.name == "0001 (aaaaaaaaaa)"


def test_a_run_is_complete_only_when_everything_selected_is_there(storage):
    selected = [["ewq-0.65", "mmlu"], ["ewq-0.5", "mmlu"]]
    run = read_run(stored_run(storage, [record()], session={"selected": selected}))

    assert not run.complete
    assert run.lost == (("ewq-0.5", "mmlu"),)


def test_a_run_in_which_nothing_was_measured_is_not_complete(storage):
    assert not read_run(stored_run(storage, [])).complete


def test_records_whose_gate_failed_are_known(storage):
    run = read_run(stored_run(storage, [record(verdict=Verdict.FAIL)]))

    assert run.refused == (("ewq-0.65", "mmlu"),)


def test_a_run_of_plain_pytest_benchmark_is_foreign(storage):
    path = stored_run(storage, [], foreign=True)
    document = json.loads(path.read_text())
    document["benchmarks"] = [{"fullname": "test_x", "extra_info": {}, "stats": {"min": 1}}]
    path.write_text(json.dumps(document))
    run = read_run(path)

    assert run.foreign
    assert not run.complete
    assert run.records == {}


def _no_extra_info(document):
    del document["benchmarks"][0]["extra_info"]


def _record(document):
    return document["benchmarks"][0]["extra_info"]["ewq"]


def _lose(*keys):
    def change(document):
        _record(document).pop(keys[0])

    return change


DAMAGE = {
    "record without metrics": (_lose("metrics"), "damaged: .*metrics"),
    "record of another schema": (lambda d: _record(d).update(schema=9), "schema 9"),
    "unknown verdict": (
        lambda d: _record(d).update(verdict="fine"),
        "verdict: expected one of pass, fail",
    ),
    "benchmark without extra_info": (_no_extra_info, "extra_info"),
    "date that is none": (lambda d: d.update(datetime="yesterday"), "isoformat"),
    "no list of benchmarks": (lambda d: d.update(benchmarks=3), "has no benchmarks"),
    "NaN as a metric": (
        lambda d: _record(d)["metrics"]["accuracy"].update(value=float("nan")),
        "NaN is not JSON",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_an_error_that_names_it(storage, damage, message):
    path = stored_run(storage, [record()])
    document = json.loads(path.read_text())
    damage(document)
    path.write_text(json.dumps(document))

    with pytest.raises(InputError, match=message) as raised:
        read_run(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"", b'{"benchmarks": [', b"\xff\xfe\0", b"[]", b"3"], ids=repr
)
def test_a_file_that_is_no_run_is_an_error(storage, content):
    storage.mkdir()
    path = storage / "0001_x.json"
    path.write_bytes(content)

    with pytest.raises(InputError, match=r"0001_x\.json"):
        read_run(path)


def test_the_storage_is_read_newest_first_and_damaged_files_are_reported(storage):
    old = stored_run(storage, [record()], number=2, day=1)
    new = stored_run(storage, [record()], number=1, day=2)
    broken = old.with_name("0003_x.json")
    broken.write_text("{")
    runs, damaged = read_storage(storage)

    assert [run.path for run in runs] == [new, old]
    assert len(damaged) == 1
    assert str(broken) in damaged[0]


def test_a_run_can_be_named_by_file_number_or_commit(storage, tmp_path):
    first = stored_run(storage, [record()], number=1, commit="1234567" + "0" * 33)
    second = stored_run(storage, [record()], number=12, commit="b" * 40, day=2)

    assert resolve_run(str(first), storage, tmp_path).path == first
    assert resolve_run("0001", storage, tmp_path).path == first
    assert resolve_run("12", storage, tmp_path).path == second
    assert resolve_run("1234567", storage, tmp_path).path == first
    assert resolve_run("bbbb", storage, tmp_path).path == second
    assert newest_run(storage).path == second


def test_a_branch_stands_for_its_commit(storage, tmp_path):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q", "-b", "main"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.strip()
    path = stored_run(storage, [record()], commit=head)

    assert resolve_run("main", storage, tmp_path).path == path


def test_a_finished_clean_run_stands_for_its_commit_before_later_others(storage, tmp_path):
    good = stored_run(storage, [record()], number=1, day=1)
    stored_run(storage, [record()], number=2, day=2, dirty=True)
    stored_run(storage, [record()], number=3, day=3, session={"complete": False})

    assert resolve_run(COMMIT, storage, tmp_path).path == good


def test_an_unknown_run_is_an_error_that_says_where_was_looked(storage, tmp_path):
    stored_run(storage, [record()])
    with pytest.raises(InputError, match=r"no stored run 'v9'.*among the 1 runs in"):
        resolve_run("v9", storage, tmp_path)
    with pytest.raises(InputError, match="no stored run in"):
        newest_run(tmp_path / "none")
