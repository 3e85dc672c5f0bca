from __future__ import annotations

import os
from pathlib import Path

import pytest

from ewq import files
from ewq.errors import EwqError
from ewq.files import read_cached, scratch_beside, whole_folder, write_cached, write_text


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
