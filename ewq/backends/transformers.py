"""Language models run by Hugging Face transformers, plain or quantized."""

import gc
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, DynamicCache

from ewq.backends.batching import (
    CPU_FILLED_TOKENS,
    FILLED_TOKENS,
    can_share,
    check_prompts,
    check_start,
    check_suffixes,
    fork,
    log_softmax,
    pad_rows,
    plan_batches,
    scores_of,
    split_shared,
)
from ewq.backends.decoders import AUTO, EagerDecoder, GreedyDecoding
from ewq.checkpoint.loading import first_line, load_pretrained, load_tokenizer
from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.data.distributions import Head
from ewq.errors import CheckpointError, InputError, MeasurementError
from ewq.instruments.gpu import ALL
from ewq.instruments.memory import parameter_count, weights_bytes
from ewq.measurement import Json
from ewq.model import Branches, Generation, ModelInfo, Stop, TokenIds

LOGIT_BLOCK_BYTES = 192_000_000
"""Most bytes of float32 logits held at a time: 315 rows of a 152k vocabulary."""
CUDA_LOGIT_BLOCK_BYTES = 2_000_000_000
CUDA_SHARE = 16
"""So few rows leave a GPU idle: there it is a sixteenth of its memory, up to this."""


class TransformersModel:
    """A :class:`ewq.model.LanguageModel` over a transformers causal language model.

    ``batch_tokens`` counts shared prefix and padding, raw weights are weighed in
    ``checkpoint_dtype``, and ``device`` is what :attr:`info` calls the place of more than one GPU.
    An InputError of no room in a batch, an unknown decode mode, or no known context length.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_tokens: int = 8192,
        decode_mode: str = AUTO,
        checkpoint_dtype: torch.dtype | None = None,
        device: str | None = None,
    ) -> None:
        if batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens}; give at least 1")
        self._loaded: Any = model.eval()
        self.tokenizer: Any = tokenizer
        self.batch_tokens = batch_tokens
        self.info = _describe(model, checkpoint_dtype, device)
        self._cuda_devices = {p.device for p in model.parameters() if p.is_cuda}
        self._shares_prefix = can_share(model.config)
        """Not where layers keep a recurrent state."""
        self._decoding = GreedyDecoding(model, decode_mode, self.synchronize)

    def last_logprobs(
        self, prefix: TokenIds, suffixes: Sequence[TokenIds], columns: Sequence[int]
    ) -> NDArray[np.float32]:
        """Log-probabilities of ``columns`` after each prompt, ``[len(suffixes), len(columns)]``."""
        shared, rows = split_shared(self.info, prefix, suffixes)
        result = np.empty((len(rows), len(columns)), dtype=np.float32)
        for batch, logits in self._batches([shared], [(0, row) for row in rows], [1] * len(rows)):
            wanted = logits[:, list(columns)] - logits.logsumexp(dim=-1, keepdim=True)
            result[list(batch)] = wanted.cpu().numpy()
        return result

    def token_logprobs(
        self, prefix: TokenIds, suffixes: Sequence[TokenIds]
    ) -> list[NDArray[np.float32]]:
        """Log-probability of every token of every suffix, one array a suffix."""
        return [scores[:, 0] for scores in self.continuation_scores([(prefix, suffixes)])[0]]

    def continuation_scores(self, asked: Sequence[Branches]) -> list[list[NDArray[np.float32]]]:
        """The same of many prefixes, those of about one length in one batch, and greedy choices."""
        results = [[np.empty((0, 2), dtype=np.float32) for _ in suffixes] for _, suffixes in asked]
        shared: list[list[int]] = []
        rows: list[tuple[int, list[int]]] = []
        places: list[tuple[int, int]] = []
        for root, (prefix, suffixes) in enumerate(asked):
            check_suffixes(self.info, prefix, suffixes)
            for i, suffix in enumerate(suffixes):
                if len(suffix) > self._block_rows:
                    results[root][i] = self._long_scores(prefix, suffix)
            short = [i for i, suffix in enumerate(suffixes) if 0 < len(suffix) <= self._block_rows]
            # A suffix's last token is only predicted, never fed.
            one, own = split_shared(self.info, prefix, [suffixes[i][:-1] for i in short])
            shared.append(one)
            rows += [(root, row) for row in own]
            places += [(root, i) for i in short]
        for batch, logits in self._batches(shared, rows, [len(row) for _, row in rows]):
            suffixes = [asked[root][1][i] for root, i in (places[row] for row in batch)]
            flat = _gather(logits, [token for suffix in suffixes for token in suffix])
            ends = np.cumsum(list(map(len, suffixes)))
            for row, part in zip(batch, np.split(flat, ends[:-1]), strict=True):
                root, i = places[row]
                results[root][i] = part
        return results

    def logprobs(self, ids: TokenIds, start: int) -> Iterator[torch.Tensor]:
        """Distributions of ``ids[start:]`` in blocks of at most :data:`LOGIT_BLOCK_BYTES`."""
        return (block for block, _ in self._normalised(ids, start))

    def states(self, ids: TokenIds, start: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """The same, each with its last hidden states and ``ln sum exp`` of their logits."""
        caught: list[torch.Tensor] = []
        layer = self._model.get_output_embeddings()
        with layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0])):
            for logprobs, normalisers in self._normalised(ids, start):
                hidden = caught.pop().flatten(0, -2)
                yield logprobs, hidden[-len(logprobs) :], normalisers

    @property
    def head(self) -> Head | None:
        """The last layer with what its architecture does to the logits after it."""
        layer = self._model.get_output_embeddings()
        if type(layer) is not torch.nn.Linear:
            return None
        config, bias = self._model.config.get_text_config(), layer.bias
        scale = 1.0
        for name in ("logit_scale", "lm_head_multiplier"):
            scale *= getattr(config, name, None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        cap = getattr(config, "final_logit_softcapping", None)
        return Head(layer.weight.detach(), None if bias is None else bias.detach(), scale, cap)

    def _normalised(self, ids: TokenIds, start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        check_start(self.info, ids, start)
        inputs = list(ids[:-1])
        cache = self._prefill([inputs[: start - 1]]) if self._shares_prefix else None
        for begin in range(start - 1, len(inputs), self._block_rows):
            end = min(begin + self._block_rows, len(inputs))
            first = begin if self._shares_prefix else 0
            # Not held by a name while the caller works: it would double the memory.
            yield log_softmax(self._forward(cache, first, [inputs[first:end]], [end - begin]))

    def generate(
        self, prompts: Sequence[TokenIds], new_tokens: int, stop: Stop | None = None
    ) -> Generation:
        """Greedy decoding, timed; the first call of a shape may compile or record."""
        lengths = check_prompts(self.info, prompts, new_tokens)
        width, device = max(lengths), self._input_device
        padded = min(lengths) < width
        eager = stop is not None or self.decode_mode == EagerDecoder.mode
        if padded and not (self._shares_prefix and eager):
            each = [self.generate([prompt], new_tokens, stop) for prompt in prompts]
            steps_s = zip(*(one.step_s for one in each), strict=stop is None)
            tokens, first_s = [one.tokens[0] for one in each], [one.first_token_s for one in each]
            return Generation(tuple(tokens), sum(first_s), tuple(map(sum, steps_s)))
        # On the left, so that a sliding window is as far from the next token as without.
        rows = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        real = [[place >= width - length for place in range(width)] for length in lengths]
        mask = torch.tensor(real, device=device).long() if padded else None
        with torch.no_grad():
            return self._decoding.generate(
                torch.tensor(rows, device=device), new_tokens, stop, mask
            )

    def sample(self, ids: TokenIds, new_tokens: int, ends: Collection[int], seed: int) -> list[int]:
        """A continuation drawn from the model's own distributions, up to a token that ends it."""
        self.info.require_context(len(ids) + new_tokens, "a sampled answer")
        source, made, fed = torch.Generator().manual_seed(seed), list(ids), 0
        cache = self._prefill([[]]) if self._shares_prefix else None
        for _ in range(new_tokens):
            logits = self._forward(cache, fed, [made[fed:]], [1])
            fed = len(made) if cache is not None else 0
            made.append(int(torch.multinomial(logits[0].softmax(-1).cpu(), 1, generator=source)))
            if made[-1] in ends:
                break
        return made[len(ids) :]

    def synchronize(self) -> None:
        """Wait for every GPU that holds a part of the model."""
        for device in self._cuda_devices:
            torch.cuda.synchronize(device)

    def close(self) -> None:
        """Free the weights even where somebody still holds the model (a traceback, say)."""
        if self._loaded is None:
            return
        self._decoding.close()
        for module in list(self._loaded.modules()):
            vars(module).clear()
        self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            # cuBLAS keeps one for each stream it ever ran on, recording streams included.
            torch._C._cuda_clearCublasWorkspaces()
            torch.cuda.empty_cache()

    @property
    def decode_mode(self) -> str:
        """The way of decoding in force, after any fallback."""
        return self._decoding.decoder.mode

    @property
    def settings(self) -> dict[str, Json]:
        """How this model computes: its batches, its type, and how it decodes."""
        return {
            "engine": self.info.engine,
            "dtype": self.info.dtype,
            "batch_tokens": self.batch_tokens,
            "decode_mode": self.decode_mode,
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What did not work as asked, for people."""
        return tuple(self._decoding.notes)

    @property
    def _model(self) -> Any:
        if self._loaded is None:
            raise MeasurementError("the model has been closed; load it again to use it")
        return self._loaded

    @property
    def _input_device(self) -> torch.device:
        device: torch.device = self._model.get_input_embeddings().weight.device
        return device

    @property
    def _block_rows(self) -> int:
        # By the size of the smallest GPU and not by what is free, so that a run repeats its blocks.
        gpus = map(torch.cuda.get_device_properties, self._cuda_devices)
        share = min((gpu.total_memory // CUDA_SHARE for gpu in gpus), default=0)
        most_bytes = max(LOGIT_BLOCK_BYTES, min(CUDA_LOGIT_BLOCK_BYTES, share))
        return max(1, most_bytes // (4 * self.info.vocab_size))

    def _batches(
        self, shared: list[list[int]], rows: list[tuple[int, list[int]]], kept: list[int]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Row indices of each batch with the float32 logits of its kept positions, row by row.

        A row is what it adds to which of the ``shared``; of those in a batch, all of one length is
        computed once, and the rest of the longer ones in their rows.
        """
        limits = self.batch_tokens, self._block_rows
        filled = FILLED_TOKENS if self._cuda_devices else CPU_FILLED_TOKENS
        sizes = list(map(len, shared))
        own = [
            [i for i, (root, _) in enumerate(rows) if root == each] for each in range(len(sizes))
        ]
        needed = [sum(kept[i] for i in each) for each in own]
        for group in plan_batches(sizes, needed, 0, *limits, filled=0):
            # What one row alone follows is quicker fed with it than kept for it.
            branches = self._shares_prefix and any(len(own[root]) > 1 for root in group)
            common = min(sizes[root] for root in group) if branches else 0
            chosen = [i for root in group for i in own[root]]
            whole = [shared[rows[i][0]][common:] + rows[i][1] for i in chosen]
            wanted = [kept[i] for i in chosen]
            cache = self._prefill([shared[root][:common] for root in group]) if common else None
            for batch in plan_batches(list(map(len, whole)), wanted, common, *limits, filled):
                indices = [chosen[i] for i in batch]
                forked = cache and fork(cache, [group.index(rows[i][0]) for i in indices])
                inputs = [whole[i] for i in batch], [wanted[i] for i in batch]
                yield indices, self._forward(forked, common, *inputs)

    def _prefill(self, shared: list[list[int]]) -> Any:
        """A cache of rows of one length."""
        cache = DynamicCache(config=self._model.config)
        if shared[0]:
            self._forward(cache, 0, shared, [1] * len(shared))
        return cache

    def _forward(
        self, cache: Any, shared: int, rows: Sequence[Sequence[int]], kept: Sequence[int]
    ) -> torch.Tensor:
        """Float32 logits ``[sum(kept), vocab]`` of each row's last ``kept`` positions."""
        device, padded = self._input_device, pad_rows(rows, kept, shared)
        inputs = {name: values.to(device) for name, values in padded.items()}
        with torch.no_grad():
            logits = self._model(
                **inputs, past_key_values=cache, use_cache=cache is not None
            ).logits
            # Architectures that know no logits_to_keep return every position.
            keep = inputs["logits_to_keep"].to(logits.device)
            chosen: torch.Tensor = logits if logits.dim() == 2 else logits[keep]
            return chosen.float()

    def _long_scores(self, prefix: TokenIds, suffix: TokenIds) -> NDArray[np.float32]:
        parts: list[NDArray[np.float32]] = []
        for block in self.logprobs([*prefix, *suffix], len(prefix)):
            done = sum(map(len, parts))
            parts.append(_gather(block, suffix[done : done + len(block)]))
        return np.concatenate(parts)


def _gather(logits: torch.Tensor, tokens: Sequence[int]) -> NDArray[np.float32]:
    """``scores_of`` of ``log_softmax(logits)`` without a second array of the logits' size."""
    scores = scores_of(logits, tokens)
    scores[:, 0] -= logits.logsumexp(dim=-1)
    array: NDArray[np.float32] = scores.cpu().numpy()
    return array


def _describe(model: Any, checkpoint_dtype: torch.dtype | None, device: str | None) -> ModelInfo:
    config = model.config.get_text_config()
    limit = _context_length(config)
    if not limit:
        raise InputError(f"the config of {type(model).__name__} needs max_position_embeddings")
    weights = weights_bytes(model, checkpoint_dtype)
    head = model.get_output_embeddings()
    return ModelInfo(
        engine="transformers",
        device=device or str(model.get_input_embeddings().weight.device),
        dtype=str(model.dtype).removeprefix("torch."),
        context_length=limit,
        vocab_size=getattr(head, "out_features", config.vocab_size),
        weights_bytes=weights,
        bits_per_weight=8 * weights / parameter_count(model),
    )


def _context_length(config: Any) -> int | None:
    """The longest sequence over which positions mean the same, however it is fed.

    Beyond the original context ``longrope`` (Phi) has other frequencies for the whole sequence.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    limits = [getattr(config, "max_position_embeddings", None)]
    if rope.get("rope_type") == "longrope":
        original = "original_max_position_embeddings"
        limits = [rope.get(original), getattr(config, original, None), *limits]
    return next(filter(None, limits), None)


def load_transformers(
    folder: str | Path,
    *,
    quantization_config: Any = None,
    adapter: Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    batch_tokens: int = 8192,
    tokenizer: Any = None,
    decode_mode: str = AUTO,
) -> TransformersModel:
    """Load a model folder as :class:`TransformersModel`, running no code that comes with it.

    ``cuda:all`` spreads it over all GPUs; ``dtype`` is what is computed in; the weights of a folder
    that is an ``adapter`` are merged into the model's. A CheckpointError of a
    folder that is missing, incomplete, or needs code of its own, a MeasurementError where all GPUs
    together cannot hold it, an InputError of an unknown dtype or decode mode.
    """
    folder = Path(folder)
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise InputError(f"unknown dtype {dtype!r}; give float32, float16 or bfloat16")
    if not folder.is_dir():
        raise CheckpointError(f"no model folder at {folder}")
    checkpoint = open_checkpoint(folder)
    tokenizer = tokenizer or load_tokenizer(folder, str(folder))
    model = _load(folder, quantization_config, device, getattr(torch, dtype))
    if adapter:
        model = _merged(model, adapter)
    return TransformersModel(
        model,
        tokenizer,
        batch_tokens=batch_tokens,
        decode_mode=decode_mode,
        checkpoint_dtype=_keep_in_16_bits(model, checkpoint, changed=adapter is not None),
        device=device if device == ALL else None,
    )


def _load(folder: Path, quantization_config: Any, device: str, dtype: torch.dtype) -> Any:
    model = load_pretrained(
        AutoModelForCausalLM,
        folder,
        str(folder),
        dtype=dtype,
        device_map="auto" if device == ALL else {"": device},
        **({"quantization_config": quantization_config} if quantization_config else {}),
    )
    # accelerate puts what the GPUs cannot hold in RAM or on disk, and speeds would be of that.
    if device == ALL and any(of.device.type != "cuda" for of in model.parameters()):
        raise MeasurementError(f"{folder} exceeds all GPUs together: add GPUs or take fewer bits")
    return model


def _merged(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except (ValueError, LookupError, AttributeError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "size mismatch" not in str(error):
            raise
        raise CheckpointError(f"{adapter} does not fit this model: {first_line(error)}") from error


def _keep_in_16_bits(model: Any, checkpoint: Checkpoint, *, changed: bool) -> torch.dtype:
    """Round weights that are wider to the 16-bit type returned; they keep their own.

    Those of a checkpoint that is quantized already stay as they are.
    """
    stored: torch.dtype = getattr(torch, checkpoint.storage_dtype)
    wide = changed or any(info.dtype in ("F32", "F64") for info in checkpoint.tensors.values())
    if wide and not checkpoint.config.get("quantization_config"):
        for parameter in model.parameters():
            if parameter.dtype == torch.float32:
                parameter.data.copy_(parameter.data.to(stored))
    return stored
