"""A key-value cache computed once and shared by many rows without being changed by them."""

from __future__ import annotations

import copy
from typing import Any

SHAREABLE_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")
"""Cache layers that grow by concatenation, so that a shallow copy never writes to its source.

A ``DummyLayer`` stands for a layer that attends to an earlier one's keys and holds none itself.
"""


def new_cache(config: Any) -> Any:  # noqa: ANN401 (transformers is untyped)
    """An empty growing cache laid out for the model (full or sliding attention per layer)."""
    from transformers import DynamicCache

    return DynamicCache(config=config)


def can_share(config: Any) -> bool:  # noqa: ANN401 (transformers is untyped)
    """Whether every layer's cache can be shared; recurrent states, for one, cannot."""
    return all(type(layer).__name__ in SHAREABLE_LAYERS for layer in new_cache(config).layers)


def fork(cache: Any, rows: int) -> Any:  # noqa: ANN401 (transformers is untyped)
    """The cache of one sequence as the cache of ``rows`` equal ones, sharing memory until written.

    The original is left as it was whatever is appended to the copy.
    """
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in forked.layers:
        if layer.keys is not None:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
    return forked
