"""Blocks and quantizable weights of a checkpoint, found from names and config alone.

Names are those of the state dict after transformers has loaded the
checkpoint, which since version 5 may differ from those in the file: experts
are stacked, nested models renamed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ewq.checkpoint.families import FAMILY_OF, TIED_BY_DEFAULT, Family
from ewq.checkpoint.tensors import TensorInfo, as_torch
from ewq.errors import CheckpointError

if TYPE_CHECKING:
    from ewq.checkpoint.opening import Checkpoint

SCALES = (".weight_scale_inv", ".weight_scale", ".input_scale", ".activation_scale")
"""Companions of FP8 weights: part of the weight's storage, not weights."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
NAMED = 3
COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
WIDTH_KEYS = ("word_embed_proj_dim", "hidden_size", "n_embd", "d_model", "n_embed")
ANY_COUNT = 2**31


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
    """Tensors that loading leaves out: of layers beyond those of the config, and of a head that
    is the embedding once more."""

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of all quantizable weights in block order."""
        return tuple(self.details)

    def numel(self, block: Block) -> int:
        """Quantizable weights in a block."""
        return sum(self.details[name].numel for name in block.weights)


def scale_of(checkpoint: Checkpoint, source: str) -> TensorInfo | None:
    """The tensor of FP8 scales that belongs to a stored weight."""
    stem = source.removesuffix(".weight")
    names = (f"{stem}{suffix}" for suffix in SCALES[:2])
    return next((checkpoint.tensors[name] for name in names if name in checkpoint.tensors), None)


def find_layout(checkpoint: Checkpoint) -> Layout:
    """Find the decoder layers and their linear weights.

    Raises:
        CheckpointError: an unknown model type, a matrix in a block that no rule
            explains, or blocks that do not number 0, 1, 2, ...
    """
    if checkpoint.is_gguf:
        return _collect(checkpoint.model, _gguf_weights(checkpoint))
    family = _family(checkpoint)
    count = _block_count(checkpoint)
    stored = list(_placed(checkpoint, family))
    placed = [item for item in stored if item.index < count]
    beyond = {item.info.name for item in stored if item.index >= count}
    found = _weights(checkpoint.model, family, placed)
    layout = _collect(checkpoint.model, found, frozenset(beyond))
    if count != ANY_COUNT and len(layout.blocks) != count:
        raise CheckpointError(
            f"{checkpoint.model} has {len(layout.blocks)} blocks, but its config says {count}"
        )
    _check_complete(checkpoint.model, placed)
    copied = _copied_head(checkpoint, {item.info.name for item in stored})
    return replace(layout, ignored=layout.ignored | copied)


def check_original(checkpoint: Checkpoint) -> None:
    """Make sure that a model is whole and not quantized, as far as names and config tell.

    Raises:
        CheckpointError: as :func:`find_layout`, or quantized already.
    """
    quantized = checkpoint.config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, Mapping) else quantized
        raise CheckpointError(
            f"{checkpoint.model} is quantized already ({method or 'unknown'}); "
            "give the model it was made from"
        )
    if not checkpoint.is_gguf:
        find_layout(checkpoint)


def _check_complete(model: str, placed: Sequence[Found]) -> None:
    """Refuse a block that lacks a tensor of a block with all of its others.

    transformers would fill it with random values. Blocks of different kinds (dense and expert,
    attention and convolution) have tensors that the other kind has not.
    """
    blocks: dict[int, set[str]] = {}
    for item in placed:
        if not item.stored.endswith(SCALES):
            blocks.setdefault(item.index, set()).add(item.stored)
    kinds = {frozenset(names) for names in blocks.values()}
    for index, names in sorted(blocks.items()):
        whole = next((kind for kind in kinds if names < kind), None)
        if whole is not None:
            raise CheckpointError(
                f"{model} is incomplete: block {index} lacks {min(whole - names)}, which other "
                "blocks have; download it again"
            )


def _copied_head(checkpoint: Checkpoint, in_blocks: Collection[str]) -> set[str]:
    """The head's tensor where loading replaces it by the equal embedding.

    transformers ties the two where the config, or the architecture's default, says so; but
    where both are stored with different values it keeps both.

    Raises:
        CheckpointError: embedding or head is missing and nothing says that it is the other.
    """
    outside = [info for name, info in checkpoint.tensors.items() if name not in in_blocks]
    embedding = next((info for info in outside if _ends(info, EMBEDDINGS)), None)
    head = next((info for info in outside if _ends(info, HEADS)), None)
    tied = checkpoint.config.get("tie_word_embeddings", _model_type(checkpoint) in TIED_BY_DEFAULT)
    if (embedding is None or head is None) and not (tied and (embedding or head)):
        lacking = "token embedding" if embedding is None else "output head"
        raise CheckpointError(
            f"{checkpoint.model} stores no {lacking}, and its config does not tie the head to "
            "the embedding: it is incomplete, or no causal language model"
        )
    _check_shape(checkpoint, embedding or head)
    if embedding is None or head is None or not tied or not _equal(embedding, head):
        return set()
    return {head.name}


def _check_shape(checkpoint: Checkpoint, ends: TensorInfo | None) -> None:
    """Refuse a config of another vocabulary or width, with which nothing can be loaded."""
    text = checkpoint.config.get("text_config") or checkpoint.config
    expected = text.get("vocab_size", checkpoint.config.get("vocab_size"))
    if ends is None or not isinstance(expected, int) or len(ends.shape) != 2:
        return
    width = next((text[key] for key in WIDTH_KEYS if isinstance(text.get(key), int)), ends.shape[1])
    if ends.shape != (expected, width):
        raise CheckpointError(
            f"{checkpoint.model}: its config.json says {expected} tokens of width {width}, but "
            f"{ends.name} has shape {list(ends.shape)}"
        )


def _ends(info: TensorInfo, names: tuple[str, ...]) -> bool:
    return f".{info.name}".endswith(tuple(f".{name}" for name in names))


def _equal(one: TensorInfo, other: TensorInfo) -> bool:
    import torch

    return one.shape == other.shape and torch.equal(as_torch(one).float(), as_torch(other).float())


def _block_count(checkpoint: Checkpoint) -> int:
    """Decoder layers according to the config; beyond any number where it does not say."""
    text = checkpoint.config.get("text_config") or checkpoint.config
    if not isinstance(text, Mapping):
        raise CheckpointError(f"{checkpoint.model}: text_config in its config.json is no object")
    for key in COUNT_KEYS:
        count = text.get(key)
        if isinstance(count, int):
            return count
        if count is not None:
            raise CheckpointError(
                f"{checkpoint.model}: {key} in its config.json is {count!r}, not a number"
            )
    return ANY_COUNT


def _gguf_weights(checkpoint: Checkpoint) -> list[Found]:
    from ewq.checkpoint.gguf_file import loaded_names

    named = loaded_names(checkpoint.model, checkpoint.architecture, checkpoint.tensors)
    return [
        Found(
            root, index, inner, inner, info, transposed=False, expert=not inner.endswith(".weight")
        )
        for root, index, inner, info in named
    ]


def _family(checkpoint: Checkpoint) -> Family:
    model_type = _model_type(checkpoint)
    if model_type not in FAMILY_OF:
        raise CheckpointError(
            f"{checkpoint.model} has model_type {model_type!r}, whose blocks ewq does not know; "
            f"known: {', '.join(sorted(FAMILY_OF))}"
        )
    return FAMILY_OF[model_type]


def _model_type(checkpoint: Checkpoint) -> str:
    return str(checkpoint.config.get("model_type", "(none)"))


@dataclass(frozen=True)
class Found:
    """One stored tensor recognised as (part of) a quantizable weight."""

    root: str
    index: int
    stored: str
    """Name below the block in the file."""
    inner: str
    """State-dict name below the block."""
    info: TensorInfo
    transposed: bool
    expert: bool


def _placed(checkpoint: Checkpoint, family: Family) -> Iterator[Found]:
    """Every stored tensor that lies in a block."""
    roots = "|".join(re.escape(root) for root in family.roots)
    pattern = re.compile(rf"({roots})(\d+)\.(.+)")
    for info in checkpoint.tensors.values():
        match = pattern.fullmatch(info.name)
        if match is not None:
            inner, expert = _loaded_name(match[3], info, family)
            root = family.roots[match[1]]
            yield Found(root, int(match[2]), match[3], inner, info, family.transposed, expert)


def _weights(model: str, family: Family, placed: list[Found]) -> list[Found]:
    """Those that are quantizable; a matrix is one, or known not to be, or an error."""
    found, unknown = [], []
    for item in placed:
        name = item.info.name
        if name.endswith(SCALES) or len(item.info.shape) not in (2, 3):
            continue
        module = item.inner.removesuffix(".weight")
        if item.expert or module in family.linear:
            found.append(item)
        elif module not in family.other:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{model} has {len(unknown)} matrices in its blocks that ewq does not know "
            f"for this model type: {', '.join(unknown[:NAMED])}"
        )
    return found


def _loaded_name(inner: str, info: TensorInfo, family: Family) -> tuple[str, bool]:
    """State-dict name of a block's tensor after loading, and whether it holds experts."""
    for stored, loaded in family.renames.items():
        if inner == stored or inner.startswith(f"{stored}."):
            inner = loaded + inner.removeprefix(stored)
    one_expert = re.fullmatch(r"mlp\.experts\.\d+\.(.+)", inner)
    if one_expert and one_expert[1] in family.experts:
        return family.experts[one_expert[1]], True
    return inner, len(info.shape) == 3 and inner in family.experts.values()


