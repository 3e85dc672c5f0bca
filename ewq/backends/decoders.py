"""Greedy decoding, timed, and ways of one step: from the one that always works to the fastest.

With a cache of fixed size every step is the same computation, which CUDA can record and replay:
``graph`` has the kernels of ``static``, those of norms and int8 products fused, and is ready after
two steps; ``compile`` has fewer, after a minute or more.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from transformers import DynamicCache, StaticCache
from transformers.masking_utils import create_masks_for_generate

from ewq.backends.int8_step import DecoderUnsupported, StaticInt8
from ewq.backends.norms import fused_norms
from ewq.errors import InputError
from ewq.model import Generation, Stop

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``step(ids, positions)``: the next tokens."""
logger = logging.getLogger(__name__)


class EagerDecoder:
    """A cache that grows by one token a step; works for every model.

    Every other way decodes the same tokens, or raises :class:`DecoderUnsupported`.
    """

    mode = "eager"

    def __init__(self, model: Any) -> None:
        self._model = model

    def begin(self, rows: int, length: int) -> Any:
        """An empty cache for ``rows`` sequences of at most ``length`` tokens."""
        return DynamicCache(config=self._model.config)

    def step(self, ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """Feed ``ids`` ``[rows, tokens]``; each row's most likely next token, ``[rows, 1]``."""
        return self.best(ids, positions, cache)

    def check(self) -> None:
        """Called after the last step of a generation: refuse what must not be used."""

    def close(self) -> None:
        """Let go of the model and of everything allocated for it."""
        vars(self).clear()

    def best(
        self, ids: torch.Tensor, positions: torch.Tensor, cache: Any, masks: Any = None
    ) -> torch.Tensor:
        """As :meth:`step`, which this is without any preparation, under an attention mask."""
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
    """Caches allocated once at full length, one for each shape of generation."""

    mode = "static"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._caches: dict[tuple[int, int], Any] = {}
        self._int8 = StaticInt8(model, with_kernels=self.mode == "graph")

    def begin(self, rows: int, length: int) -> Any:
        """A cache of exactly ``length`` tokens, reused from the last generation of that shape."""
        self._int8.reset()
        cache = self._caches.get((rows, length))
        if cache is None:
            cache = StaticCache(config=self._model.config, max_cache_len=length)
            if not cache.is_compileable:
                raise DecoderUnsupported("its cache cannot have a fixed size")
            self._caches[rows, length] = cache
        cache.reset()
        return cache

    def check(self) -> None:
        """Refuse results with more int8 outliers than a step of fixed shape computes."""
        self._int8.check()


class GraphDecoder(StaticDecoder):
    """The static step as a CUDA graph, which the second step of each shape records."""

    mode = "graph"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._recordings: dict[int, Step | None] = {}
        """By the identity of the cache; ``None`` after the first step."""
        self._norms = fused_norms(model)

    def begin(self, rows: int, length: int) -> Any:
        """A cache of fixed size, whose address the recording knows."""
        self._require_one_gpu()
        cache = super().begin(rows, length)
        if any(cache.is_sliding):
            raise DecoderUnsupported("its sliding windows are counted in Python")
        return cache

    def step(self, ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """A replay, except for the prompt and for the first two steps of a shape."""
        if ids.shape[1] > 1:
            return super().step(ids, positions, cache)
        if id(cache) not in self._recordings:
            self._recordings[id(cache)] = None
            return self._apart(lambda: self._one(ids, positions, cache))
        recording = self._recordings[id(cache)]
        if recording is None:
            recording = self._recorded(ids.clone(), positions.clone(), cache)
            self._recordings[id(cache)] = recording
        return recording(ids, positions)

    def _require_one_gpu(self) -> None:
        devices = {parameter.device for parameter in self._model.parameters()}
        if len(devices) > 1 or next(iter(devices)).type != "cuda":
            where = ", ".join(sorted(map(str, devices)))
            raise DecoderUnsupported(f"CUDA graphs need the model on one GPU, it is on {where}")

    def _one(self, ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        with self._int8.in_force(self._norms):
            return self.best(ids, positions, cache)

    def _recorded(self, ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> Step:
        """A step that reads its inputs from the memory of these."""
        try:
            replay, best = self._captured(lambda: self._one(ids, positions, cache))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise DecoderUnsupported(str(error).split("\n")[0]) from error

        def step(new_ids: torch.Tensor, new_positions: torch.Tensor) -> torch.Tensor:
            ids.copy_(new_ids)
            positions.copy_(new_positions)
            replay()
            return best.clone()

        return step

    def _apart(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        """On a stream of its own, as CUDA wants what precedes a recording."""
        # The current GPU need not be the model's, and streams are made on the current one.
        with torch.cuda.device(self._model.device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                result = work()
            torch.cuda.current_stream().wait_stream(stream)
            return result

    def _captured(
        self, work: Callable[[], torch.Tensor]
    ) -> tuple[Callable[[], None], torch.Tensor]:
        """What repeats ``work`` on the same memory, and where its result will lie."""
        device = self._model.device
        with torch.cuda.device(device):
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            # A capture that fails leaves its own stream in force: this one is left for certain.
            with torch.cuda.stream(stream):
                try:
                    with torch.cuda.graph(graph, stream=stream):
                        result = work()
                except RuntimeError:
                    graph.reset()
                    raise

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return replay, result


class CompiledDecoder(StaticDecoder):
    """The static step compiled, which takes a minute or more; on CUDA recorded and replayed."""

    mode = "compile"

    def __init__(self, model: Any, backend: str = "inductor") -> None:
        super().__init__(model)
        # Round where the uncompiled step rounds, so that 16-bit results are the same.
        options = {
            "emulate_precision_casts": True,
            "triton.cudagraphs": model.device.type == "cuda",
        }
        sliding = any(DynamicCache(config=model.config).is_sliding)
        self._compiled: Callable[..., torch.Tensor] = torch.compile(
            self.best,
            backend=backend,
            options=options if backend == "inductor" else None,
            # Whole or not at all: with breaks, or past the limit on recompilation, steps
            # would quietly run uncompiled and be reported as compiled.
            fullgraph=True,
            # Sliding caches count tokens in Python; every count would be a new graph.
            dynamic=None if sliding else False,
        )

    def step(self, ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """A compiled step, except for the prompt."""
        if ids.shape[1] > 1:
            return super().step(ids, positions, cache)
        masks = self._sliding_masks(ids, positions, cache)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            # A replayed graph writes its next result to the same memory.
            with self._int8.in_force():
                return self._compiled(ids, positions, cache, masks).clone()
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            reason = " ".join(str(error).split("\n")[:2])
            raise DecoderUnsupported(reason) from error

    def close(self) -> None:
        """Drop compiled code and recorded graphs, which hold memory and count per process."""
        super().close()
        torch._dynamo.reset()

    def _sliding_masks(self, ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> Any:
        """Masks of sliding windows, whose count in Python would have each step compiled anew."""
        if not any(cache.is_sliding):
            return None
        return create_masks_for_generate(
            config=self._model.config,
            inputs_embeds=ids.new_empty((*ids.shape, 0), dtype=self._model.dtype),
            attention_mask=None,
            past_key_values=cache,
            position_ids=positions,
        )


AUTO = "auto"
DECODERS: dict[str, type[EagerDecoder]] = {
    decoder.mode: decoder
    for decoder in (EagerDecoder, StaticDecoder, GraphDecoder, CompiledDecoder)
}
MODES = (AUTO, *DECODERS)
"""Where one is not supported the one before it is tried, down to ``eager``."""


class GreedyDecoding:
    """Greedy decoding of one model; ``auto`` is ``graph`` on CUDA, else ``eager``."""

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

    def generate(
        self,
        ids: torch.Tensor,
        new_tokens: int,
        stop: Stop | None = None,
        real: torch.Tensor | None = None,
    ) -> Generation:
        """Decode ``new_tokens`` more of ``ids`` ``[rows, prompt]``, the clock read after each step.

        Where rows are padded, on the left, ``real`` is 1 for their tokens; this needs ``eager``. An
        unsupported decoder's generation is made anew by the next, so that no reading mixes two.
        """
        while True:
            try:
                return self._generate(ids, new_tokens, stop, real)
            except DecoderUnsupported as reason:
                refused = self.decoder.mode
                self.decoder.close()
                self.decoder = self._left.pop()(self._model)
                said = f"decode mode {refused} is not supported here ({reason})"
                self.notes.append(f"{said}; using {self.decoder.mode}")
                logger.warning(self.notes[-1])

    def close(self) -> None:
        """Let go of the model."""
        self.decoder.close()
        self._model = None

    def _generate(
        self, ids: torch.Tensor, new_tokens: int, stop: Stop | None, real: torch.Tensor | None
    ) -> Generation:
        rows, prompt = ids.shape
        positions = torch.arange(prompt, device=ids.device).expand(rows, -1)
        if real is not None:
            positions = (real.cumsum(dim=1) - 1).clamp(min=0)
        # A fixed cache for the length of each prompt that stops by itself would fill the memory.
        decoder = EagerDecoder(self._model) if stop else self.decoder
        cache = decoder.begin(rows, prompt + new_tokens)

        def advance(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            if real is None:
                return decoder.step(ids, positions, cache)
            grown = real.new_ones((rows, cache.get_seq_length() + ids.shape[1] - prompt))
            return decoder.best(ids, positions, cache, torch.cat([real, grown], dim=1))

        clock = [self._now()]
        current = advance(ids, positions)
        clock.append(self._now())
        produced = [current]
        for step in range(1, new_tokens):
            if stop and stop(torch.cat(produced, dim=1).tolist()):
                break
            current = advance(current, positions[:, -1:] + step)
            clock.append(self._now())
            produced.append(current)
        decoder.check()
        return Generation.from_clock(torch.cat(produced, dim=1).tolist(), clock)

    def _now(self) -> float:
        self._synchronize()
        return time.perf_counter()
