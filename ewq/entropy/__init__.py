"""Exact statistics of weights, from one pass over the stored bytes."""
