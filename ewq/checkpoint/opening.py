"""A checkpoint on disk: names, shapes and bytes of its tensors, without building the model.

Tensors are memory-mapped one at a time and unmapped with the array that shows them, so resident
memory never follows the size of the model.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ewq.checkpoint.gguf_header import read_header
from ewq.checkpoint.hub import resolve
from ewq.checkpoint.tensors import (
    TensorInfo,
    as_torch,
    is_pointer,
    map_bytes,
    read_safetensors,
)
from ewq.errors import CheckpointError
from ewq.progress import NO_PROGRESS, Progress

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOAT16_MAX = 65504
KEPT_ITEMS = 64
"""Of a GGUF's arrays; longer ones are vocabularies."""
WHOLE_BYTES = 64 * 1024
SAMPLE_BYTES = 4096
SAMPLES = 4
NOT_THE_MODEL = frozenset({"transformers_version", "_name_or_path", "torch_dtype", "dtype"})
"""Config keys that loading and saving rewrite; dtypes are hashed from the tensors themselves."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: a Hugging Face folder of safetensors, or one GGUF file."""

    model: str
    """The model as it was asked for: hub id, folder or file."""
    path: Path
    """Local folder, or the ``.gguf`` file."""
    config: Mapping[str, Any]
    """``config.json``, or the metadata of a GGUF file."""
    architecture: str
    """Class name such as ``LlamaForCausalLM``; for GGUF ``general.architecture``."""
    tensors: Mapping[str, TensorInfo]

    @property
    def is_gguf(self) -> bool:
        """Whether this is a GGUF file."""
        return self.path.suffix.lower() == ".gguf"

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of the config that describes the language model."""
        text = self.config.get("text_config") or self.config
        if not isinstance(text, Mapping):
            raise CheckpointError(f"{self.model}: text_config in its config.json is no object")
        return text

    @cached_property
    def fingerprint(self) -> str:
        """``sha256:...`` of names, shapes, config and content sampled in every tensor.

        Every training step, merge or cast changes practically every tensor everywhere, so a few
        pages of each tell checkpoints apart. Sharding does not matter.
        """
        kept = {key: value for key, value in self.config.items() if key not in NOT_THE_MODEL}
        text = json.dumps(kept, sort_keys=True, separators=(",", ":"), default=str)
        digest = hashlib.sha256(text.encode())
        for name, info in sorted(self.tensors.items()):
            digest.update(f"\0{name}\0{info.dtype}\0{info.shape}\0".encode())
            data = map_bytes(info)
            for offset, length in _samples(info.nbytes):
                digest.update(data[offset : offset + length].data)
        return f"sha256:{digest.hexdigest()}"

    @cached_property
    def storage_dtype(self) -> str:
        """The 16-bit type that weights are kept in where they are not quantized.

        ``float16`` or ``bfloat16``, whichever most values are stored in. Wider values become
        float16, which has more digits, unless one of them, or of a few in bfloat16, is beyond its
        range.
        """
        sizes = Counter[str]()
        for info in self.tensors.values():
            sizes[info.dtype] += info.numel
        if sizes["BF16"] > sizes["F16"]:
            return "bfloat16"
        wide = [name for name, of in self.tensors.items() if of.dtype in ("BF16", "F32", "F64")]
        fits = all(self.largest(name) <= FLOAT16_MAX for name in wide)
        return "float16" if fits else "bfloat16"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors, in order of name."""
        return tuple(sorted({info.file for info in self.tensors.values()}))

    def load(self, name: str) -> torch.Tensor:
        """One tensor in its stored dtype, memory-mapped (GGUF: dequantised to float32)."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.model} has no tensor {name!r}")
        return as_torch(self.tensors[name])

    def largest(self, name: str) -> float:
        """Largest magnitude in a tensor; 0 of none, not finite where a value is not."""
        low, high = self.load(name).aminmax() if self.tensors[name].numel else (0.0, 0.0)
        return max(-float(low), float(high))


def _samples(nbytes: int) -> Iterator[tuple[int, int]]:
    """``(offset, length)`` of what is hashed: first, last and evenly between."""
    if nbytes <= WHOLE_BYTES:
        yield 0, nbytes
        return
    for index in range(SAMPLES):
        yield (nbytes - SAMPLE_BYTES) * index // (SAMPLES - 1), SAMPLE_BYTES


def open_checkpoint(model: str | Path, progress: Progress = NO_PROGRESS) -> Checkpoint:
    """Open a hub id (downloaded where not cached), a local folder or a ``.gguf`` file.

    A CheckpointError where it is not found (or offline and not cached), truncated, lacks a shard,
    or has its weights only in pickle files.
    """
    path = resolve(str(model), progress)
    if path.suffix.lower() == ".gguf":
        return _open_gguf(str(model), path)
    config = _read_config(path)
    architectures = config.get("architectures") or ["unknown"]
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise CheckpointError(f"architectures in {path / CONFIG} is not a list of names")
    tensors = _read_tensors(path, config)
    return Checkpoint(str(model), path, config, architectures[0], tensors)


def _open_gguf(model: str, path: Path) -> Checkpoint:
    """Vocabularies are counted, not kept."""
    header = read_header(path)
    metadata = {
        key: f"GgufArray(length={len(value)})"  # Fingerprints rest on this spelling.
        if isinstance(value, list) and len(value) > KEPT_ITEMS
        else value
        for key, value in header.metadata.items()
    }
    tensors = {info.name: info for info in header.tensors}
    return Checkpoint(model, path, metadata, header.architecture, tensors)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if (folder / ADAPTER).is_file():
        raise CheckpointError(f"{folder} is an adapter; merge it into its model and save that")
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG}; give a Hugging Face model folder")
    config = _read_json(path)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return config


def _read_json(path: Path) -> Any:
    if is_pointer(path):
        raise CheckpointError(f"{path} is a Git LFS pointer; download the file itself")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _read_tensors(folder: Path, config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """From the files that transformers reads: one, or those of an index."""
    index, single = folder / INDEX, folder / SINGLE
    if "transformers_weights" in config:
        raise CheckpointError(f"{folder}: drop transformers_weights, name the file {SINGLE}")
    if not index.is_file() and not single.is_file():
        no_pickles = "weights of other kinds may run code: save_pretrained converts them"
        raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}; {no_pickles}")
    weight_map = _weight_map(index) if index.is_file() else {}
    named = set(weight_map.values()) or {SINGLE}
    stored = {path.name for path in folder.glob("model*.safetensors")}
    if foreign := sorted(stored - named):
        said = f"{foreign[0]} does not belong with {min(named)}"
        raise CheckpointError(f"{folder} holds two sets of weights: {said}; remove one")
    return read_safetensors(single) if SINGLE in stored else _read_sharded(index, weight_map)


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file name, from an index that transformers can read too."""
    index = _read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map; download it again")
    if not isinstance(index.get("metadata"), dict):
        raise CheckpointError(f'{path} has no metadata; add "metadata": {{}}')
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard or Path(shard).name != shard:
            raise CheckpointError(f"{path} places {name} in {shard}, which is outside the folder")
    return weight_map


def _read_sharded(index: Path, named: Mapping[str, str]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(named.values())):
        path = index.with_name(shard)
        if not path.is_file():
            raise CheckpointError(f"{index} names {shard}, which is missing; download it")
        tensors |= read_safetensors(path)
    # transformers loads what shards hold, whether or not the index names it.
    if differing := sorted(tensors.keys() ^ named.keys()):
        said = f"only one of {index} and its shards has {differing[0]}"
        raise CheckpointError(f"{said} ({len(differing)} such tensors); download them again")
    return {name: tensors[name] for name in named}
