"""Exact statistics of weights, from one pass over the stored bytes."""

from ewq.entropy.statistics import WeightStatistics

__all__ = ["WeightStatistics"]
