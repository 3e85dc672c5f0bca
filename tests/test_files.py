from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ewq import files
from ewq.errors import EwqError, InputError
from ewq.files import (
    check_output,
    read_cached,
    scratch_beside,
    whole_folder,
    write_cached,
    write_text,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_kept_value_is_found_under_its_key_only():
    write_cached("answers", "one", {"b": [1, 2.5], "a": "ä"})

    assert read_cached("answers", "one") == {"b": [1, 2.5], "a": "ä"}
    assert read_cached("answers", "two") is None
    assert read_cached("questions", "one") is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"digest": "", "value": 1}', "\udc80"])
def test_a_damaged_entry_is_as_good_as_none(cache: Path, content: str):
    write_cached("answers", "one", 1)
    path = cache / "answers" / "one.json"
    path.write_text(content, errors="surrogateescape")

    assert read_cached("answers", "one") is None


def test_an_entry_moved_to_another_key_is_not_taken(cache: Path):
    write_cached("answers", "one", 1)
    (cache / "answers" / "one.json").rename(cache / "answers" / "two.json")

    assert read_cached("answers", "two") is None


def test_a_cache_that_cannot_be_written_keeps_nothing(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path / "file"))
    write_cached("answers", "one", 1)

    assert read_cached("answers", "one") is None


def test_a_folder_appears_when_the_block_ends(tmp_path: Path):
    with whole_folder(tmp_path / "model") as work:
        (work / "inner").mkdir()
        (work / "inner" / "file").write_text("x")
        (work / "inner" / "file").chmod(0o600)
        assert not (tmp_path / "model").exists()

    assert (tmp_path / "model" / "inner" / "file").read_text() == "x"
    assert (tmp_path / "model" / "inner" / "file").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_empty_folder_is_replaced_and_a_used_one_is_not(tmp_path: Path):
    target = tmp_path / "model"
    target.mkdir()
    with whole_folder(target) as work:
        (work / "file").write_text("first")
    with pytest.raises(EwqError, match="cannot write"), whole_folder(target) as work:
        (work / "file").write_text("second")

    assert (target / "file").read_text() == "first"


def test_of_two_that_make_a_shared_folder_the_first_wins(tmp_path: Path):
    target = tmp_path / "model"
    with whole_folder(target, shared=True) as slow:
        (slow / "file").write_text("slow")
        with whole_folder(target, shared=True) as fast:
            (fast / "file").write_text("fast")

    assert (target / "file").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_block_that_fails_leaves_nothing(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "model") as work:
        (work / "file").write_text(str(1 / 0))

    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_is_removed_after_an_error(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), scratch_beside(tmp_path / "out.gguf") as work:
        (work / "part").write_text(str(1 / 0))

    assert list(tmp_path.iterdir()) == []


def test_the_longest_legal_name_can_be_written(tmp_path: Path):
    path = tmp_path / ("n" * 255)

    assert write_text(path, "x").read_text() == "x"


def test_a_full_cache_says_where_to_move_it(cache: Path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(EwqError, match=r"No space left on device; set EWQ_CACHE"):
        write_text(cache / "entry.json", "x")


LEAVE_SCRATCH = """
import os, sys
from pathlib import Path
from ewq.files import scratch_beside
with scratch_beside(Path(sys.argv[1])) as work:
    (work / "half").write_text("x")
    print(work, flush=True)
    sys.stdin.read()
"""


def test_the_scratch_of_a_killed_process_is_removed_and_of_a_living_one_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "ABANDONED_AFTER_S", 0)
    out = tmp_path / "out.gguf"
    command = [sys.executable, "-c", LEAVE_SCRATCH, str(out)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        left = Path(child.stdout.readline().strip())
        with scratch_beside(out):
            assert (left / "half").exists()
        child.kill()
    assert (left / "half").exists()
    with scratch_beside(out):
        assert not left.exists()
    assert not list(tmp_path.iterdir())


REFUSED = {
    "a component too long": ("a" * 300, False, "too long"),
    "a folder above too long": (f"{'a' * 300}/x.gguf", False, "too long"),
    "a zero byte": ("a\0b", False, "null"),
    "a folder for a file": ("folder", False, "is a folder"),
    "a folder in use": ("folder", True, "not an empty folder"),
    "a file for a folder": ("file", True, "not an empty folder"),
    "a file above": ("file/x", False, "Not a directory"),
    "a file far above": ("file/x/y", True, "Not a directory"),
}


@pytest.mark.parametrize(("name", "folder", "reason"), REFUSED.values(), ids=REFUSED)
def test_an_output_that_could_not_be_written_is_refused(
    tmp_path: Path, name: str, folder: bool, reason: str
):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    with pytest.raises(InputError, match=reason) as caught:
        check_output(tmp_path / name, folder=folder)
    assert "\n" not in str(caught.value)


def test_an_output_without_room_is_refused_with_both_figures(tmp_path: Path):
    with pytest.raises(InputError, match=r"needs at least 9000000000\.00 GB.* GB free"):
        check_output(tmp_path / "x.gguf", needed_bytes=9 * 10**18)


@pytest.mark.parametrize("name", ["new/deep/x.gguf", "b" * 250, "file", "mô-hình"])
def test_an_output_that_can_be_written_is_not_made_by_the_check(tmp_path: Path, name: str):
    (tmp_path / "file").touch()
    check_output(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
