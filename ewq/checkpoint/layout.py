"""Blocks and quantizable weights of a checkpoint, found from names and config alone.

Names are those of the state dict after transformers has loaded the checkpoint, which may differ
from those in the file: experts are stacked, nested models renamed.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ewq.checkpoint.families import FAMILY_OF, GGUF_FAMILY, TIED_BY_DEFAULT, Family
from ewq.checkpoint.opening import Checkpoint
from ewq.checkpoint.tensors import TensorInfo, as_torch
from ewq.errors import CheckpointError

SCALES = (".weight_scale_inv", ".weight_scale", ".input_scale", ".activation_scale")
"""Companions of FP8 weights: part of the weight's storage, not weights."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
NAMED = 3
COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
WIDTH_KEYS = ("word_embed_proj_dim", "hidden_size", "n_embd", "d_model", "n_embed")


@dataclass(frozen=True)
class Weight:
    """One quantizable weight of the loaded model."""

    name: str
    """As in the loaded model's state dict."""
    sources: tuple[str, ...]
    """Tensors of the checkpoint that make it up: one, or every expert's."""
    numel: int
    in_features: int
    """Length of one output row: what int8 shares a scale over."""
    raw_bytes: int
    """Without quantization: in 16 bits a value, or in FP8 with its scales."""
    transposed: bool = False
    """Stored ``[in, out]``."""
    expert: bool = False
    """A stacked 3-D parameter rather than a linear module's weight."""


@dataclass(frozen=True)
class Block:
    """One decoder layer."""

    index: int
    name: str
    weights: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """Every block and every quantizable weight of a checkpoint."""

    blocks: tuple[Block, ...]
    details: Mapping[str, Weight]
    """By the weight's name, in block order."""
    ignored: frozenset[str] = frozenset()
    """Tensors that loading leaves out: of layers beyond the config's, or a copied head."""

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of all quantizable weights in block order."""
        return tuple(self.details)

    def numel(self, block: Block) -> int:
        """Quantizable weights in a block."""
        return sum(self.details[name].numel for name in block.weights)


@dataclass(frozen=True)
class _Placed:
    """A stored tensor that lies in a block."""

    index: int
    block: str
    stored: str
    """Name below the block in the file."""
    inner: str
    """State-dict name below the block."""
    expert: bool
    info: TensorInfo


def scale_of(checkpoint: Checkpoint, source: str) -> TensorInfo | None:
    """The tensor of FP8 scales that belongs to a stored weight."""
    names = (source.removesuffix(".weight") + suffix for suffix in SCALES[:2])
    return next((checkpoint.tensors[name] for name in names if name in checkpoint.tensors), None)


def find_layout(checkpoint: Checkpoint) -> Layout:
    """Find the decoder layers and their linear weights.

    A CheckpointError of an unknown model type, a matrix in a block that no pattern explains,
    blocks that do not number 0, 1, 2, ..., or what the config says and is not there.
    """
    family = _family(checkpoint)
    stored = list(_placed(checkpoint.tensors.values(), family))
    count = block_count(checkpoint)
    placed = [item for item in stored if count is None or item.index < count]
    layout = _collect(checkpoint, placed, family, count)
    if checkpoint.is_gguf:
        return layout
    _check_complete(checkpoint.model, placed)
    in_blocks = {item.info.name for item in stored}
    beyond = in_blocks - {item.info.name for item in placed}
    return replace(layout, ignored=frozenset(beyond | _copied_head(checkpoint, in_blocks)))


def check_original(checkpoint: Checkpoint) -> None:
    """Raise a CheckpointError of a model that is quantized already, or not whole by its names."""
    if quantized := checkpoint.config.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, Mapping) else quantized
        raise CheckpointError(f"{checkpoint.model} is quantized already ({method or 'unknown'})")
    if not checkpoint.is_gguf:
        find_layout(checkpoint)


def _family(checkpoint: Checkpoint) -> Family:
    if checkpoint.is_gguf:
        return GGUF_FAMILY
    kind = str(checkpoint.config.get("model_type", "(none)"))
    if kind not in FAMILY_OF:
        unknown = f"{checkpoint.model} has model_type {kind!r}, whose blocks ewq does not know"
        raise CheckpointError(f"{unknown}; known: {', '.join(sorted(FAMILY_OF))}")
    return FAMILY_OF[kind]


def block_count(checkpoint: Checkpoint) -> int | None:
    """Decoder layers by the config; ``None`` where it does not say."""
    text = checkpoint.text_config
    key = next((key for key in COUNT_KEYS if text.get(key) is not None), None)
    if key is not None and not isinstance(text[key], int):
        raise CheckpointError(f"{checkpoint.model}: {key} in its config.json is {text[key]!r}")
    return None if key is None else int(text[key])


def _placed(tensors: Collection[TensorInfo], family: Family) -> Iterator[_Placed]:
    pattern = re.compile(rf"({'|'.join(map(re.escape, family.roots))})(\d+)\.(.+)")
    for info in tensors:
        if match := pattern.fullmatch(info.name):
            index, block = int(match[2]), f"{family.roots[match[1]]}{match[2]}"
            yield _Placed(index, block, match[3], *_loaded_name(match[3], family), info)


def _loaded_name(stored: str, family: Family) -> tuple[str, bool]:
    """State-dict name of a block's tensor after loading, and whether it holds experts."""
    for pattern, stacked in family.experts.items():
        if stored == stacked or re.fullmatch(pattern, stored):
            return stacked, True
    for module, loaded in family.renames.items():
        if stored.startswith(f"{module}."):
            return loaded + stored.removeprefix(module), False
    return stored, False