def _collect(model: str, found: list[Found], ignored: frozenset[str] = frozenset()) -> Layout:
    if not found:
        raise CheckpointError(f"{model} has no decoder blocks that ewq recognises")
    grouped: dict[tuple[int, str], list[Found]] = {}
    for item in found:
        grouped.setdefault((item.index, f"{item.root}{item.index}.{item.inner}"), []).append(item)
    indices = sorted({index for index, _ in grouped})
    if indices != list(range(len(indices))):
        gap = next(want for want, index in enumerate(indices) if want != index)
        raise CheckpointError(f"{model} has no block {gap}; its blocks number up to {indices[-1]}")
    details = {
        name: _weight(name, items)
        for (_, name), items in sorted(grouped.items(), key=lambda entry: entry[0][0])
    }
    root = found[0].root
    blocks = tuple(
        Block(index, f"{root}{index}", tuple(_names_of(grouped, index))) for index in indices
    )
    return Layout(blocks, details, ignored)


def _names_of(grouped: Mapping[tuple[int, str], list[Found]], wanted: int) -> Iterator[str]:
    return (name for index, name in grouped if index == wanted)


def _weight(name: str, items: list[Found]) -> Weight:
    first = items[0]
    shape = first.info.shape
    return Weight(
        name,
        tuple(item.info.name for item in items),
        sum(math.prod(item.info.shape) for item in items),
        shape[0] if first.transposed else shape[-1],
        first.transposed,
        first.expert,
    )
