"""One metric over comparable stored runs: what is expected of the next, and where it shifted."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ewq.errors import InputError
from ewq.gating.change import doubt_about, incomparable
from ewq.measurement import Metric
from ewq.record import Record, RecordKey, Verdict
from ewq.stats import Interval, student_quantile
from ewq.storage.runs import Run
from ewq.tasks.table import figure_of
from ewq.variants import table_place

TRACKED = (
    "perplexity/perplexity", "divergence/kld_mean", "mmlu/accuracy",
    "throughput/decode_tokens_per_s", "memory/weights_bytes",
)  # fmt: skip
"""Metrics that are followed where nobody names others."""
WINDOW, FEWEST = 10, 3
"""Earlier runs that say what is expected of the newest, and how few say nothing."""
ALPHA = 0.05
"""Probability that any line of an unchanged run lies outside what is expected of it."""
SHIFT_ALPHA = 0.01
"""Probability that any shift is found in a line that has none."""
_PERMUTATIONS, _SEED = 1999, 20250307
_EQUAL = 1e-6
"""Relative scatter that is arithmetic, not a change."""


class Shift(NamedTuple):
    """A change of level: the first run of the new one, and the mean on either side."""

    place: int
    before: float
    after: float


@dataclass(frozen=True)
class Trend:
    """One metric of one variant in the runs that have it, oldest first; the newest run is last."""

    runs: tuple[Run, ...]
    records: tuple[Record, ...]
    metric: str
    window: int = WINDOW
    lines: int = 1
    """How many lines share :data:`ALPHA`."""

    @property
    def record(self) -> Record:
        """The newest."""
        return self.records[-1]

    @property
    def metrics(self) -> list[Metric]:
        """The figure in each run."""
        return [record.metrics[self.metric] for record in self.records]

    @cached_property
    def expected(self) -> Interval | None:
        """Where the newest value is expected; ``None`` after fewer than :data:`FEWEST` runs."""
        figure = figure_of(self.record.task, self.metric)
        earlier = self.metrics[:-1][-self.window :]
        if len(earlier) < FEWEST:
            return None
        found = prediction(earlier, ALPHA / self.lines)
        exact = found.low == found.high or all(metric.stderr is None for metric in earlier)
        if figure and figure.tolerance and exact:
            # Exact figures repeat to the bit: what a baseline tolerates is expected here too.
            middle = (found.low + found.high) / 2
            half = max(found.high - middle, figure.tolerance.allowed(middle))
            return Interval(middle - half, middle + half)
        return found

    @cached_property
    def shifts(self) -> tuple[Shift, ...]:
        """See :func:`shifts`."""
        return shifts([metric.value for metric in self.metrics])

    @property
    def verdict(self) -> Verdict:
        """Of the newest value against what is expected; doubtful clocks do not fail."""
        if self.expected is None:
            return Verdict.NO_BASELINE
        newest, (low, high) = self.metrics[-1], self.expected
        if low <= newest.value <= high or newest.higher_is_better is None:
            return Verdict.PASS
        if newest.higher_is_better == (newest.value > high):
            return Verdict.IMPROVED
        doubt = doubt_about(self.metric, self.record, Verdict.FAIL)
        return Verdict.INCONCLUSIVE if doubt else Verdict.FAIL


@dataclass(frozen=True)
class History:
    """What the stored runs say about the newest of them."""

    runs: tuple[Run, ...]
    """Those that may be compared with the newest, oldest first; it is the last."""
    left_out: tuple[str, ...]
    """A sentence on each other run."""
    trends: tuple[Trend, ...]

    @property
    def exit_code(self) -> int:
        """1 where a line is worse than expected, 2 where none has enough runs to tell, else 0."""
        verdicts = {trend.verdict for trend in self.trends}
        if Verdict.FAIL in verdicts:
            return 1
        return 0 if verdicts - {Verdict.NO_BASELINE} else 2


def history_of(runs: Iterable[Run], metrics: Sequence[str] = (), window: int = WINDOW) -> History:
    """Follow metrics (``METRIC`` or ``TASK/METRIC``; default: :data:`TRACKED`) of the newest run.

    An InputError where no run has records, or the newest lacks one of ``metrics``.
    """
    ordered = sorted(runs, key=lambda run: (run.datetime, run.path.name))
    newest = next((run for run in reversed(ordered) if run.records), None)
    if newest is None:
        raise InputError("no stored run of ewq: run `pytest benchmarks/` first")
    kept, left_out = [], []
    for run in ordered:
        reasons = ["holds no ewq record"]
        if run.records and not (reasons := run.identity.differences(newest.identity)):
            kept.append(run)
        else:
            left_out.append(f"{run.name}: {'; '.join(reasons)}")
    named = _named(metrics, newest)
    trends = tuple(_trend(kept, *each, window, len(named)) for each in named)
    return History(tuple(kept), tuple(left_out), trends)


def _named(metrics: Sequence[str], run: Run) -> list[tuple[RecordKey, str]]:
    """The records and metrics of a run that are meant, by metric, variants in table order."""
    keys = sorted(run.records, key=lambda key: table_place(key[0]))
    known = [(key, metric) for key in keys for metric in run.records[key].metrics]
    found = []
    for text in metrics or TRACKED:
        hits = [(k, m) for k, m in known if text in (m, f"{k[1]}/{m}")]
        if not hits and metrics:
            names = ", ".join(dict.fromkeys(metric for _, metric in known if "/" not in metric))
            raise InputError(f"the newest run, {run.name}, has no metric {text!r}; it has {names}")
        found += sorted(hits, key=lambda hit: hit[0][1])
    return found


def _trend(runs: Sequence[Run], key: RecordKey, metric: str, window: int, lines: int) -> Trend:
    having = [run for run in runs if key in run.records and metric in run.records[key].metrics]
    newest = runs[-1].records[key]
    alike = [run for run in having if not incomparable(run.records[key], newest)]
    records = tuple(run.records[key] for run in alike)
    return Trend(tuple(alike), records, metric, window, lines)


def prediction(earlier: Sequence[Metric], alpha: float) -> Interval:
    """Where one more value lies with probability ``1 - alpha``, were nothing changed.

    ``mean ± t(1 - alpha / 2, n - 1) * s * sqrt(1 + 1 / n)`` of ``n`` values: Student's interval for
    one future value. ``s`` is their scatter, or their mean standard error where that is larger:
    figures that repeat to the last digit are not known to the last digit.
    """
    values = [metric.value for metric in earlier]
    n, mean = len(values), statistics.fmean(values)
    errors = statistics.fmean(metric.stderr or 0.0 for metric in earlier)
    scatter = max(statistics.stdev(values), errors)
    half = student_quantile(1 - alpha / 2, n - 1) * scatter * math.sqrt(1 + 1 / n)
    return Interval(mean - half, mean + half)


def shifts(values: Sequence[float], alpha: float = SHIFT_ALPHA) -> tuple[Shift, ...]:
    """Where the level of a series changed, by binary segmentation (Scott and Knott 1974).

    The best split, of the largest likelihood ratio for two means (Hawkins 1977), counts if at most
    a share ``alpha`` of random orders has one as good: so often is a shift found where there is
    none. Either side is then a series of its own.
    """
    places = [0, *_places(np.asarray(values, np.float64), alpha), len(values)]
    means = [statistics.fmean(values[a:b]) for a, b in pairwise(places)]
    return tuple(map(Shift, places[1:-1], means, means[1:]))


def _places(values: np.ndarray[tuple[int], np.dtype[np.float64]], alpha: float) -> list[int]:
    n, least = len(values), 2
    if n < 2 * least or np.ptp(values) <= _EQUAL * np.abs(values).max():
        return []
    own = values - values.mean()
    rng = np.random.default_rng(_SEED)
    orders = rng.permuted(np.tile(own, (_PERMUTATIONS, 1)), axis=1)
    sizes = np.arange(least, n - least + 1)
    sums = np.vstack([own, orders]).cumsum(axis=1)[:, sizes - 1]
    gains = sums**2 / (sizes * (n - sizes))
    best = gains.max(axis=1)
    if np.mean(best >= best[0] * (1 - 1e-9)) > alpha:
        return []
    place = int(sizes[gains[0].argmax()])
    later = [place + each for each in _places(values[place:], alpha)]
    return [*_places(values[:place], alpha), place, *later]
