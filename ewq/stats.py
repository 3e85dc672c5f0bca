"""Paired and clustered statistics, built on scipy.

Measurements of the same items are compared item by item: what both share cancels. Items of one
document or subject are not independent, so errors are computed over *clusters*, their totals.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betainc, ndtr, ndtri, stdtr, stdtrit

from ewq.errors import MeasurementError
from ewq.measurement import Metric

Array = NDArray[np.float64]
Clusters = Sequence[Hashable] | None

ALPHA = 0.05
FEWEST_FLIPS = math.ceil(math.log2(2 / ALPHA))
"""Flips, all one way, below which the exact McNemar test can never reject at ``ALPHA``."""
POWER = 0.8
BOOTSTRAP_RESAMPLES = 2000
BOOTSTRAP_SEED = 20250307
ALIKE = 1e-12
"""An error so small is rounding: all clusters have the same share."""
FEWEST_CLUSTERS = 4
"""With fewer documents or subjects there is no error to be had from them; their items stand in."""
_FEWEST_TO_BOOTSTRAP = 20
_BOOTSTRAP_BATCH_ELEMENTS = 2_000_000
"""Resampled indices held at once: 16 MB of int64."""


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class RatioEstimate:
    """A mean, or ratio of two totals, with its clustered error."""

    value: float
    stderr: float | None
    """``None`` where there is one cluster only: nothing to estimate an error from."""
    clusters: int

    @property
    def freedom(self) -> int | None:
        """Degrees of freedom of ``stderr``; ``None`` where there is none."""
        return None if self.stderr is None else self.clusters - 1


class PairedAnswers(NamedTuple):
    """Right and wrong answers of a variant and of its reference to the same questions."""

    delta: Metric
    """Accuracy of the variant minus that of the reference."""
    flips: Metric
    mcnemar_p: Metric

    @property
    def smallest_detectable(self) -> float:
        """As :func:`smallest_detectable_difference`, but never fewer flips than a test needs."""
        found = smallest_detectable_difference(self.delta.stderr or 0.0, self.delta.freedom)
        return max(found, FEWEST_FLIPS / self.delta.n)


def mcnemar_exact(n01: int, n10: int) -> float:
    """Two-sided exact McNemar p-value of ``n01`` against ``n10`` discordant pairs.

    ``min(1, 2 P(Bin(n01 + n10, 1/2) <= min(n01, n10)))`` (McNemar 1947).
    """
    discordant = n01 + n10
    return min(1.0, 2 * float(bdtr(min(n01, n10), discordant, 0.5))) if discordant else 1.0


def paired_answers(
    base_correct: ArrayLike, new_correct: ArrayLike, clusters: Clusters = None
) -> PairedAnswers:
    """Compare right (1) and wrong (0) answers to the same questions, each ``[n]``.

    ``clusters`` are the questions' subjects, see :func:`clusters_of`. The error of the difference
    is never under one answer's worth, ``1 / n``: equal answers do not prove the next one equal.
    """
    base, new = _pair(base_correct, new_correct)
    difference, n = new - base, len(base)
    n01, n10 = int(np.sum(difference < 0)), int(np.sum(difference > 0))
    labels = None if clusters is None else clusters_of(clusters)
    least = 1.0 / max(n, 1)
    delta = paired_mean(difference, np.ones(n), labels, "fraction", True, least_stderr=least)
    flips = Metric((n01 + n10) / n, "fraction", False, n, share_stderr(n01 + n10, n))
    return PairedAnswers(delta, flips, Metric(mcnemar_exact(n01, n10), "p", None, n))


def paired_mean(
    totals: ArrayLike,
    sizes: ArrayLike,
    clusters: Clusters,
    unit: str,
    higher_is_better: bool | None,
    *,
    least_stderr: float = 0.0,
) -> Metric:
    """The difference ``sum(totals) / sum(sizes)``, its clustered error and its 95 % bounds."""
    found, n = clustered_ratio(totals, sizes, clusters), int(np.sum(sizes))
    if found.stderr is None and not least_stderr:
        return Metric(found.value, unit, higher_is_better, n)
    stderr, freedom = max(found.stderr or 0.0, least_stderr), max(1, found.clusters - 1)
    bounds = paired_interval(totals, sizes, clusters, least_stderr=least_stderr)
    return Metric(found.value, unit, higher_is_better, n, stderr, freedom, bounds)


def clusters_of(labels: Sequence[Hashable]) -> Sequence[Hashable] | None:
    """The labels as clusters; ``None``, each item by itself, where there are too few of them."""
    return labels if len(set(labels)) >= FEWEST_CLUSTERS else None


def clustered_ratio(
    totals: ArrayLike, sizes: ArrayLike, clusters: Clusters = None
) -> RatioEstimate:
    """``sum(totals) / sum(sizes)``, each ``[n]``, with a standard error over clusters.

    The linearised (ratio estimator's) error, for ``G`` clusters ``g``, by default one an item:
    ``sqrt(G/(G-1) * sum_g (T_g - ratio * S_g)^2) / sum(sizes)``.
    A MeasurementError without items, or of a cluster without size.
    """
    numerators, denominators = _by_cluster(totals, sizes, clusters)
    whole = float(denominators.sum())
    ratio = float(numerators.sum()) / whole
    count = len(numerators)
    if count < 2:
        return RatioEstimate(ratio, None, count)
    residuals = numerators - ratio * denominators
    variance = count / (count - 1) * float(residuals @ residuals)
    return RatioEstimate(ratio, math.sqrt(variance) / whole, count)


def paired_interval(
    totals: ArrayLike, sizes: ArrayLike, clusters: Clusters = None, *, least_stderr: float = 0.0
) -> Interval:
    """95 % bounds of ``sum(totals) / sum(sizes)`` that hold for few clusters too.

    By the percentile bootstrap, drawing whole clusters, from twenty on; with fewer, or where no
    item differs, by Student's t over the standard error, taken to be ``least_stderr`` at least.
    """
    numerators, denominators = _by_cluster(totals, sizes, clusters)
    estimate = clustered_ratio(numerators, denominators)
    if estimate.clusters >= _FEWEST_TO_BOOTSTRAP and estimate.stderr:
        # As scipy.stats.bootstrap draws, whose import takes most of a second.
        rng, size = np.random.default_rng(BOOTSTRAP_SEED), len(numerators)
        step = max(1, _BOOTSTRAP_BATCH_ELEMENTS // size)
        ratios: list[float] = []
        for begin in range(0, BOOTSTRAP_RESAMPLES, step):
            drawn = rng.integers(0, size, (min(step, BOOTSTRAP_RESAMPLES - begin), size))
            ratios += (numerators[drawn].sum(axis=1) / denominators[drawn].sum(axis=1)).tolist()
        return Interval(*np.quantile(ratios, [ALPHA / 2, 1 - ALPHA / 2]).tolist())
    stderr = max(estimate.stderr or 0.0, least_stderr)
    half = half_width(stderr, max(1, estimate.clusters - 1))
    return Interval(estimate.value - half, estimate.value + half)


def paired_ratio(before: Sequence[float], after: Sequence[float]) -> tuple[float, Interval]:
    """The ratio of two positive figures measured in pairs, ``after / before``, with 95 % bounds.

    Student's interval over the logarithms of the pairs' ratios; a MeasurementError of one pair.
    """
    old, new = _pair(before, after)
    estimate = clustered_ratio(np.log(new / old), np.ones(len(new)))
    if estimate.stderr is None:
        raise MeasurementError("one pair has no error: measure at least two")
    half = half_width(estimate.stderr, estimate.freedom)
    low, ratio, high = (math.exp(estimate.value + each) for each in (-half, 0.0, half))
    return ratio, Interval(low, high)


def half_width(stderr: float, df: float | None = None) -> float:
    """Half of a two-sided 95 % interval: Student's for ``df`` degrees of freedom, else normal."""
    return student_quantile(1 - ALPHA / 2, df) * stderr


def two_sided_p(value: float, stderr: float, df: float | None = None) -> float:
    """Probability of a value as far from zero as this one, where the truth is zero."""
    if stderr == 0.0:
        return 1.0 if value == 0.0 else 0.0
    return 2 * _beyond(abs(value) / stderr, df)


def noninferiority(delta: float, stderr: float, margin: float, df: float | None = None) -> float:
    """One-sided p-value of ``true difference > -margin``: of data this good were it ``-margin``.

    Higher must be better. ``df`` are the degrees of freedom of ``stderr``, ``None`` for the normal.
    A MeasurementError where an argument is not finite.
    """
    if not all(map(math.isfinite, (delta, stderr, margin))) or stderr < 0:
        raise MeasurementError(f"cannot test {delta} with a standard error of {stderr}")
    if stderr == 0.0:
        return 0.0 if delta > -margin else 1.0
    return _beyond((delta + margin) / stderr, df)


def smallest_detectable_difference(stderr: float, df: float | None = None) -> float:
    """True difference that a two-sided test at ``ALPHA`` finds with probability ``POWER``.

    ``(q(1 - ALPHA/2) + q(POWER)) * stderr``, normal quantiles or Student's for ``df``.
    """
    return (student_quantile(1 - ALPHA / 2, df) + student_quantile(POWER, df)) * stderr


def share_stderr(count: int, n: int) -> float:
    """Standard error of ``count`` of ``n``: ``sqrt(p (1 - p) / (n - 1))``, and never nothing.

    Where that would be zero, though the next one may well differ, two more of either kind count
    (Agresti and Coull 1998): ``n' = n + 4`` and ``p' = (count + 2) / n'`` in ``p' (1 - p') / n'``.
    A MeasurementError where nothing was counted.
    """
    if n < 1:
        raise MeasurementError("nothing was counted, so a share of it has no error")
    if 0 < count < n:
        return math.sqrt(count / n * (1 - count / n) / (n - 1))
    share = (count + 2) / (n + 4)
    return math.sqrt(share * (1 - share) / (n + 4))


def clustered_share_stderr(stderr: float | None, count: int, n: int) -> float:
    """The error of a share over clusters; that of its items where these are one, or alike."""
    return stderr if stderr and stderr > ALIKE else share_stderr(count, n)


def pooled_stderr(stderrs: Sequence[float], sizes: Sequence[int]) -> float:
    """Standard error of a size-weighted mean over groups, pooled as lm-evaluation-harness does.

    ``sqrt(sum((n_i - 1) se_i^2 n_i) / (N - k) / N)`` for ``k`` groups, ``N = sum n_i > k``.
    """
    total = sum(sizes)
    squares = sum((n - 1) * se**2 * n for se, n in zip(stderrs, sizes, strict=True))
    return math.sqrt(squares / (total - len(sizes)) / total)


def quantile(values: ArrayLike, share: float) -> tuple[float, float]:
    """The ``share`` quantile (linear interpolation) and its Maritz-Jarrett standard error.

    The error is the spread of the order statistics, as of independent values, under the beta
    distribution of a quantile's position with Harrell and Davis's parameters ``(n + 1) share`` and
    ``(n + 1)(1 - share)``. A MeasurementError of fewer than two values.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    n = len(ordered)
    if n < 2 or not 0 < share < 1:
        raise MeasurementError(f"no error for the {share} quantile of {n} values: 2 are needed")
    ranks = np.arange(n + 1) / n
    weights = np.diff(betainc((n + 1) * share, (n + 1) * (1 - share), ranks))
    value = float(np.quantile(ordered, share))
    deviations = ordered - value  # centred: squares of raw values would cancel badly
    first, second = float(weights @ deviations), float(weights @ deviations**2)
    return value, math.sqrt(max(0.0, second - first**2))


def _pair(base: ArrayLike, new: ArrayLike) -> tuple[Array, Array]:
    before, after = (np.asarray(each, dtype=np.float64).ravel() for each in (base, new))
    if len(before) != len(after):
        raise MeasurementError(f"cannot pair {len(after)} items with {len(before)}")
    return before, after


def _by_cluster(totals: ArrayLike, sizes: ArrayLike, clusters: Clusters) -> tuple[Array, Array]:
    """Sums of both over each cluster, in order of first appearance."""
    numerators, denominators = _pair(totals, sizes)
    if clusters is not None:
        if len(clusters) != len(numerators):
            raise MeasurementError(f"{len(clusters)} cluster labels for {len(numerators)} items")
        numbers: dict[Hashable, int] = {}
        index = np.array([numbers.setdefault(label, len(numbers)) for label in clusters], np.intp)
        numerators = np.bincount(index, numerators).astype(np.float64)
        denominators = np.bincount(index, denominators).astype(np.float64)
    if len(numerators) == 0 or not np.all(denominators > 0):
        raise MeasurementError("nothing to average: no items, or a cluster of size zero")
    return numerators, denominators


def student_quantile(share: float, df: float | None = None) -> float:
    """The quantile of Student's distribution for ``df`` degrees of freedom, else the normal's."""
    return float(ndtri(share) if df is None else stdtrit(df, share))


def _beyond(value: float, df: float | None) -> float:
    """The probability of more than ``value`` in the same distribution."""
    return float(ndtr(-value) if df is None else stdtr(df, -value))
