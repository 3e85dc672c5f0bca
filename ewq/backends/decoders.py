"""Ways of carrying out one decode step, from the one that always works to the fastest.

A decode step of a small batch is bound by reading the weights once, or by the
overhead of launching its many small kernels. ``compile`` removes the latter: a
cache of fixed size makes every step the same computation, which is compiled
once and, on CUDA, replayed as a graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ewq.backends.prefix_cache import new_cache
from ewq.errors import InputError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

AUTO = "auto"


class Decoder(Protocol):
    """Carries out the steps of a generation; the result is the same for all."""

    mode: str

    def begin(self, rows: int, length: int) -> Any:  # noqa: ANN401 (transformers is untyped)
        """An empty cache for ``rows`` sequences of at most ``length`` tokens."""
        ...

    def step(self, ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:  # noqa: ANN401
        """Feed ``ids`` ``[rows, tokens]``; each row's most likely next token, ``[rows, 1]``."""
        ...

    def close(self) -> None:
        """Let go of the model and of everything allocated for it."""
        ...


class DecoderUnsupported(Exception):
    """This way of decoding does not work for this model; another one does."""


class EagerDecoder:
    """A cache that grows by one token a step; works for every model."""

    mode = "eager"

    def __init__(self, model: Any) -> None:  # noqa: ANN401 (transformers is untyped)
        self._model = model

    def begin(self, rows: int, length: int) -> Any:  # noqa: ANN401
        """See :class:`Decoder`."""
        return new_cache(self._model.config)

    def step(self, ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:  # noqa: ANN401
        """See :class:`Decoder`; ties go to the lowest token id."""
        return self._best(ids, positions, cache, None)

    def close(self) -> None:
        """See :class:`Decoder`."""
        self._model = None

    def _best(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        cache: Any,  # noqa: ANN401 (transformers is untyped)
        masks: Any,  # noqa: ANN401 (a mask, or one by kind of layer)
    ) -> torch.Tensor:
        logits = self._model(
            input_ids=ids,
            attention_mask=masks,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        best: torch.Tensor = logits[:, -1].argmax(dim=-1, keepdim=True)
        return best


class StaticDecoder(EagerDecoder):
    """A cache allocated once at full length, kept for the next generation of the same shape."""

    mode = "static"

    def __init__(self, model: Any) -> None:  # noqa: ANN401 (transformers is untyped)
        super().__init__(model)
        self._shape: tuple[int, int] | None = None
        self._cache: Any = None

    def begin(self, rows: int, length: int) -> Any:  # noqa: ANN401
        """See :class:`Decoder`."""
        from transformers import StaticCache

        if self._shape != (rows, length):
            self._cache = StaticCache(config=self._model.config, max_cache_len=length)
            if not self._cache.is_compileable:
                raise DecoderUnsupported("its cache cannot have a fixed size")
            self._shape = (rows, length)
        self._cache.reset()
        return self._cache

    def close(self) -> None:
        """See :class:`Decoder`."""
        super().close()
        self._cache = None


class CompiledDecoder(StaticDecoder):
    """The static step compiled; on CUDA recorded as a graph and replayed.

    The prompt is fed uncompiled, since its length varies. The first steps of a
    shape are slow (compilation, recording): warm up before reading a clock.
    """

    mode = "compile"

    def __init__(self, model: Any, backend: str = "inductor") -> None:  # noqa: ANN401
        import torch

        super().__init__(model)
        graphs = backend == "inductor" and model.device.type == "cuda"
        sliding = any(new_cache(model.config).is_sliding)
        self._compiled: Callable[..., torch.Tensor] = torch.compile(
            self._best,
            backend=backend,
            mode="reduce-overhead" if graphs else None,
            # Whole or not at all: with breaks, or past the limit on recompilation, steps
            # would quietly run uncompiled and be reported as compiled.
            fullgraph=True,
            # Sliding caches count tokens in Python; every count would be a new graph.
            dynamic=None if sliding else False,
        )

    def step(self, ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:  # noqa: ANN401
        """See :class:`Decoder`."""
        import torch
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        if ids.shape[1] > 1:
            return super().step(ids, positions, cache)
        masks = self._sliding_masks(ids, positions, cache)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            # A replayed graph writes its next result to the same memory.
            return self._compiled(ids, positions, cache, masks).clone()
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            reason = " ".join(str(error).split("\n")[:2])
            raise DecoderUnsupported(reason) from error

    def close(self) -> None:
        """Drop compiled code and recorded graphs, which hold memory and count per process."""
        import torch

        super().close()
        torch._dynamo.reset()

    def _sliding_masks(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        cache: Any,  # noqa: ANN401 (transformers is untyped)
    ) -> Any:  # noqa: ANN401 (a mask by kind of layer, or None)
        """Masks of models with sliding windows, which depend on a count kept in Python.

        Made inside the compiled step they would have it compiled anew at every token.
        """
        from transformers.masking_utils import create_masks_for_generate

        if not any(cache.is_sliding):
            return None
        return create_masks_for_generate(
            config=self._model.config,
            inputs_embeds=ids.new_empty((*ids.shape, 0), dtype=self._model.dtype),
            attention_mask=None,
            past_key_values=cache,
            position_ids=positions,
        )


_DECODERS: dict[str, type[EagerDecoder]] = {
    decoder.mode: decoder for decoder in (EagerDecoder, StaticDecoder, CompiledDecoder)
}
MODES = (AUTO, *_DECODERS)
_ORDER: dict[str, Sequence[str]] = {
    "compile": ("compile", "static", "eager"),
    "static": ("static", "eager"),
    "eager": ("eager",),
}
"""What is tried in turn when a way of decoding is not supported."""


class DecoderChain:
    """The decoder in force, and what to fall back to."""

    def __init__(self, model: Any, wanted: str) -> None:  # noqa: ANN401 (transformers is untyped)
        if wanted not in MODES:
            raise InputError(f"unknown decode mode {wanted!r}; give one of {', '.join(MODES)}")
        if wanted == AUTO:
            wanted = "compile" if model.device.type == "cuda" else "eager"
        self._model = model
        self._left = list(_ORDER[wanted])
        self.current: Decoder = _DECODERS[self._left.pop(0)](model)
        self.notes: list[str] = []

    def fall_back(self, reason: DecoderUnsupported) -> None:
        """Take the next decoder and say so."""
        refused = self.current.mode
        self.current.close()
        self.current = _DECODERS[self._left.pop(0)](self._model)
        note = f"decode mode {refused} is not supported here ({reason}); using {self.current.mode}"
        self.notes.append(note)
        logger.warning(note)

    def close(self) -> None:
        """Let go of the model."""
        self.current.close()
        self._model = None
