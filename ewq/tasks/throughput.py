"""Speed of prefill and of decoding, apart, on synthetic prompts of fixed length.

For ``B`` prompts of ``P`` tokens continued by exactly ``N``:
``prefill_tokens_per_s = B P / t_first``, ``decode_tokens_per_s = B (N - 1) / sum t_step``,
``ttft_s = t_first``, by the model's own clock. Metrics are medians over rounds with ``_p10`` and
``_p90``; those of a batch size ``B`` above 1 have ``_bB`` before the percentile.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import product
from typing import cast

import numpy as np

from ewq.codec import encode
from ewq.errors import BackendUnavailable, MeasurementError
from ewq.instruments.gpu import ClockState, read_clocks
from ewq.measurement import Doubt, DoubtKind, Items, Metric, TaskResult, require_same_settings
from ewq.model import LanguageModel
from ewq.stats import quantile
from ewq.tasks.table import Inputs, Work
from ewq.tasks.tiers import Tier

TASK = "throughput"
DECODE_MODE = "decode_mode"
"""How a transformers model decoded; two of them are not compared silently."""
_SEED = 20250307
_PROTOCOL = ("prompt_tokens", "new_tokens", "batch_sizes", "warmup_rounds", "rounds")
_COLUMNS = ("batch_size", "first_token_s", "decode_s")
_SHARES = {"": 0.5, "_p10": 0.1, "_p90": 0.9}
# Coefficient of variation above which a median is not to be trusted.
_NOISY = 0.05
# Below this the operating system's scheduler decides: tiny models repeat within 1 % in a run and
# differ by half between runs. A GPU keeps its own time.
_SHORTEST_S = {"cpu": 0.05, "cuda": 0.002}


class Rounds:
    """Rounds to be timed one by one; whoever calls :meth:`one` owns the stopwatch.

    A MeasurementError where the model's context is too short.
    """

    def __init__(self, model: LanguageModel, sizes: Tier) -> None:
        prompt, new = sizes.prompt_tokens, sizes.new_tokens
        model.info.require_context(prompt + new, f"{prompt} prompt and {new} new tokens")
        self._sizes = sizes
        self._model = model
        self._prompts = {
            size: random_prompts(model.info.vocab_size, size, prompt) for size in sizes.batch_sizes
        }
        self._calls = 0
        self._times_s: dict[int, list[tuple[float, float]]] = {n: [] for n in sizes.batch_sizes}
        self._before: ClockState | None = None
        self._unknown_clocks: str | None = None

    def one(self) -> None:
        """One round: every batch size once, from a synchronised start."""
        self._model.synchronize()
        for size, prompts in self._prompts.items():
            generation = self._model.generate(prompts, self._sizes.new_tokens)
            if self._calls >= self._sizes.warmup_rounds:
                self._times_s[size].append((generation.first_token_s, sum(generation.step_s)))
        self._calls += 1
        if self._calls == self._sizes.warmup_rounds:
            self._before = self._clocks()

    def result(self) -> TaskResult:
        """The figures of all measured rounds; a MeasurementError of fewer than two."""
        warmup = self._sizes.warmup_rounds
        measured = max(self._calls - warmup, 0)
        if measured < 2:
            raise MeasurementError(f"{measured} measured rounds: speed needs at least 2")
        after = self._clocks()
        rows = [(size, *times_s) for size, own in self._times_s.items() for times_s in own]
        return TaskResult(
            task=TASK,
            settings=encode({name: getattr(self._sizes, name) for name in _PROTOCOL})
            | {"seed": _SEED},
            metrics=self._metrics(),
            items=Items(dict(zip(_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))),
            doubts=(*self._noise(), *self._throttling(after)),
            notes=() if self._unknown_clocks is None else (self._unknown_clocks,),
            side={
                DECODE_MODE: self._model.settings.get(DECODE_MODE),
                "clocks": {"before": encode(self._before), "after": encode(after)},
            },
        )

    def _clocks(self) -> ClockState | None:
        try:
            return read_clocks(self._model.info.device)
        except (BackendUnavailable, MeasurementError) as error:
            self._unknown_clocks = f"clock state unknown: {error}"
            return None

    def _metrics(self) -> dict[str, Metric]:
        prompt, new = self._sizes.prompt_tokens, self._sizes.new_tokens
        metrics: dict[str, Metric] = {}
        for size, times_s in self._times_s.items():
            suffix = _suffix(size)
            prefill = [size * prompt / first_s for first_s, _ in times_s]
            decode = [size * (new - 1) / decode_s for _, decode_s in times_s]
            metrics |= _spread(f"prefill_tokens_per_s{suffix}", prefill, "tokens/s", True)
            metrics |= _spread(f"decode_tokens_per_s{suffix}", decode, "tokens/s", True)
            metrics |= _spread(f"ttft_s{suffix}", [first_s for first_s, _ in times_s], "s", False)
        return metrics

    def _noise(self) -> Iterator[Doubt]:
        shortest_s = _SHORTEST_S["cpu" if self._model.info.device == "cpu" else "cuda"]
        for size, (place, phase) in product(self._times_s, enumerate(("prefill", "decode"))):
            work, times_s = f"{phase} at batch size {size}", [t[place] for t in self._times_s[size]]
            variation = statistics.stdev(times_s) / statistics.fmean(times_s)
            median_s = statistics.median(times_s)
            if variation > _NOISY:
                text = f"noisy: times of {work} vary by {variation:.0%} (more than {_NOISY:.0%})"
                yield Doubt(DoubtKind.NOISE, text, {"variation": variation})
            if median_s < shortest_s:
                took = f"a round's {work} takes {1000 * median_s:.2g} ms"
                text = f"too noisy to gate: {took} (less than {1000 * shortest_s:.0f} ms)"
                yield Doubt(DoubtKind.NOISE, text, {"median_s": median_s})

    def _throttling(self, after: ClockState | None) -> Iterator[Doubt]:
        for when, state in (("before", self._before), ("after", after)):
            if state is not None and state.slowdowns:
                why = f"{', '.join(state.slowdowns)} at {state.temperature_c} °C"
                figures = {"temperature_c": state.temperature_c}
                yield Doubt(DoubtKind.THROTTLING, f"throttled {when} measuring: {why}", figures)


def prepare(inputs: Inputs) -> Work:
    """The tier's rounds, to be timed one by one."""
    sizes = inputs.sizes
    rounds = Rounds(inputs.model(), sizes)
    return Work(rounds.one, rounds.result, sizes.rounds, sizes.warmup_rounds)


