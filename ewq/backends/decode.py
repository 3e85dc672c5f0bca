"""Greedy decoding, timed step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from ewq.backends.decoders import Decoder, DecoderChain
from ewq.backends.int8_step import DecoderUnsupported
from ewq.model import Generation

if TYPE_CHECKING:
    import torch


def decode(
    chain: DecoderChain, ids: torch.Tensor, new_tokens: int, synchronize: Callable[[], None]
) -> Generation:
    """Decode exactly ``new_tokens`` tokens per row, reading the clock after each step's end.

    Where a decoder turns out not to be supported the whole generation starts
    anew with the next one, so that no reading mixes two.

    Args:
        chain: how steps are carried out.
        ids: ``[rows, prompt]`` token ids, already on the model's device.
        new_tokens: tokens to add to every row; end-of-text is a token like any other.
        synchronize: waits for the device.
    """
    while True:
        try:
            return _decode(chain.current, ids, new_tokens, synchronize)
        except DecoderUnsupported as reason:
            chain.fall_back(reason)


def _decode(
    decoder: Decoder, ids: torch.Tensor, new_tokens: int, synchronize: Callable[[], None]
) -> Generation:
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
    decoder.check()
    tokens = torch.cat(produced, dim=1).tolist()
    return Generation(
        tokens=tuple(tuple(row) for row in tokens),
        first_token_s=clock[1] - clock[0],
        step_s=tuple(end - begin for begin, end in pairwise(clock[1:])),
    )
