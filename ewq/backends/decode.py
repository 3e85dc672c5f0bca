"""Greedy decoding with a key-value cache, timed step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ewq.backends.prefix_cache import new_cache
from ewq.model import Generation

if TYPE_CHECKING:
    import torch


class EagerDecoder:
    """Decoding with a cache that grows by one token a step; works for every method."""

    mode = "eager"

    def __init__(self, model: Any) -> None:  # noqa: ANN401 (transformers is untyped)
        self._model = model

    def begin(self, rows: int, length: int) -> Any:  # noqa: ANN401
        """An empty cache for ``rows`` sequences of at most ``length`` tokens."""
        return new_cache(self._model.config)

    def step(self, ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:  # noqa: ANN401
        """Feed ``ids`` ``[rows, tokens]``; each row's most likely next token, ``[rows, 1]``."""
        return greedy_step(self._model, ids, positions, cache)


def greedy_step(
    model: Any,  # noqa: ANN401 (transformers is untyped)
    ids: torch.Tensor,
    positions: torch.Tensor,
    cache: Any,  # noqa: ANN401 (transformers is untyped)
) -> torch.Tensor:
    """One forward pass and its argmax; ties go to the lowest token id."""
    logits = model(
        input_ids=ids,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    best: torch.Tensor = logits[:, -1].argmax(dim=-1, keepdim=True)
    return best


def decode(
    decoder: EagerDecoder, ids: torch.Tensor, new_tokens: int, synchronize: Callable[[], None]
) -> Generation:
    """Decode exactly ``new_tokens`` tokens per row, reading the clock after each step's end.

    Args:
        decoder: how a step is carried out.
        ids: ``[rows, prompt]`` token ids, already on the model's device.
        new_tokens: tokens to add to every row; end-of-text is a token like any other.
        synchronize: waits for the device.
    """
    import torch

    rows, prompt = ids.shape
    positions = torch.arange(prompt, device=ids.device).expand(rows, -1)
    cache = decoder.begin(rows, prompt + new_tokens)
    synchronize()
    clock = [time.perf_counter()]
    current = decoder.step(ids, positions, cache)
    synchronize()
    clock.append(time.perf_counter())
    produced = [current]
    for step in range(1, new_tokens):
        position = positions.new_full((rows, 1), prompt + step - 1)
        current = decoder.step(current, position, cache)
        synchronize()
        clock.append(time.perf_counter())
        produced.append(current)
    tokens = torch.cat(produced, dim=1).tolist()
    return Generation(
        tokens=tuple(tuple(row) for row in tokens),
        first_token_s=clock[1] - clock[0],
        step_s=tuple(b - a for a, b in pairwise(clock[1:])),
    )
