import itertools
import json
from types import MappingProxyType

import numpy as np
import pytest

from ewq.codec import encode
from ewq.errors import BackendUnavailable, MeasurementError
from ewq.instruments.gpu import ClockState
from ewq.measurement import DoubtKind, Items
from ewq.model import Generation
from ewq.tasks import throughput
from ewq.tasks.tiers import Tier
from tests.tasks.numpy_model import NumpyModel

COOL = ClockState(1980, 60, 300.0, ())
HOT = ClockState(1200, 93, 300.0, ("software thermal slowdown",))


class TimedModel(NumpyModel):
    """Answers at once and claims the given times for a batch, one after another."""

    settings = MappingProxyType({"engine": "numpy"})

    def __init__(self, first_token_s=(0.5,), step_s=(0.25,)):
        super().__init__(context_length=600)
        self.events = []
        self._first = itertools.cycle(first_token_s)
        self._step = itertools.cycle(step_s)

    def synchronize(self):
        self.events.append("synchronize")

    def generate(self, prompts, new_tokens):
        self.events.append((len(prompts), len(prompts[0]), new_tokens))
        self.prompts = prompts
        tokens = tuple((0,) * new_tokens for _ in prompts)
        return Generation(tokens, next(self._first), (next(self._step),) * (new_tokens - 1))


def sizes(prompt_tokens, new_tokens, batch_sizes, warmup_rounds, rounds):
    lengths = prompt_tokens, new_tokens, batch_sizes
    rest = {"sample_tokens": 12, "noise_questions": 8, "lm_eval_documents": 8}
    return Tier(24, 256, 128, *lengths, rounds, warmup_rounds, **rest)


def run(model, protocol):
    rounds = throughput.Rounds(model, protocol)
    for _ in range(protocol.warmup_rounds + protocol.rounds):
        rounds.one()
    return rounds.result()


def test_prefill_and_decode_are_computed_apart():
    result = run(TimedModel(), sizes(100, 11, (1, 8), 1, 3))
    value = {key: metric.value for key, metric in result.metrics.items()}
    assert value["prefill_tokens_per_s"] == pytest.approx(100 / 0.5)
    assert value["decode_tokens_per_s"] == pytest.approx(10 / 2.5)
    assert value["ttft_s"] == pytest.approx(0.5)
    assert value["prefill_tokens_per_s_b8"] == pytest.approx(8 * 100 / 0.5)
    assert value["decode_tokens_per_s_b8_p10"] == pytest.approx(8 * 10 / 2.5)
    assert result.doubts == ()


def test_medians_and_percentiles_are_over_measured_rounds_only():
    # The first two rounds warm up and are slow.
    model = TimedModel(first_token_s=(9.0, 9.0, 1.0, 1.01, 1.02, 1.03, 1.04))
    result = run(model, sizes(100, 2, (1,), 2, 5))
    times = result.items.column("first_token_s")
    assert times == [1.0, 1.01, 1.02, 1.03, 1.04]
    assert result.metrics["ttft_s"].value == pytest.approx(1.02)
    assert result.metrics["ttft_s_p10"].value == pytest.approx(np.quantile(times, 0.1))
    assert result.metrics["ttft_s_p90"].value == pytest.approx(np.quantile(times, 0.9))
    assert result.metrics["ttft_s"].n == 5
    assert 0 < result.metrics["ttft_s"].stderr < 0.03
    assert Items.from_json(json.loads(json.dumps(result.items.to_json()))) == result.items


def test_every_round_runs_each_batch_size_once_from_a_synchronised_start():
    model = TimedModel()
    run(model, sizes(10, 4, (1, 8), 1, 2))
    assert model.events == ["synchronize", (1, 10, 4), (8, 10, 4)] * 3


def test_prompts_are_the_same_for_every_model():
    prompts = throughput.random_prompts(50, 8, 20)
    assert prompts == throughput.random_prompts(50, 8, 20)
    assert prompts[0] != prompts[1]
    assert {len(prompt) for prompt in prompts} == {20}
    assert 0 <= min(map(min, prompts)) <= max(map(max, prompts)) < 50


