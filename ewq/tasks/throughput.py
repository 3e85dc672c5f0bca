"""Speed of prefill and of decoding, apart, on synthetic prompts of fixed length.

For ``B`` prompts of ``P`` tokens continued by exactly ``N``:
``prefill_tokens_per_s = B P / t_first``, ``decode_tokens_per_s = B (N - 1) / sum t_step``,
``ttft_s = t_first``. The model's own clock readings are synchronised with the
device and exclude tokenization and sampling. Metrics are medians over rounds with ``_p10`` and
``_p90``; those of a batch size ``B`` above 1 have ``_bB`` before the percentile.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from ewq.errors import BackendUnavailable, MeasurementError
from ewq.instruments.gpu import ClockState, read_clocks
from ewq.measurement import Doubt, DoubtKind, Items, Json, Metric, TaskResult
from ewq.stats import quantile
from ewq.tasks.table import Work

if TYPE_CHECKING:
    from ewq.model import Generation, LanguageModel
    from ewq.tasks.table import Inputs

TASK = "throughput"
DECODE_MODE = "decode_mode"
"""How a transformers model decoded; two of them are not compared silently."""
SEED = 20250307
_SHARES = {"": 0.5, "_p10": 0.1, "_p90": 0.9}
# Coefficient of variation above which a median is not to be trusted.
_NOISY = 0.05
# Below this a round is decided by the operating system's scheduler, however alike the rounds of
# one run look: tiny models repeat within 1 % in a run and differ by half between runs. A GPU
# keeps its own time.
_SHORTEST_S = {"cpu": 0.05, "cuda": 0.002}


@dataclass(frozen=True)
class Protocol:
    """What one round does, and how many there are."""

    prompt_tokens: int
    new_tokens: int
    batch_sizes: tuple[int, ...]
    warmup_rounds: int
    rounds: int
    seed: int = SEED
    """Of the prompts' token ids."""

    def settings(self) -> dict[str, Json]:
        """What two results must share."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "batch_sizes": list(self.batch_sizes),
            "warmup_rounds": self.warmup_rounds,
            "rounds": self.rounds,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Sample:
    """Clock readings of one batch."""

    first_token_s: float
    decode_s: float
    """All decode steps after the first token together."""


class Rounds:
    """Rounds to be timed one by one; whoever calls :meth:`one` owns the stopwatch.

    The first ``warmup_rounds`` calls count for nothing.

    Raises:
        MeasurementError: the model's context is too short for prompt and new tokens, or the
            protocol measures nothing.
    """

    def __init__(self, model: LanguageModel, protocol: Protocol) -> None:
        _check_protocol(model, protocol)
        self.protocol = protocol
        self._model = model
        self._prompts = {
            size: random_prompts(model.info.vocab_size, size, protocol.prompt_tokens, protocol.seed)
            for size in protocol.batch_sizes
        }
        self._calls = 0
        self._samples: dict[int, list[Sample]] = {size: [] for size in protocol.batch_sizes}
        self._before: ClockState | None = None
        self._unknown_clocks: str | None = None
        if protocol.warmup_rounds == 0:
            self._before = self._clocks()

    def one(self) -> None:
        """One round: every batch size once, from a synchronised start."""
        self._model.synchronize()
        for size, prompts in self._prompts.items():
            generation = self._model.generate(prompts, self.protocol.new_tokens)
            if self._calls >= self.protocol.warmup_rounds:
                self._samples[size].append(_sample(generation))
        self._calls += 1
        if self._calls == self.protocol.warmup_rounds:
            self._before = self._clocks()

    def result(self) -> TaskResult:
        """The figures of all measured rounds.

        Raises:
            MeasurementError: fewer than two rounds were measured.
        """
        measured = self._calls - self.protocol.warmup_rounds
        if measured < 2:
            raise MeasurementError(
                f"{max(measured, 0)} measured rounds after {self.protocol.warmup_rounds} to warm "
                "up: speed needs at least 2"
            )
        after = self._clocks()
        metrics: dict[str, Metric] = {}
        for size, samples in self._samples.items():
            metrics |= _metrics(self.protocol, size, samples)
        return TaskResult(
            task=TASK,
            settings=self.protocol.settings(),
            metrics=metrics,
            items=_items(self._samples),
            doubts=(*self._noise(), *self._throttling(after)),
            notes=() if self._unknown_clocks is None else (self._unknown_clocks,),
            side={
                DECODE_MODE: self._model.settings.get(DECODE_MODE),
                "clocks": {"before": _json(self._before), "after": _json(after)},
            },
        )

    def _clocks(self) -> ClockState | None:
        try:
            return read_clocks(self._model.info.device)
        except (BackendUnavailable, MeasurementError) as error:
            self._unknown_clocks = f"clock state unknown: {error}"
            return None

    def _times_s(self) -> Iterator[tuple[str, list[float]]]:
        for size, samples in self._samples.items():
            yield f"prefill at batch size {size}", [each.first_token_s for each in samples]
            yield f"decode at batch size {size}", [each.decode_s for each in samples]

    def _noise(self) -> Iterator[Doubt]:
        shortest_s = _SHORTEST_S["cpu" if self._model.info.device == "cpu" else "cuda"]
        for work, times_s in self._times_s():
            variation, median_s = _variation(times_s), statistics.median(times_s)
            if variation > _NOISY:
                text = f"noisy: times of {work} vary by {variation:.0%} (more than {_NOISY:.0%})"
                yield Doubt(DoubtKind.NOISE, text, {"variation": variation})
            if median_s < shortest_s:
                text = (
                    f"too noisy to gate: a round's {work} takes {1000 * median_s:.2g} ms "
                    f"(less than {1000 * shortest_s:.0f} ms)"
                )
                yield Doubt(DoubtKind.NOISE, text, {"median_s": median_s})

    def _throttling(self, after: ClockState | None) -> list[Doubt]:
        moments = (("before", self._before), ("after", after))
        return [
            Doubt(
                DoubtKind.THROTTLING,
                f"throttled {when} measuring: {', '.join(state.slowdowns)} "
                f"at {state.temperature_c} °C",
                {"temperature_c": state.temperature_c},
            )
            for when, state in moments
            if state is not None and state.slowdowns
        ]


def prepare(inputs: Inputs) -> Work:
    """The tier's rounds, to be timed one by one."""
    sizes = inputs.sizes
    protocol = Protocol(
        prompt_tokens=sizes.prompt_tokens,
        new_tokens=sizes.new_tokens,
        batch_sizes=sizes.batch_sizes,
        warmup_rounds=sizes.warmup_rounds,
        rounds=sizes.rounds,
    )
    rounds = Rounds(inputs.model(), protocol)
    return Work(rounds.one, rounds.result, sizes.rounds, sizes.warmup_rounds)


