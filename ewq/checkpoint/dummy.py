"""Checkpoints of random weights in a real model's shape: for speed and memory only.

Neither depends on the weights' values. Everything treats the folder like any other checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ewq.checkpoint.embedded import fixture_path
from ewq.errors import CheckpointError
from ewq.files import cache_dir, content_key, whole_folder
from ewq.progress import NO_PROGRESS, Progress, step

if TYPE_CHECKING:
    import torch

PREFIX = "dummy:"
SEED = 20250308
SHARD_BYTES = 2_000_000_000
INDEX = "model.safetensors.index.json"
TOKENIZER_FIXTURE = "tiny-qwen3"


def dummy_checkpoint(
    config_file: Path, device: str = "cpu", progress: Progress = NO_PROGRESS
) -> Path:
    """A checkpoint with seeded random weights for a ``config.json``, made once for each device.

    A CheckpointError of no such file or no causal language model's config, an EwqError where the
    cache folder cannot be written.
    """
    try:
        text = config_file.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"no config.json at {config_file}: {error.strerror}") from error
    key = content_key(text, SEED, device)[:12]
    target = cache_dir("dummy", f"{config_file.stem}-{key}")
    if not target.exists():
        empty = _empty(text, config_file)
        with (
            step(progress, "drawing random weights", len(empty), "tensors"),
            whole_folder(target, shared=True) as work,
        ):
            (work / "config.json").write_text(text, encoding="utf-8")
            _write_shards(work, empty, _draw(empty, device, progress))
            # Any tokenizer does: speed is measured on random ids. Converting to GGUF wants one.
            for file in fixture_path(TOKENIZER_FIXTURE).glob("*token*"):
                shutil.copy(file, work)
    return target


def _empty(text: str, config_file: Path) -> dict[str, torch.Tensor]:
    """The model's tensors without values, on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        fields = json.loads(text)
        config = AutoConfig.for_model(**fields)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=False
            )
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{config_file} is no causal language model's config") from error
    tied = set(model.all_tied_weights_keys)
    dtype = getattr(torch, str(fields.get("dtype", "bfloat16")))
    return {name: of.to(dtype) for name, of in model.state_dict().items() if name not in tied}


def _draw(
    empty: Mapping[str, torch.Tensor], device: str, progress: Progress
) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    generator = torch.Generator(device).manual_seed(SEED)
    for name, of in empty.items():
        if of.ndim < 2:
            values = torch.ones_like(of, device="cpu")
        else:
            values = torch.empty_like(of, device=device)
            values.normal_(0.0, 0.02, generator=generator)
        progress.advance(1)
        yield name, values.cpu()


def _write_shards(
    folder: Path, empty: Mapping[str, torch.Tensor], drawn: Iterator[tuple[str, torch.Tensor]]
) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    split = split_torch_state_dict_into_shards(dict(empty), max_shard_size=SHARD_BYTES)
    for file, names in split.filename_to_tensors.items():
        save_file(dict(islice(drawn, len(names))), folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
