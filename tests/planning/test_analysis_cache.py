from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ewq.checkpoint.opening import open_checkpoint
from ewq.entropy import weights
from ewq.planning.analysis import analyze, cache_key
from tests.architectures import build


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    build("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models that were really measured, in order."""
    measured: list[str] = []
    real = weights.measure_weights

    def counted(checkpoint, *arguments):
        measured.append(checkpoint.model)
        return real(checkpoint, *arguments)

    monkeypatch.setattr(weights, "measure_weights", counted)
    return measured


def entry(cache: Path) -> Path:
    (only,) = (cache / "analyses").iterdir()
    return only


def test_the_second_analysis_measures_nothing(cache: Path, model: Path, passes: list[str]):
    first, second = analyze(model), analyze(model)

    assert len(passes) == 1
    assert first.statistics == second.statistics
    assert first.plan(0.65) == second.plan(0.65)


def test_no_cache_means_none(cache: Path, model: Path, passes: list[str]):
    analyze(model, cache=False)
    analyze(model, cache=False)

    assert len(passes) == 2
    assert not cache.exists()


def spoil_by_cutting(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def spoil_a_digit(path: Path) -> None:
    text = path.read_text()
    at = text.index('"variance": 0.') + len('"variance": 0.')
    path.write_text(text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :])


def spoil_with_nonsense(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")


def spoil_with_a_list(path: Path) -> None:
    path.write_text("[]")


def spoil_with_an_empty_object(path: Path) -> None:
    path.write_text("{}")


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_by_cutting,
        spoil_a_digit,
        spoil_with_nonsense,
        spoil_with_a_list,
        spoil_with_an_empty_object,
    ],
    ids=lambda of: of.__name__,
)
def test_a_damaged_entry_is_rebuilt(spoil, cache: Path, model: Path, passes: list[str]):
    first = analyze(model)
    spoil(entry(cache))

    assert analyze(model).statistics == first.statistics
    assert len(passes) == 2
    analyze(model)
    assert len(passes) == 2


def test_a_changed_value_anywhere_is_seen(cache: Path, model: Path, passes: list[str]):
    analyze(model)
    path = model / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][5, 5] += 1.0
    save_file(tensors, path)

    changed = analyze(model)

    assert len(passes) == 2
    assert changed.statistics == analyze(model, cache=False).statistics


def test_an_edit_between_the_sampled_pages_is_seen_by_its_time(tmp_path: Path, cache: Path):
    """The fingerprint samples large tensors; the cache must not rest on it alone."""
    folder = tmp_path / "wide"
    build("llama").save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = torch.zeros(400, 500)
    save_file(tensors, path)
    before = cache_key(open_checkpoint(folder))
    tensors[name][80, 77] = 1.0
    save_file(tensors, path)
    os.utime(path, (2_000_000_000, 2_000_000_000))
    after = cache_key(open_checkpoint(folder))

    assert before != after


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EWQ_CACHE", str(tmp_path / "file" / "cache"))

    assert analyze(model).plan(0.65).weights


def test_two_processes_at_once_agree(cache: Path, model: Path):
    code = "import sys, ewq; print(ewq.analyze(sys.argv[1]).plan().digest)"
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(model)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    said = {process.communicate()[0] for process in running}

    assert len(said) == 1
    assert all(process.returncode == 0 for process in running)
    assert analyze(model).plan().digest.encode() + b"\n" in said
    assert entry(cache).suffix == ".json"