def _collect(
    checkpoint: Checkpoint, placed: Sequence[_Placed], family: Family, count: int | None
) -> Layout:
    model = checkpoint.model
    grouped: dict[str, list[_Placed]] = {}
    for item in sorted(_quantizable(model, family, placed), key=lambda item: item.index):
        grouped.setdefault(f"{item.block}.{item.inner}", []).append(item)
    if not grouped:
        raise CheckpointError(f"{model} has no decoder blocks that ewq recognises")
    names: dict[int, list[str]] = {}
    for name, items in grouped.items():
        names.setdefault(items[0].index, []).append(name)
    count = count or max(names) + 1
    if missing := set(range(count)) - names.keys():
        raise CheckpointError(f"{model} has no block {min(missing)} of {count}")
    blocks = (
        Block(index, grouped[inside[0]][0].block, tuple(inside)) for index, inside in names.items()
    )
    details = {name: _weight(checkpoint, name, items, family) for name, items in grouped.items()}
    return Layout(tuple(blocks), details)


def _weight(checkpoint: Checkpoint, name: str, items: Sequence[_Placed], family: Family) -> Weight:
    first = items[0].info
    scales = (scale_of(checkpoint, item.info.name) for item in items)
    return Weight(
        name,
        tuple(item.info.name for item in items),
        sum(item.info.numel for item in items),
        first.shape[0 if family.transposed else -1],
        sum(item.info.loaded_nbytes for item in items) + sum(of.nbytes for of in scales if of),
        family.transposed,
        items[0].expert or len(first.shape) == 3,
    )


def _quantizable(model: str, family: Family, placed: Sequence[_Placed]) -> Iterator[_Placed]:
    """A matrix in a block is quantizable, or known not to be, or an error."""
    unknown = []
    for item in placed:
        if item.stored.endswith(SCALES) or len(item.info.shape) not in (2, 3):
            continue
        module = item.inner.removesuffix(".weight")
        if item.expert or re.fullmatch(family.linear, module):
            yield item
        elif not re.fullmatch(family.other, module):
            unknown.append(item.info.name)
    if unknown:
        raise CheckpointError(
            f"{model} has {len(unknown)} matrices in its blocks that ewq does not know "
            f"for this model type: {', '.join(unknown[:NAMED])}"
        )


def _check_complete(model: str, placed: Sequence[_Placed]) -> None:
    """Refuse a block that lacks a tensor of a block with all of its others.

    transformers would draw it. Blocks of other kinds have tensors of their own.
    """
    blocks: dict[int, set[str]] = {}
    for item in placed:
        if not item.stored.endswith(SCALES):
            blocks.setdefault(item.index, set()).add(item.stored)
    kinds = {frozenset(names) for names in blocks.values()}
    for index, names in sorted(blocks.items()):
        if whole := next((kind for kind in kinds if names < kind), None):
            lost = f"block {index} lacks {min(whole - names)}, which other blocks have"
            raise CheckpointError(f"{model} is incomplete: {lost}; download it again")


def _copied_head(checkpoint: Checkpoint, in_blocks: Collection[str]) -> set[str]:
    """The head's tensor where loading replaces it by the equal embedding.

    transformers ties the two where config or architecture say so, unless both are stored with
    different values. Where one is missing and they are not tied, the model is refused.
    """
    outside = [info for name, info in checkpoint.tensors.items() if name not in in_blocks]
    embedding, head = (
        next((info for info in outside if info.name.endswith(names)), None)
        for names in (EMBEDDINGS, HEADS)
    )
    default = checkpoint.config["model_type"] in TIED_BY_DEFAULT
    tied = checkpoint.config.get("tie_word_embeddings", default)
    stored = embedding or head
    if stored is None or ((embedding is None or head is None) and not tied):
        lacking = "token embedding" if embedding is None else "output head"
        said = f"{checkpoint.model} stores no {lacking}, and its config does not tie the two"
        raise CheckpointError(f"{said}: it is incomplete, or no causal language model")
    _check_shape(checkpoint, stored)
    return {head.name} if embedding and head and tied and _equal(embedding, head) else set()


def _check_shape(checkpoint: Checkpoint, stored: TensorInfo) -> None:
    """Refuse a config of another vocabulary or width, with which nothing can be loaded."""
    text = checkpoint.text_config
    expected = text.get("vocab_size", checkpoint.config.get("vocab_size"))
    if not isinstance(expected, int) or len(stored.shape) != 2:
        return
    widths = (text[key] for key in WIDTH_KEYS if isinstance(text.get(key), int))
    width = next(widths, stored.shape[1])
    if stored.shape != (expected, width):
        said = f"{checkpoint.model}: its config.json says {expected} tokens of width {width}"
        raise CheckpointError(f"{said}, but {stored.name} has shape {list(stored.shape)}")


def _equal(one: TensorInfo, other: TensorInfo) -> bool:
    import torch

    return one.shape == other.shape and torch.equal(as_torch(one).float(), as_torch(other).float())
