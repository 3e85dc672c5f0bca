"""Where a model goes, by what is asked for and what the machine has."""

import pytest
import torch

from ewq.errors import BackendUnavailable
from ewq.harness.subject import find_device


@pytest.mark.parametrize(
    ("asked", "gpus", "found"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
        ("cuda:all", 2, "cuda:all"),
        ("cuda:all", 1, "cuda:0"),
    ],
)
def test_devices_are_named(monkeypatch, asked, gpus, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert find_device(asked) == found


@pytest.mark.parametrize(("asked", "gpus"), [("cuda", 0), ("cuda:all", 0), ("cuda:1", 1)])
def test_a_device_that_is_not_there_is_refused(monkeypatch, asked, gpus):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(BackendUnavailable, match=f"--ewq-device {asked}: torch sees no such"):
        find_device(asked)
