import pytest
import torch

from ewq.backends.batching import log_softmax, plan_batches, split_shared
from ewq.errors import InputError, MeasurementError
from ewq.model import ModelInfo

INFO = ModelInfo("transformers", "cpu", "float32", 5, 10, 1, 8.0)
WIDE = (0, 10_000, 10_000)


def ones(lengths):
    return [1] * len(lengths)


@pytest.mark.parametrize(
    "lengths",
    [[3], [5, 1, 4, 4, 2], [7] * 20, list(range(1, 200)), [1000, 1, 1, 1]],
    ids=["one", "few", "equal", "all different", "one giant"],
)
@pytest.mark.parametrize("tokens", [1, 50, 10_000])
def test_every_row_is_in_exactly_one_batch(lengths, tokens):
    batches = plan_batches(lengths, ones(lengths), 7, tokens, 10_000)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))


def test_a_batch_with_its_shared_tokens_stays_in_the_budget():
    lengths = [10] * 30
    for batch in plan_batches(lengths, ones(lengths), 90, 450, 10_000):
        assert len(batch) * 100 <= 450


def test_needed_logits_are_bounded_too():
    lengths = [10] * 9
    batches = plan_batches(lengths, lengths, 0, 10_000, 25)
    assert [len(batch) for batch in batches] == [2, 2, 2, 2, 1]


def test_what_exceeds_a_limit_stands_alone():
    assert plan_batches([500, 400], [1, 1], 0, 100, 10) == [(0,), (1,)]


def test_longest_rows_come_first_and_ties_keep_their_order():
    assert plan_batches([2, 9, 2, 9], ones([1] * 4), *WIDE) == [(1, 3, 0, 2)]


def test_padding_stays_small_once_batches_are_large():
    lengths = list(range(1, 400))
    for batch in plan_batches(lengths, ones(lengths), *WIDE):
        padded = len(batch) * lengths[batch[0]]
        assert padded <= 512 or padded - sum(lengths[i] for i in batch) <= 0.1 * padded


def test_composition_depends_on_lengths_alone():
    lengths = [5, 1, 4, 4, 2, 60, 61]
    plans = {tuple(plan_batches(lengths, ones(lengths), *WIDE)) for _ in range(3)}
    assert len(plans) == 1


@pytest.mark.parametrize("prefix", [[], [1], [1, 2, 3]])
def test_split_shared_loses_no_token(prefix):
    suffixes = [[7, 8], [9]]
    shared, rows = split_shared(INFO, prefix, suffixes)
    assert [shared + row for row in rows] == [prefix + suffix for suffix in suffixes]
    assert all(rows)


def test_rows_that_cannot_be_scored_are_refused():
    with pytest.raises(InputError, match="without tokens"):
        split_shared(INFO, [], [[]])
    with pytest.raises(MeasurementError, match="6 tokens exceed the model's context of 5"):
        split_shared(INFO, [1, 2, 3], [[4], [4, 5, 6]])


@pytest.mark.parametrize("vocabulary", [96, 262_144])
def test_it_is_exact_to_float32_whatever_the_vocabulary(vocabulary):
    logits = 3 * torch.randn((8, vocabulary), generator=torch.Generator().manual_seed(1))
    exact = logits.double().log_softmax(-1)
    logprobs, sums = log_softmax(logits)
    assert (logprobs - exact).abs().max() < 5e-6
    assert (sums - logits.double().logsumexp(-1)).abs().max() < 5e-6


def test_it_leaves_the_logits_as_they_are():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    log_softmax(logits)
    assert logits.tolist() == [[1.0, 2.0, 3.0]]
