"""Damaged files: refused with a reason or evaluated, never the end of the process."""

import os
import shutil
import struct

import numpy as np
import pytest

from ewq.checkpoint.gguf_header import read_header
from ewq.errors import CheckpointError, EwqError, MeasurementError
from ewq.gguf import probe
from tests.gguf.mutations import mutate

FILES = int(os.environ.get("EWQ_FUZZ_FILES", "36"))
"""The acceptance run uses 200."""


def load(path):
    from ewq.backends.llama_cpp import load_llama_cpp

    return load_llama_cpp(path, None, threads=1)


def evaluated_or_refused(path):
    try:
        model = load(path)
    except EwqError as error:
        return str(error)
    try:
        scores = model.last_logprobs([3, 4, 5], [[6], [7, 8]], [1, 2])
        assert np.isfinite(scores).all()
    except MeasurementError as error:
        return str(error)
    finally:
        model.close()
    return ""


@pytest.fixture(scope="module")
def sound(tiny_file):
    data = tiny_file.read_bytes()
    return data, len(data) - read_header(tiny_file).weights_bytes


def test_mutated_files_are_refused_or_evaluated(sound, tmp_path):
    data, header_bytes = sound
    outcomes = {}
    for seed in range(FILES):
        kind, damaged = mutate(data, header_bytes, seed)
        path = tmp_path / f"{seed}.gguf"
        path.write_bytes(damaged)
        reason = evaluated_or_refused(path)
        assert "\n" not in reason, (seed, kind, reason)
        outcomes.setdefault(bool(reason), []).append((seed, kind, reason))
        path.unlink()
    assert outcomes[True], "no mutation was refused: the damage does not reach the header"
    assert outcomes[False], "no mutation was evaluated: the harness refuses everything"


def changed(data, key, value):
    """The file with a uint32 metadata value replaced."""
    at = data.index(key.encode()) + len(key) + 4
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


LIES = {
    "no blocks": ("llama.block_count", 0),
    "too many blocks": ("llama.block_count", 2**31),
    "no heads": ("llama.attention.head_count", 0),
    "odd heads": ("llama.attention.head_count", 3),
    "another width": ("llama.embedding_length", 4096),
    "no context": ("llama.context_length", 0),
    "rope wider than a head": ("llama.rope.dimension_count", 2**20),
}


@pytest.mark.parametrize(("key", "value"), LIES.values(), ids=LIES)
def test_sound_headers_that_lie_end_in_a_line(sound, tmp_path, key, value):
    path = tmp_path / "lie.gguf"
    path.write_bytes(changed(sound[0], key, value))
    assert read_header(path).tensors
    reason = evaluated_or_refused(path)
    assert reason
    assert "\n" not in reason


def test_weights_that_are_not_numbers_are_refused(sound, tiny_file, tmp_path):
    data, header_bytes = sound
    path = tmp_path / "nan.gguf"
    path.write_bytes(data[:header_bytes] + b"\xff" * (len(data) - header_bytes))
    with pytest.raises(EwqError, match=r"not finite|cannot load|refuses|aborts"):
        load(path)


@pytest.mark.parametrize(
    ("does", "reason"),
    [("kill -ABRT $$", r"aborts on this file .SIGABRT."), ("exec sleep 60", r"takes over 3 s")],
)
def test_how_a_child_ended_is_a_reason_here(tmp_path, monkeypatch, does, reason):
    path = tmp_path / "any.gguf"
    path.touch()
    script = tmp_path / "child"
    script.write_text(f"{does}\n")
    monkeypatch.setattr(probe, "_command", lambda path: ["/bin/sh", str(script)])
    monkeypatch.setattr(probe, "TIMEOUT_S", 3)
    with pytest.raises(CheckpointError, match=reason):
        probe.probe_file(path)


def test_a_file_that_passed_is_not_tried_again_while_it_and_llama_cpp_stay(
    tiny_file, tmp_path, monkeypatch
):
    file = tmp_path / "own.gguf"
    shutil.copy(tiny_file, file)
    probe.probe_file(file)
    monkeypatch.setattr(probe, "_command", lambda path: ["false"])
    probe.probe_file(file)
    with monkeypatch.context() as other:
        other.setattr(probe, "version", lambda package: "another")
        with pytest.raises(CheckpointError):
            probe.probe_file(file)
    os.utime(file, ns=(1, 1))
    with pytest.raises(CheckpointError):
        probe.probe_file(file)
