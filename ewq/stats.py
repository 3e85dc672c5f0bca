"""Paired and clustered statistics, built on scipy.

Two measurements of the same items are compared item by item: what both share
(a hard question, a surprising sentence) cancels, and differences of a tenth of
a percent become visible. Items of one document or subject are not independent,
so errors are computed over *clusters*: totals of whole documents or subjects.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ewq.errors import MeasurementError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

Clusters = Sequence[Hashable] | None

ALPHA = 0.05
POWER = 0.8
BOOTSTRAP_RESAMPLES = 2000
BOOTSTRAP_SEED = 20250307
FEWEST_CLUSTERS = 4
"""With fewer documents or subjects there is no error to be had from them; their items stand in."""
_FEWEST_TO_BOOTSTRAP = 20
# Resampled indices held at once by the bootstrap: 16 MB of int64.
_BOOTSTRAP_BATCH_ELEMENTS = 2_000_000


@dataclass(frozen=True)
class Interval:
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


@dataclass(frozen=True)
class PairedAccuracy:
    """Accuracy of a variant minus accuracy of its reference, on the same questions."""

    delta: float
    """``(n10 - n01) / n``: negative when the variant is worse."""
    stderr: float
    """Clustered standard error of ``delta``; never under one answer's worth, ``1 / n``."""
    freedom: int
    """Degrees of freedom of ``stderr``: clusters - 1."""
    flips: float
    """Share of questions whose correctness changed either way, ``(n01 + n10) / n``."""
    n01: int
    """Questions that were right and became wrong."""
    n10: int
    """Questions that were wrong and became right."""
    mcnemar_p: float
    interval: Interval
    """95 % bounds of ``delta``; see :func:`paired_interval`."""
    smallest_detectable: float
    """True difference that this comparison would have found with 80 % power at 5 %."""
    n: int


@dataclass(frozen=True)
class PairedRatio:
    """``ln(PPL_new / PPL_base)`` over the same tokens."""

    ln_ratio: float
    stderr: float | None
    interval: Interval | None
    """95 % bounds; see :func:`paired_interval`. ``None`` where there is no error."""
    freedom: int | None
    """Degrees of freedom of ``stderr``: clusters - 1; ``None`` where there is none."""


@dataclass(frozen=True)
class NonInferiority:
    """Whether a difference is shown to be no worse than a margin."""

    bound: float
    """One-sided lower confidence bound of the difference."""
    p_value: float
    """Probability of data this good if the true difference were exactly ``-margin``."""
    holds: bool


def mcnemar_exact(n01: int, n10: int) -> float:
    """Two-sided exact McNemar p-value of ``n01`` against ``n10`` discordant pairs.

    Under equality each discordant pair falls either way with probability one
    half: ``min(1, 2 P(Bin(n01 + n10, 1/2) <= min(n01, n10)))`` (McNemar 1947).
    """
    from scipy.stats import binomtest

    discordant = n01 + n10
    return float(binomtest(n01, discordant, 0.5).pvalue) if discordant else 1.0


def paired_accuracy(
    base_correct: ArrayLike, new_correct: ArrayLike, clusters: Clusters = None
) -> PairedAccuracy:
    """Compare two sets of right/wrong answers to the same questions.

    Args:
        base_correct: right (1) or wrong (0) for each question, reference, ``[n]``.
        new_correct: the same questions in the same order, variant, ``[n]``.
        clusters: a label per question (its subject); ``None``, or fewer than
            :data:`FEWEST_CLUSTERS`, treats questions as independent.

    Raises:
        MeasurementError: the lengths differ or there is no question.
    """
    base, new = _pair(base_correct, new_correct)
    difference = new - base
    n = len(difference)
    n01, n10 = int(np.sum(difference < 0)), int(np.sum(difference > 0))
    labels = None if clusters is None else clusters_of(clusters)
    estimate = clustered_ratio(difference, np.ones(n), labels)
    # n equal answers do not prove that the next one is equal too.
    stderr = max(estimate.stderr or 0.0, 1.0 / n)
    freedom = max(1, estimate.clusters - 1)
    detectable = smallest_detectable_difference(stderr, df=freedom)
    return PairedAccuracy(
        delta=estimate.value,
        stderr=stderr,
        freedom=freedom,
        flips=(n01 + n10) / n,
        n01=n01,
        n10=n10,
        mcnemar_p=mcnemar_exact(n01, n10),
        interval=paired_interval(difference, np.ones(n), labels, least_stderr=1.0 / n),
        smallest_detectable=max(detectable, fewest_flips() / n),
        n=n,
    )


