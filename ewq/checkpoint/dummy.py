"""Checkpoints of random weights in a real model's shape: for speed and memory only.

Speed and memory do not depend on the weights' values, so a shape is enough to
measure them where the real weights cannot be had. The folder is an ordinary
checkpoint: planning, quantizing and GGUF export treat it like any other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ewq.checkpoint.embedded import fixture_path
from ewq.errors import CheckpointError
from ewq.files import cache_dir, content_key, whole_folder
from ewq.progress import NO_PROGRESS, Progress, step

if TYPE_CHECKING:
    import torch

PREFIX = "dummy:"
SEED = 20250307
SHARD_BYTES = 2_000_000_000
TOKENIZER_FIXTURE = "tiny-qwen3"
_OUTLIERS = (6.0, 12.0)
"""Range of the largest value of a block in standard deviations: blocks differ as real ones do."""


def dummy_label(config_file: Path) -> str:
    """The name under which figures of a dummy checkpoint are shown."""
    return f"{config_file.stem} shape (random weights)"


def dummy_checkpoint(
    config_file: Path, device: str = "cpu", progress: Progress = NO_PROGRESS
) -> Path:
    """A checkpoint with seeded random weights for ``config_file``, made once.

    Args:
        config_file: a ``config.json``.
        device: where the values are drawn; another device draws other values.
        progress: told in tensors.

    Raises:
        CheckpointError: no such file, no causal language model's config, or fewer tokens in it
            than the fixture's tokenizer has.
        EwqError: the cache folder cannot be written.
    """
    text = _read(config_file)
    _require_vocabulary(config_file, text)
    key = content_key(text, SEED, device)[:12]
    target = cache_dir("dummy", f"{config_file.stem}-{key}")
    if not target.exists():
        shapes, dtype = _shapes(text, config_file)
        with (
            step(progress, "drawing random weights", len(shapes), "tensors"),
            whole_folder(target, shared=True) as work,
        ):
            (work / "config.json").write_text(text, encoding="utf-8")
            _write_shards(work, _draw(shapes, dtype, device, progress))
            _add_tokenizer(work)
    return target


def _read(config_file: Path) -> str:
    try:
        return config_file.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{PREFIX}{config_file}: {error.strerror}; give a model's config.json"
        ) from error


def _shapes(text: str, config_file: Path) -> tuple[dict[str, torch.Size], torch.dtype]:
    """Names and shapes of the model's weights, without allocating any."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        fields = json.loads(text)
        config = AutoConfig.for_model(**fields)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{config_file} is no causal language model's config") from error
    tied = set(model.all_tied_weights_keys)
    shapes = {k: v.shape for k, v in model.state_dict().items() if k not in tied}
    return shapes, getattr(torch, str(fields.get("dtype", "bfloat16")))


def _require_vocabulary(config_file: Path, text: str) -> None:
    """llama.cpp's converter needs an embedding for every token of the tokenizer."""
    least = json.loads((fixture_path(TOKENIZER_FIXTURE) / "config.json").read_text("utf-8"))
    try:
        size = json.loads(text)["vocab_size"]
    except (ValueError, KeyError, TypeError):
        # No vocabulary is named here: what else is wrong is found where the shape is made.
        return
    if size < least["vocab_size"]:
        raise CheckpointError(
            f"{config_file} has a vocabulary of {size}; random weights come with a tokenizer of "
            f"{least['vocab_size']} tokens, so give a config with at least as many"
        )


def _draw(
    shapes: Mapping[str, torch.Size], dtype: torch.dtype, device: str, progress: Progress
) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    generator = torch.Generator(device).manual_seed(SEED)
    spread = torch.Generator("cpu").manual_seed(SEED)
    for name, shape in shapes.items():
        if len(shape) < 2:
            values = torch.ones(shape, dtype=dtype)
        else:
            values = torch.empty(shape, dtype=dtype, device=device)
            values.normal_(0.0, 0.02, generator=generator)
            low, high = _OUTLIERS
            largest = low + (high - low) * torch.rand((), generator=spread).item()
            values.view(-1)[:2] = torch.tensor([largest, -largest], device=device) * 0.02
        progress.advance(1)
        yield name, values.cpu()


def _write_shards(folder: Path, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(_grouped(tensors), start=1):
        file = f"model-{number:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
        total += sum(tensor.nbytes for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _grouped(
    tensors: Iterator[tuple[str, torch.Tensor]],
) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        shard[name] = tensor
        if sum(held.nbytes for held in shard.values()) >= SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard


def _add_tokenizer(folder: Path) -> None:
    """Any tokenizer does: speed is measured on random token ids. llama.cpp wants one to convert."""
    for file in fixture_path(TOKENIZER_FIXTURE).glob("*token*"):
        shutil.copy(file, folder)