def test_times_that_vary_are_called_noisy():
    result = run(TimedModel(first_token_s=(1.0, 2.0)), sizes(10, 2, (1,), 0, 4))
    assert len(result.items.column("decode_s")) == 4
    (doubt,) = result.doubts
    assert (doubt.kind, set(doubt.figures)) == (DoubtKind.NOISE, {"variation"})
    assert doubt.text.startswith("noisy: times of prefill at batch size 1 vary by ")


def test_rounds_too_short_for_a_processor_are_called_so():
    model = TimedModel(first_token_s=(0.005,), step_s=(0.25,))
    (doubt,) = run(model, sizes(10, 2, (1,), 0, 4)).doubts
    assert (doubt.kind, doubt.figures) == (DoubtKind.NOISE, {"median_s": 0.005})
    assert doubt.text.startswith("too noisy to gate: a round's prefill at batch size 1 takes 5 ms")


@pytest.mark.parametrize(
    ("states", "texts"),
    [
        pytest.param((COOL, COOL), (), id="cool"),
        pytest.param(
            (COOL, HOT),
            ("throttled after measuring: software thermal slowdown at 93 °C",),
            id="hot at the end",
        ),
        pytest.param((None, None), (), id="no GPU"),
    ],
)
def test_clocks_are_read_before_and_after(monkeypatch, states, texts):
    readings = iter(states)
    monkeypatch.setattr(throughput, "read_clocks", lambda device: next(readings))
    result = run(TimedModel(), sizes(10, 4, (1,), 1, 2))
    assert tuple(doubt.text for doubt in result.doubts) == texts
    assert {doubt.kind for doubt in result.doubts} <= {DoubtKind.THROTTLING}
    moments = [encode(state) for state in states]
    assert list(result.side["clocks"].values()) == moments


@pytest.mark.parametrize("error", [MeasurementError, BackendUnavailable])
def test_a_driver_that_tells_no_clocks_is_noted(monkeypatch, error):
    def refuse(device):
        raise error("Not Supported")

    monkeypatch.setattr(throughput, "read_clocks", refuse)
    result = run(TimedModel(), sizes(10, 4, (1,), 1, 2))
    assert result.notes == ("clock state unknown: Not Supported",)


def test_ratios_are_to_the_reference():
    protocol = sizes(100, 11, (1, 8), 0, 3)
    base = run(TimedModel(first_token_s=(0.5,), step_s=(0.2,)), protocol)
    new = run(TimedModel(first_token_s=(1.0,), step_s=(0.1,)), protocol)
    ratios = {key: metric.value for key, metric in throughput.pair(new, base).items()}
    assert ratios == pytest.approx(
        {"decode_ratio": 2, "prefill_ratio": 0.5, "decode_ratio_b8": 2, "prefill_ratio_b8": 0.5}
    )


def test_a_ratios_error_joins_both_errors():
    protocol = sizes(100, 11, (1,), 0, 4)
    steady = run(TimedModel(), protocol)
    varying = run(TimedModel(step_s=(0.25, 0.26, 0.25, 0.24)), protocol)
    one = throughput.pair(varying, steady)["decode_ratio"].stderr
    both = throughput.pair(varying, varying)["decode_ratio"].stderr
    assert both == pytest.approx(one * 2**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        pytest.param(
            sizes(600, 128, (1,), 0, 2),
            "600 prompt and 128 new tokens: 728",
            id="context",
        ),
        pytest.param(sizes(10, 4, (1,), 2, 1), "1 measured rounds", id="one round"),
    ],
)
def test_a_protocol_that_measures_nothing_is_an_error(protocol, message):
    with pytest.raises(MeasurementError, match=message):
        run(TimedModel(), protocol)


def test_different_protocols_cannot_be_paired():
    runs = [run(TimedModel(), sizes(n, 4, (1,), 0, 2)) for n in (10, 20)]
    with pytest.raises(MeasurementError, match="prompt_tokens is 10 here, 20 there"):
        throughput.pair(*runs)
