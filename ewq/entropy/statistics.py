"""What one pass over a weight yields."""

from __future__ import annotations

from dataclasses import asdict, dataclass

HISTOGRAM_BINS = 256


@dataclass(frozen=True)
class WeightStatistics:
    """Exact statistics of one weight's values; sums are in float64."""

    numel: int
    minimum: float
    maximum: float
    mean: float
    variance: float
    """Population variance."""
    kurtosis: float
    """Fourth central moment over the squared variance: 3 for a normal weight, 0 for a constant."""
    sparsity: float
    """Share of exact zeros."""
    histogram_entropy: float
    """Shannon entropy in bits of NumPy's 256-bin histogram between minimum and maximum."""
    softmax_entropy: float
    """``-sum p ln p`` in nats, ``p = softmax(vec W)`` (arXiv 2503.04704)."""
    centred_softmax_entropy: float
    """``H - ln n``: softmax entropy without the size of the weight; about ``-variance / 2``."""
    nf4_error: float
    """``|W - NF4(W)| / |W|`` in Frobenius norms, blocks of 64 along the output rows."""
    int8_error: float
    """The same for 8-bit rounding with one absolute maximum per output row."""

    def to_json(self) -> dict[str, float]:
        """The statistics as a flat JSON object."""
        return asdict(self)
