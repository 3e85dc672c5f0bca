"""Greedy decoding, timed step by step, by the fastest decoder that works."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ewq.backends.decoders import CompiledDecoder, EagerDecoder, GraphDecoder, StaticDecoder
from ewq.backends.int8_step import DecoderUnsupported
from ewq.errors import InputError
from ewq.model import Generation

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

AUTO = "auto"
DECODERS: dict[str, type[EagerDecoder]] = {
    decoder.mode: decoder
    for decoder in (EagerDecoder, StaticDecoder, GraphDecoder, CompiledDecoder)
}
MODES = (AUTO, *DECODERS)
FALLBACKS: Mapping[str, Sequence[str]] = {
    "compile": ("graph", "static", "eager"),
    "graph": ("static", "eager"),
    "static": ("eager",),
    "eager": (),
}
"""What is tried in turn where a way of decoding is not supported."""


class GreedyDecoding:
    """Greedy decoding of one model.

    Args:
        model: a transformers causal language model.
        mode: one of :data:`MODES`; ``auto`` is ``graph`` on CUDA, else ``eager``.
        synchronize: waits for the device.

    Raises:
        InputError: an unknown mode.
    """

    def __init__(self, model: Any, mode: str, synchronize: Callable[[], None]) -> None:
        if mode not in MODES:
            raise InputError(f"unknown decode mode {mode!r}; give one of {', '.join(MODES)}")
        if mode == AUTO:
            mode = "graph" if model.device.type == "cuda" else "eager"
        self._model = model
        self._synchronize = synchronize
        self._left = list(FALLBACKS[mode])
        self.decoder = DECODERS[mode](model)
        self.notes: list[str] = []
        """Every fallback, for people."""

    def generate(self, ids: torch.Tensor, new_tokens: int) -> Generation:
        """Decode exactly ``new_tokens`` tokens per row, reading the clock after each step's end.

        Where a decoder turns out not to be supported the whole generation starts anew with the
        next one, so that no reading mixes two.

        Args:
            ids: ``[rows, prompt]`` token ids, already on the model's device.
            new_tokens: tokens to add to every row; end-of-text is a token like any other.
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
        self.decoder = DECODERS[self._left.pop(0)](self._model)
        note = f"decode mode {refused} is not supported here ({reason}); using {self.decoder.mode}"
        self.notes.append(note)
        logger.warning(note)

    def _generate(self, ids: torch.Tensor, new_tokens: int) -> Generation:
        import torch

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
