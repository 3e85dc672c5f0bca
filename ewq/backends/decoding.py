"""Greedy decoding, timed step by step, by the fastest decoder that works."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch

from ewq.backends.decoders import CompiledDecoder, EagerDecoder, GraphDecoder, StaticDecoder
from ewq.backends.int8_step import DecoderUnsupported
from ewq.errors import InputError
from ewq.model import Generation

logger = logging.getLogger(__name__)

AUTO = "auto"
DECODERS: dict[str, type[EagerDecoder]] = {
    decoder.mode: decoder
    for decoder in (EagerDecoder, StaticDecoder, GraphDecoder, CompiledDecoder)
}
MODES = (AUTO, *DECODERS)
"""Where one is not supported the one before it is tried, down to ``eager``."""


class GreedyDecoding:
    """Greedy decoding of one transformers model.

    ``mode`` is one of :data:`MODES`; ``auto`` is ``graph`` on CUDA, else ``eager``.
    """

    def __init__(self, model: Any, mode: str, synchronize: Callable[[], None]) -> None:
        if mode not in MODES:
            raise InputError(f"unknown decode mode {mode!r}; give one of {', '.join(MODES)}")
        if mode == AUTO:
            mode = "graph" if model.device.type == "cuda" else "eager"
        self._model = model
        self._synchronize = synchronize
        self._left = list(DECODERS.values())[: list(DECODERS).index(mode)]
        self.decoder = DECODERS[mode](model)
        self.notes: list[str] = []
        """Every fallback, for people."""

    def generate(self, ids: torch.Tensor, new_tokens: int) -> Generation:
        """Decode ``new_tokens`` more of ``ids`` ``[rows, prompt]``, the clock read after each step.

        Where a decoder turns out not to be supported the whole generation starts anew with the
        next one, so that no reading mixes two.
        """
        while True:
            try:
                return self._generate(ids, new_tokens)
            except DecoderUnsupported as reason:
                self._fall_back(reason)

    def close(self) -> None:
        """Let go of the model."""
        self.decoder.close()
        self._model = None

    def _fall_back(self, reason: DecoderUnsupported) -> None:
        refused = self.decoder.mode
        self.decoder.close()
        self.decoder = self._left.pop()(self._model)
        note = f"decode mode {refused} is not supported here ({reason}); using {self.decoder.mode}"
        self.notes.append(note)
        logger.warning(note)

    def _generate(self, ids: torch.Tensor, new_tokens: int) -> Generation:
        rows, prompt = ids.shape
        positions = torch.arange(prompt, device=ids.device).expand(rows, -1)
        cache = self.decoder.begin(rows, prompt + new_tokens)
        clock = [self._now()]
        current = self.decoder.step(ids, positions, cache)
        clock.append(self._now())
        produced = [current]
        for step in range(1, new_tokens):
            position = positions.new_full((rows, 1), prompt + step - 1)
            current = self.decoder.step(current, position, cache)
            clock.append(self._now())
            produced.append(current)
        self.decoder.check()
        return Generation.from_clock(torch.cat(produced, dim=1).tolist(), clock)

    def _now(self) -> float:
        self._synchronize()
        return time.perf_counter()
