import numpy as np
import pytest

from ewq.tasks import noise_floor
from tests.tasks.mmlu_fakes import HashModel, byte_tokenizer, make_data


class BatchSensitiveModel(HashModel):
    """Rounds differently when rows go through together, as half precision does."""

    def last_logprobs(self, prefix, suffixes, columns):
        scored = super().last_logprobs(prefix, suffixes, columns)
        return scored + np.float32(0.25 if len(suffixes) > 1 else 0.0)


class RestlessModel(HashModel):
    """Gives other numbers every time."""

    calls = 0

    def last_logprobs(self, prefix, suffixes, columns):
        self.calls += 1
        return super().last_logprobs(prefix, suffixes, list(np.roll(columns, self.calls)))


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(bos=True)


def values(model, **options):
    result = noise_floor.run(model, make_data(), **{"questions": 200} | options)
    return {key: metric.value for key, metric in result.metrics.items()}, result.notes


def test_a_deterministic_model_has_no_noise(tokenizer):
    measured, notes = values(HashModel(tokenizer))
    assert set(measured.values()) == {0.0}
    assert notes == ()


def test_batch_composition_is_told_from_repetition(tokenizer):
    measured, notes = values(BatchSensitiveModel(tokenizer))
    assert measured["logprob_change/repeat"] == 0
    assert measured["logprob_change/regrouped"] == pytest.approx(0.25, abs=1e-5)
    assert measured["flips/regrouped"] == 0
    assert notes == ()


def test_a_model_that_changes_its_mind_is_said(tokenizer):
    measured, notes = values(RestlessModel(tokenizer))
    assert measured["flips/repeat"] > 0
    assert "same run twice" in notes[0]


def test_the_sample_is_bounded(tokenizer):
    model = HashModel(tokenizer)
    result = noise_floor.run(model, make_data(), questions=5)
    assert len(result.items) == 5
    assert len(model.asked) == 15
