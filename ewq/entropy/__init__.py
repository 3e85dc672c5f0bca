"""Exact statistics of every weight of a checkpoint."""

from dataclasses import dataclass


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
    histogram_entropy: float
    """Shannon entropy in bits of NumPy's 256-bin histogram between minimum and maximum."""
    softmax_entropy: float
    """``-sum p ln p`` in nats, ``p = softmax(vec W)`` (arXiv 2503.04704)."""

    @property
    def square_norm(self) -> float:
        """Sum of the squared values."""
        return self.numel * (self.variance + self.mean * self.mean)