def pair(result: TaskResult, reference: TaskResult) -> dict[str, Metric]:
    """``decode_ratio`` and ``prefill_ratio`` to the reference (over 1: faster), per batch size.

    Medians of rounds, of one session on one machine; the error is the delta method's.
    """
    require_same_settings(TASK, result.settings, reference.settings)
    sizes = cast("list[int]", result.settings["batch_sizes"])
    ratios = {}
    for suffix, phase in product(map(_suffix, sizes), ("decode", "prefill")):
        key = f"{phase}_tokens_per_s{suffix}"
        ratios[f"{phase}_ratio{suffix}"] = _ratio(result.metrics[key], reference.metrics[key])
    return ratios


def random_prompts(vocab_size: int, count: int, length: int) -> list[list[int]]:
    """``count`` prompts of ``length`` uniformly random token ids, always the same."""
    ids = np.random.default_rng(_SEED).integers(0, vocab_size, (count, length))
    rows: list[list[int]] = ids.tolist()
    return rows


def _spread(key: str, values: Sequence[float], unit: str, better: bool) -> dict[str, Metric]:
    metrics = {}
    for suffix, share in _SHARES.items():
        value, stderr = quantile(values, share)
        metrics[key + suffix] = Metric(value, unit, better, len(values), stderr)
    return metrics


def _ratio(new: Metric, base: Metric) -> Metric:
    ratio = new.value / base.value
    stderr = ratio * math.hypot(*((each.stderr or 0.0) / each.value for each in (new, base)))
    return Metric(ratio, "ratio", True, min(new.n, base.n), stderr)


def _suffix(size: int) -> str:
    return "" if size == 1 else f"_b{size}"