def pair(result: TaskResult, reference: TaskResult) -> dict[str, Metric]:
    """``decode_ratio`` and ``prefill_ratio`` to the reference (over 1: faster), per batch size.

    Medians of rounds; the error comes from both medians' by the delta method.
    Only figures of one session on one machine may be compared: that is the caller's to see to.

    Raises:
        MeasurementError: the two ran under different protocols.
    """
    if dict(result.settings) != dict(reference.settings):
        raise MeasurementError("speeds are not comparable: they were measured differently")
    ratios = {}
    for size in cast("list[int]", result.settings["batch_sizes"]):
        for phase in ("decode", "prefill"):
            key = f"{phase}_tokens_per_s{_suffix(size)}"
            ratio = _ratio(result.metrics[key], reference.metrics[key])
            ratios[f"{phase}_ratio{_suffix(size)}"] = ratio
    return ratios


def _check_protocol(model: LanguageModel, protocol: Protocol) -> None:
    wanted = protocol.prompt_tokens + protocol.new_tokens
    if wanted > model.info.context_length:
        raise MeasurementError(
            f"{protocol.prompt_tokens} prompt and {protocol.new_tokens} new tokens do not fit the "
            f"model's context of {model.info.context_length}; ask for fewer"
        )
    if protocol.prompt_tokens < 1 or protocol.new_tokens < 2 or not protocol.batch_sizes:
        raise MeasurementError(
            "throughput needs a prompt token, two new tokens and a batch size at least; got "
            f"{protocol.prompt_tokens}, {protocol.new_tokens} and {protocol.batch_sizes}"
        )


def random_prompts(vocab_size: int, count: int, length: int, seed: int) -> list[list[int]]:
    """``count`` prompts of ``length`` uniformly random token ids, the same for the same seed."""
    ids = np.random.default_rng(seed).integers(0, vocab_size, (count, length))
    return [[int(token) for token in row] for row in ids]


def _sample(generation: Generation) -> Sample:
    return Sample(generation.first_token_s, sum(generation.step_s))


def _items(samples: Mapping[int, Sequence[Sample]]) -> Items:
    rounds = [(size, sample) for size, of_size in samples.items() for sample in of_size]
    return Items(
        {
            "batch_size": [size for size, _ in rounds],
            "first_token_s": [sample.first_token_s for _, sample in rounds],
            "decode_s": [sample.decode_s for _, sample in rounds],
        }
    )


def _variation(times_s: Sequence[float]) -> float:
    """Coefficient of variation."""
    return statistics.stdev(times_s) / statistics.fmean(times_s) if len(times_s) > 1 else 0.0


def _metrics(protocol: Protocol, size: int, samples: Sequence[Sample]) -> dict[str, Metric]:
    prefilled = size * protocol.prompt_tokens
    decoded = size * (protocol.new_tokens - 1)
    prefill = [prefilled / sample.first_token_s for sample in samples]
    decode = [decoded / sample.decode_s for sample in samples]
    first = [sample.first_token_s for sample in samples]
    suffix = _suffix(size)
    return {
        **_spread(f"prefill_tokens_per_s{suffix}", prefill, "tokens/s", True),
        **_spread(f"decode_tokens_per_s{suffix}", decode, "tokens/s", True),
        **_spread(f"ttft_s{suffix}", first, "s", False),
    }


def _spread(
    key: str, values: Sequence[float], unit: str, higher_is_better: bool
) -> dict[str, Metric]:
    """Median, 10th and 90th percentile."""
    metrics = {}
    for suffix, share in _SHARES.items():
        found = quantile(values, share)
        metrics[key + suffix] = Metric(
            found.value, unit, higher_is_better, len(values), found.stderr
        )
    return metrics


def _ratio(new: Metric, base: Metric) -> Metric:
    ratio = new.value / base.value
    relative = [(metric.stderr or 0.0) / metric.value for metric in (new, base)]
    stderr = ratio * math.hypot(*relative)
    return Metric(ratio, "ratio", True, min(new.n, base.n), stderr)


def _suffix(size: int) -> str:
    return "" if size == 1 else f"_b{size}"


def _json(state: ClockState | None) -> Json:
    return None if state is None else state.to_json()
