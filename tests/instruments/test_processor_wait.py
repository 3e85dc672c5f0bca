"""How long threads waited for a core, from the kernel's own counters."""

import pytest

from ewq.instruments import processor_wait
from ewq.instruments.processor_wait import ProcessorWait, wait_without_spinning

MS = 1_000_000


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "5"}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_threads_wait_politely_unless_told_otherwise(monkeypatch, given, expected):
    environment = dict(given)
    monkeypatch.setattr(processor_wait.os, "environ", environment)
    wait_without_spinning()
    assert environment == expected


@pytest.fixture
def threads(tmp_path, monkeypatch):
    """Sets what the kernel says of each thread: nanoseconds run and waited."""
    monkeypatch.setattr(processor_wait, "_THREADS", tmp_path)

    def say(*threads):
        for number, (ran, waited) in enumerate(threads):
            folder = tmp_path / str(number)
            folder.mkdir(exist_ok=True)
            (folder / "schedstat").write_text(f"{ran} {waited} 17\n")

    return say


def test_the_share_is_over_all_threads_and_since_the_beginning(threads):
    threads((100 * MS, 900 * MS), (5 * MS, 0))
    with ProcessorWait() as waiting:
        threads((120 * MS, 910 * MS), (15 * MS, 20 * MS))
    assert waiting.share == pytest.approx(30 / 60)


def test_an_idle_machine_has_next_to_nothing(threads):
    threads((0, 0))
    with ProcessorWait() as waiting:
        threads((1000 * MS, 1 * MS))
    assert waiting.share < 0.01


def test_a_kernel_that_does_not_count_says_nothing(threads):
    threads((0, 0))
    with ProcessorWait() as waiting:
        pass
    assert waiting.share is None


def test_without_the_counters_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(processor_wait, "_THREADS", tmp_path / "none")
    with ProcessorWait() as waiting:
        pass
    assert waiting.share is None