def paired_ratio(
    base: ArrayLike, new: ArrayLike, tokens: ArrayLike, clusters: Clusters = None
) -> PairedRatio:
    """``ln(PPL_new / PPL_base)`` from negative log-likelihoods of the same items.

    Args:
        base: summed negative log-likelihood of each item in nats, reference, ``[n]``.
        new: the same items in the same order, variant, ``[n]``.
        tokens: scored tokens of each item, ``[n]``.
        clusters: a label per item (its document); ``None`` treats items as independent.

    Raises:
        MeasurementError: the lengths differ or there is no item.
    """
    before, after = _pair(base, new)
    estimate = clustered_ratio(after - before, tokens, clusters)
    if estimate.stderr is None:
        return PairedRatio(estimate.value, None, None, None)
    return PairedRatio(
        ln_ratio=estimate.value,
        stderr=estimate.stderr,
        interval=paired_interval(after - before, tokens, clusters),
        freedom=estimate.freedom,
    )


def clusters_of(labels: Sequence[Hashable]) -> Sequence[Hashable] | None:
    """The labels as clusters; ``None``, each item by itself, where there are too few of them."""
    return labels if len(set(labels)) >= FEWEST_CLUSTERS else None


def clustered_ratio(
    totals: ArrayLike, sizes: ArrayLike, clusters: Clusters = None
) -> RatioEstimate:
    """``sum(totals) / sum(sizes)`` with a standard error over clusters.

    The linearised (ratio estimator's) error, for ``G`` clusters ``g``:
    ``sqrt(G/(G-1) * sum_g (T_g - ratio * S_g)^2) / sum(sizes)``. With unit
    sizes and every item its own cluster that is ``sd(ddof=1) / sqrt(n)``.

    Args:
        totals: what each item adds to the numerator (nats, right answers), ``[n]``.
        sizes: what each item adds to the denominator (tokens, bytes, questions), ``[n]``.
        clusters: a label per item; ``None`` makes every item its own cluster.

    Raises:
        MeasurementError: no item, lengths that differ, or a cluster without size.
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


def bootstrap_clustered(
    totals: ArrayLike,
    sizes: ArrayLike,
    clusters: Clusters = None,
    *,
    confidence: float = 1 - ALPHA,
    resamples: int = BOOTSTRAP_RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> Interval:
    """Percentile-bootstrap interval of ``sum(totals) / sum(sizes)``, drawing whole clusters.

    With fewer than about twenty clusters the interval is too narrow; the
    standard error with Student's t is then the one to trust. One cluster gives
    an interval of no width. Arguments and errors are those of :func:`clustered_ratio`.
    """
    from scipy.stats import bootstrap

    numerators, denominators = _by_cluster(totals, sizes, clusters)
    ratio = float(numerators.sum() / denominators.sum())
    if len(numerators) < 2 or np.ptp(numerators / denominators) == 0.0:
        return Interval(ratio, ratio)
    result = bootstrap(
        (numerators, denominators),
        _ratio_of_sums,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BOOTSTRAP_BATCH_ELEMENTS // len(numerators)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(float(result.confidence_interval.low), float(result.confidence_interval.high))


def paired_interval(
    totals: ArrayLike, sizes: ArrayLike, clusters: Clusters = None, *, least_stderr: float = 0.0
) -> Interval:
    """95 % bounds of ``sum(totals) / sum(sizes)`` that hold for few clusters too.

    By the clustered bootstrap from twenty clusters on; with fewer, or where no
    item differs, by Student's t over the standard error, which is taken to be
    ``least_stderr`` at least. Other arguments and errors are those of
    :func:`clustered_ratio`.
    """
    estimate = clustered_ratio(totals, sizes, clusters)
    if estimate.clusters >= _FEWEST_TO_BOOTSTRAP and estimate.stderr:
        return bootstrap_clustered(totals, sizes, clusters)
    stderr = max(estimate.stderr or 0.0, least_stderr)
    half = half_width(stderr, max(1, estimate.clusters - 1))
    return Interval(estimate.value - half, estimate.value + half)


def half_width(stderr: float, df: float | None = None) -> float:
    """Half of a two-sided 95 % interval: the normal's, or Student's for ``df`` degrees of freedom.

    Raises:
        MeasurementError: ``stderr`` is negative or not finite.
    """
    _check_test_arguments(stderr, ALPHA)
    return _quantile(1 - ALPHA / 2, df) * stderr


def two_sided_p(value: float, stderr: float, df: float | None = None) -> float:
    """Probability of a value as far from zero as this one, where the truth is zero."""
    if stderr == 0.0:
        return 1.0 if value == 0.0 else 0.0
    return 2 * _tail(abs(value) / stderr, df)


def noninferiority(
    delta: float, stderr: float, margin: float, alpha: float = ALPHA, df: float | None = None
) -> NonInferiority:
    """Test ``true difference > -margin`` against ``true difference <= -margin``.

    Higher must be better: negate a difference where lower is better. ``df``
    are the degrees of freedom of ``stderr`` (clusters - 1), ``None`` for the normal.

    Raises:
        MeasurementError: ``stderr`` is negative, ``alpha`` outside ``(0, 1)``, or not finite.
    """
    _check_test_arguments(stderr, alpha, delta, margin)
    bound = delta - _quantile(1 - alpha, df) * stderr
    if stderr == 0.0:
        return NonInferiority(bound, 0.0 if delta > -margin else 1.0, delta > -margin)
    p_value = _tail((delta + margin) / stderr, df)
    return NonInferiority(bound, p_value, bound > -margin)


def smallest_detectable_difference(
    stderr: float, alpha: float = ALPHA, power: float = POWER, df: float | None = None
) -> float:
    """True difference that a two-sided test at ``alpha`` finds with probability ``power``.

    ``(q(1 - alpha/2) + q(power)) * stderr`` with the normal's quantiles, or
    Student's for ``df`` degrees of freedom.
    """
    _check_test_arguments(stderr, alpha)
    return (_quantile(1 - alpha / 2, df) + _quantile(power, df)) * stderr


def share_stderr(count: int, n: int) -> float:
    """Standard error of ``count`` of ``n``: ``sqrt(p (1 - p) / (n - 1))``, and never nothing.

    Where all or none are counted that would be zero, though the next one may well differ. There
    ``n`` and ``p`` are taken with two more of either kind (Agresti and Coull 1998):
    ``sqrt(p' (1 - p') / n')`` with ``n' = n + 4`` and ``p' = (count + 2) / n'``.

    Raises:
        MeasurementError: nothing was counted.
    """
    if n < 1:
        raise MeasurementError("nothing was counted, so a share of it has no error")
    if 0 < count < n:
        return math.sqrt(count / n * (1 - count / n) / (n - 1))
    widened = n + 4
    share = (count + 2) / widened
    return math.sqrt(share * (1 - share) / widened)


def pooled_stderr(stderrs: Sequence[float], sizes: Sequence[int]) -> float:
    """Standard error of a size-weighted mean over groups, pooled as lm-evaluation-harness does.

    ``sqrt(sum((n_i - 1) se_i^2 n_i) / (N - k) / N)`` for ``k`` groups, ``N = sum n_i``.

    Raises:
        MeasurementError: the lengths differ, or no group has two items.
    """
    if len(stderrs) != len(sizes):
        raise MeasurementError(f"{len(stderrs)} errors for {len(sizes)} groups: cannot pool them")
    total, groups = sum(sizes), len(sizes)
    if total <= groups:
        raise MeasurementError(f"{total} items in {groups} groups are too few to pool an error")
    squares = sum((n - 1) * se**2 * n for se, n in zip(stderrs, sizes, strict=True))
    return math.sqrt(squares / (total - groups) / total)


def _pair(base: ArrayLike, new: ArrayLike) -> tuple[Array, Array]:
    before = np.asarray(base, dtype=np.float64).ravel()
    after = np.asarray(new, dtype=np.float64).ravel()
    if len(before) != len(after):
        raise MeasurementError(
            f"cannot pair {len(after)} items with {len(before)} of the reference: "
            "both must be measured on the same items"
        )
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


def _ratio_of_sums(numerators: Array, denominators: Array, axis: int = -1) -> Array:
    return np.asarray(numerators.sum(axis=axis) / denominators.sum(axis=axis))


def fewest_flips() -> int:
    """Flips, all one way, below which the exact McNemar test can never reject at ``ALPHA``."""
    return math.ceil(math.log2(2 / ALPHA))


def _check_test_arguments(stderr: float, alpha: float, *others: float) -> None:
    if not all(map(math.isfinite, (stderr, alpha, *others))) or stderr < 0 or not 0 < alpha < 1:
        raise MeasurementError(f"cannot test with a standard error of {stderr} at alpha {alpha}")


def _quantile(probability: float, df: float | None) -> float:
    from scipy.stats import norm, t

    return float(norm.ppf(probability) if df is None else t.ppf(probability, df))


def _tail(statistic: float, df: float | None) -> float:
    from scipy.stats import norm, t

    return float(norm.sf(statistic) if df is None else t.sf(statistic, df))
