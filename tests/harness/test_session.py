"""Reading a run's questions and texts: shown while it lasts, whatever comes of it."""

from types import SimpleNamespace

import pytest

from ewq.checkpoint.embedded import fixture_path
from ewq.errors import InputError
from ewq.harness.session import RunData
from ewq.tasks.tiers import tier_sizes


class Told:
    def __init__(self):
        self.steps = []

    def start(self, label, total, unit):
        self.steps.append(label)

    def advance(self, amount):
        pass

    def finish(self):
        self.steps.append("finished")


def test_reading_is_shown_once(tmp_path):
    told = Told()
    options = SimpleNamespace(mmlu=str(fixture_path("mmlu")), texts=str(tmp_path), tier="smoke")
    data = RunData(options, tier_sizes("smoke", "cpu"), told)
    assert data.mmlu is data.mmlu
    assert told.steps == ["reading MMLU questions", "finished"]
    with pytest.raises(InputError):
        _ = data.texts
    assert told.steps[2:] == ["reading texts", "finished"]
