"""What a model weighs in each target format: its weights, their scales, and everything else.

Not counted are the constant tables that bitsandbytes saves beside each 4-bit weight.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ewq.checkpoint.layout import COUNT_KEYS, SCALES, WIDTH_KEYS, Layout, Weight
from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.checkpoint.tensors import TensorInfo
from ewq.errors import InputError, check_known
from ewq.progress import Progress
from ewq.variants import Precision

BUFFERS = (".rotary_emb.inv_freq", ".attn.masked_bias", ".attention.masked_bias")
"""Old checkpoints saved these buffers; they are not parameters and are not loaded."""


ByteRule = Callable[[Weight], int]


def _nf4(weight: Weight) -> int:
    """Two values a byte and a float32 absolute maximum for each 64: 4.5 bits."""
    return _up(weight.numel, 2) + 4 * _up(weight.numel, 64)


def _nf4_double(weight: Weight) -> int:
    """The maxima in 8 bits, in blocks of 256 with a float32 each, and one offset: 4.127 bits."""
    scales = _up(weight.numel, 64)
    return _up(weight.numel, 2) + scales + 4 * _up(scales, 256) + 4


def _int8(weight: Weight) -> int:
    """A byte a value and a float32 scale for each output row: ``8 + 32 / in_features`` bits."""
    return weight.numel + 4 * (weight.numel // weight.in_features)


F16, Q8_0, Q5_0, Q4_K = (1, 2), (32, 34), (32, 22), (256, 144)
"""Values and bytes of a block of these types."""


def _first_fitting(*blocks: tuple[int, int]) -> ByteRule:
    """llama.cpp takes the first type whose blocks divide the rows."""

    def rule(weight: Weight) -> int:
        fitting = (block for block in blocks if weight.in_features % block[0] == 0)
        values, nbytes = next(fitting)
        return weight.numel // values * nbytes

    return rule


def _up(value: int, divisor: int) -> int:
    return -(-value // divisor)


@dataclass(frozen=True)
class Format:
    """Where the plan is going: a byte rule per precision."""

    name: str
    rules: Mapping[Precision, ByteRule]
    rest: Callable[[TensorInfo], int]
    """Bytes of a tensor that is never quantized."""

    def nbytes(self, weight: Weight, precision: Precision) -> int:
        """Bytes of a weight at a precision."""
        return self.rules[precision](weight)


def _bitsandbytes(name: str, four: ByteRule) -> Format:
    """It replaces linear modules; experts stacked into one parameter stay raw."""

    def linear(rule: ByteRule) -> ByteRule:
        return lambda weight: weight.raw_bytes if weight.expert else rule(weight)

    rules = {Precision.EIGHT_BIT: linear(_int8), Precision.FOUR_BIT: linear(four)}
    rules[Precision.RAW] = lambda weight: weight.raw_bytes
    return Format(name, rules, lambda info: info.loaded_nbytes)


F32_IN_GGUF = re.compile(
    r".*\.(mlp|block_sparse_moe)\.(gate|router|router\.layer)\.weight"
    r"|.*\.ffn_gate_inp\.weight|(.*\.)?wpe\.weight|position_embd\.weight"
    r"|.*\.(conv|conv1d)\.weight"
)
"""Routers, learned positions and short convolutions: matrices that llama.cpp never narrows."""


def _gguf_rest(info: TensorInfo) -> int:
    """llama.cpp's converter stores matrices as F16, and as F32 vectors and what is no weight."""
    matrix = len(info.shape) > 1 and info.name.endswith(".weight")
    return (2 if matrix and not F32_IN_GGUF.fullmatch(info.name) else 4) * info.numel


_GGUF = {
    Precision.RAW: _first_fitting(F16),
    Precision.EIGHT_BIT: _first_fitting(Q8_0, F16),
    Precision.FOUR_BIT: _first_fitting(Q4_K, Q5_0, F16),
}
FORMATS: Mapping[str, Format] = {
    "nf4": _bitsandbytes("nf4", _nf4),
    "nf4-double": _bitsandbytes("nf4-double", _nf4_double),
    "gguf": Format("gguf", _GGUF, _gguf_rest),
}
"""bitsandbytes without and with double quantization, and GGUF (F16, Q8_0, Q4_K)."""
DEFAULT_FORMAT = "nf4"


def format_of(name: str) -> Format:
    """The format of that name; an InputError where there is none."""
    check_known(name, FORMATS, "target format")
    return FORMATS[name]


@dataclass(frozen=True)
class Footprint:
    """Bytes and parameters of a checkpoint, apart from where its values lie."""

    weights: Mapping[str, Weight]
    rest: tuple[TensorInfo, ...]
    """Embeddings, norms, biases, routers, the head: stored as they are."""

    @property
    def numel(self) -> int:
        """All parameters of the model."""
        return sum(one.numel for one in self.weights.values()) + sum(one.numel for one in self.rest)

    def nbytes(self, precisions: Mapping[str, Precision], target: Format) -> int:
        """Bytes of the whole model with ``precisions`` (weights not named stay raw)."""
        return self.rest_nbytes(target) + sum(
            target.nbytes(stored, precisions.get(name, Precision.RAW))
            for name, stored in self.weights.items()
        )

    def loaded_nbytes(
        self, precisions: Mapping[str, Precision], target: Format, value_bytes: int
    ) -> int:
        """Bytes of the whole model where everything not quantized is loaded at one width."""
        loaded = {
            name: replace(stored, raw_bytes=value_bytes * stored.numel)
            for name, stored in self.weights.items()
        }
        rest_bytes = value_bytes * sum(info.numel for info in self.rest)
        return rest_bytes + Footprint(loaded, ()).nbytes(precisions, target)

    def rest_nbytes(self, target: Format) -> int:
        """Bytes of everything that is never quantized."""
        return sum(target.rest(info) for info in self.rest)


def footprint_of(checkpoint: Checkpoint, layout: Layout) -> Footprint:
    """Account for every tensor of a checkpoint."""
    sources = layout.ignored.union(*(weight.sources for weight in layout.details.values()))
    rest = [
        info
        for name, info in checkpoint.tensors.items()
        if name not in sources
        if not name.endswith(SCALES + BUFFERS)
        # A causal mask that old checkpoints saved.
        if not (name.endswith((".attn.bias", ".attention.bias")) and len(info.shape) == 4)
    ]
    return Footprint(layout.details, tuple(rest))


CONTEXT = 8192
"""Tokens that a card is to hold unless others are asked for."""
UBATCH = 512
"""Tokens that llama.cpp computes at a time."""
RUNTIME_BYTES = 500_000_000
"""Assumed for the driver's context and the libraries' own memory."""


@dataclass(frozen=True)
class Card:
    """A card's memory, and what one sequence takes of it beside the weights, in bytes."""

    vram_bytes: int
    context: int
    """Tokens of the sequence."""
    cache_bytes: int
    activation_bytes: int

    @property
    def room(self) -> int:
        """Bytes left for weights."""
        return self.vram_bytes - self.cache_bytes - self.activation_bytes - RUNTIME_BYTES

    def __str__(self) -> str:
        return (
            f"of {self.vram_bytes / 1e9:.1f} GB, {self.room / 1e9:.2f} GB are for weights: "
            f"{self.context} tokens take {self.cache_bytes / 1e9:.2f} GB of cache and "
            f"{self.activation_bytes / 1e9:.2f} GB of activations (assumed: one sequence, a 16-bit "
            f"cache, flash attention, {RUNTIME_BYTES / 1e9:.1f} GB for driver and libraries)"
        )


def find_card(
    model: str, vram_bytes: int | None, context: int | None, target: str, progress: Progress
) -> Card | None:
    """The card that options describe, if they do; an InputError without room for weights."""
    if vram_bytes is None:
        if context is not None:
            raise InputError("--context is read with a card's memory only")
        return None
    checkpoint = open_checkpoint(model, progress)
    card = card_for(checkpoint, vram_bytes, CONTEXT if context is None else context, target)
    if card.room <= 0:
        needs = f"{(card.vram_bytes - card.room) / 1e9:.1f} GB"
        raise InputError(f"{card.context} tokens alone take {needs}: give a shorter --context")
    return card


def card_for(checkpoint: Checkpoint, vram_bytes: int, context: int, target: str) -> Card:
    """What a sequence takes on a card, from the shapes in ``config.json``.

    The cache holds keys and values of 16 bits: ``2 * layers * kv_heads * head_dim * context * 2``;
    a layer with a sliding window keeps that window, one without attention nothing to speak of.
    llama.cpp's activations are those of 512 tokens, ``512 * (vocabulary + 2 * hidden) * 4``: for
    SmolLM2-135M 98.3 MiB, where it reserves 98.3 to 102.5. transformers computes a prompt at once
    in 16 bits, ``context * (2 * hidden + 3 * intermediate) * 2``, and spreads out one quantized
    matrix, ``hidden * intermediate * 2``. These two are not compared with a GPU's counters.

    Raises:
        InputError: the config lacks a shape, or the model caches something else.
    """
    config = {**checkpoint.config, **checkpoint.text_config}
    if checkpoint.is_gguf or "kv_lora_rank" in config:
        other = "caches no plain keys and values; give a size"
        why = "is a GGUF file; give the model's folder" if checkpoint.is_gguf else other
        raise InputError(f"cannot tell what {checkpoint.model} takes on a card: it {why}")

    def number(*names: str, default: object = None) -> int:
        found = next((config[name] for name in names if config.get(name)), default)
        if not isinstance(found, int) or found < 1:
            raise InputError(f"config.json of {checkpoint.model} has no {names[0]}")
        return found

    hidden, heads = number(*WIDTH_KEYS[1:]), number("num_attention_heads", "n_head", "num_heads")
    head_dim = number("head_dim", default=hidden // heads)
    one_head = config.get("multi_query") and not config.get("new_decoder_architecture")
    kv_heads = 1 if one_head else number("num_key_value_heads", "num_kv_heads", default=heads)
    kinds = config.get("layer_types") or ["full_attention"] * number(*COUNT_KEYS)
    window = min(context, config.get("sliding_window") or context)
    # Layers of other kinds keep a state, which is small.
    kept = dict.fromkeys(("full_attention", "attention"), context)
    kept |= dict.fromkeys(("sliding_attention", "chunked_attention"), window)
    cache = 2 * kv_heads * head_dim * sum(kept.get(kind, 0) for kind in kinds) * 2
    if target == "gguf":
        return Card(vram_bytes, context, cache, UBATCH * (number("vocab_size") + 2 * hidden) * 4)
    inner = number("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    activations = context * (2 * hidden + 3 * inner) * 2 + hidden * inner * 2
    return Card(vram_bytes, context, cache, activations)
