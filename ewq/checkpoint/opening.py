"""A checkpoint on disk: names, shapes and bytes of its tensors, without building the model.

Tensors are memory-mapped one at a time and unmapped with the array that
shows them, so resident memory never follows the size of the model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ewq.checkpoint.fingerprint import fingerprint_of
from ewq.checkpoint.hub import resolve
from ewq.checkpoint.tensors import TensorInfo, as_torch, is_pointer, map_bytes, read_safetensors
from ewq.errors import CheckpointError
from ewq.progress import NO_PROGRESS, Progress

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOAT16_MAX = 65504
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


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

    @cached_property
    def fingerprint(self) -> str:
        """``sha256:...`` of names, shapes, config and sampled content (see :mod:`.fingerprint`)."""
        return fingerprint_of(self.tensors, self.config)

    @cached_property
    def storage_dtype(self) -> str:
        """The 16-bit type that weights are kept in where they are not quantized.

        ``float16`` or ``bfloat16``, whichever most values are stored in. Wider values become
        float16, which has more digits, unless one of them is beyond its range.
        """
        sizes = Counter[str]()
        for info in self.tensors.values():
            sizes[info.dtype] += info.numel
        if sizes["BF16"] or sizes["F16"]:
            return "bfloat16" if sizes["BF16"] > sizes["F16"] else "float16"
        wide = [info for info in self.tensors.values() if info.dtype in ("F32", "F64")]
        return "float16" if all(map(_fits_float16, wide)) else "bfloat16"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors, in order of name."""
        return tuple(sorted({info.file for info in self.tensors.values()}))

    def tensor(self, name: str) -> TensorInfo:
        """Facts about one tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.model} has no tensor {name!r}") from None

    def stored_bytes(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes as stored, memory-mapped: ``[nbytes]`` uint8."""
        return map_bytes(self.tensor(name))

    def load(self, name: str) -> torch.Tensor:
        """One tensor in its stored dtype, memory-mapped (GGUF: dequantised to float32).

        Raises:
            CheckpointError: no such tensor, or a dtype that torch does not have.
        """
        return as_torch(self.tensor(name))


def _fits_float16(info: TensorInfo) -> bool:
    if not info.numel:
        return True
    low, high = as_torch(info).aminmax()
    return max(-low.item(), high.item()) <= FLOAT16_MAX


def open_checkpoint(model: str | Path, progress: Progress = NO_PROGRESS) -> Checkpoint:
    """Open a hub id, a local folder or a ``.gguf`` file; only headers are read.

    A hub model that is not in the cache is downloaded first, which ``progress`` is told of.

    Raises:
        CheckpointError: not found (or offline and not cached), truncated, a shard missing,
            or weights only in pickle files.
    """
    path = resolve(str(model), progress)
    if path.suffix.lower() == ".gguf":
        return _open_gguf(str(model), path)
    config = _read_config(path)
    tensors = _read_tensors(path, config)
    return Checkpoint(str(model), path, config, _architecture(config, path), tensors)


def _architecture(config: Mapping[str, Any], folder: Path) -> str:
    architectures = config.get("architectures") or ["unknown"]
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise CheckpointError(f"architectures in {folder / CONFIG} is not a list of names")
    return architectures[0]


def _open_gguf(model: str, path: Path) -> Checkpoint:
    from ewq.checkpoint.gguf_file import read_gguf

    architecture, metadata, tensors = read_gguf(path)
    return Checkpoint(model, path, metadata, architecture, tensors)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if (folder / ADAPTER).is_file():
        raise CheckpointError(
            f"{folder} holds an adapter ({ADAPTER}), not a whole model; merge it into its base "
            "model and save that"
        )
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG}; give a Hugging Face model folder")
    config = read_json(path)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return config


def read_json(path: Path) -> Any:
    """A JSON file of a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or is something else.
    """
    if is_pointer(path):
        raise CheckpointError(f"{path} is a Git LFS pointer; download the file itself")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _read_tensors(folder: Path, config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """From the files that transformers reads: the config's own choice, one file, or an index."""
    chosen = config.get("transformers_weights")
    if chosen is not None:
        return _read_chosen(folder, str(chosen))
    if not (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        raise CheckpointError(_why_no_weights(folder))
    named = _weight_map(folder / INDEX) if (folder / INDEX).is_file() else {"": SINGLE}
    stored = {path.name for path in folder.glob("model*.safetensors")}
    foreign = sorted(stored - set(named.values()))
    if foreign:
        raise CheckpointError(
            f"{folder} holds two sets of weights: {foreign[0]} does not belong with "
            f"{min(named.values())}, and programs differ in which they read; remove one set"
        )
    return read_safetensors(folder / SINGLE) if SINGLE in stored else _read_sharded(folder / INDEX)


def _read_chosen(folder: Path, name: str) -> dict[str, TensorInfo]:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise CheckpointError(f"{folder / CONFIG}: no file {name!r}, named as transformers_weights")
    return _read_sharded(path) if name.endswith(".json") else read_safetensors(path)


def _why_no_weights(folder: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} has its weights only in pickle files ({pickles[0]}), which can run code "
            "when opened; convert it with save_pretrained to safetensors first"
        )
    return f"{folder} has neither {SINGLE} nor {INDEX}"


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file name, from an index that transformers can read too."""
    index = read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map; download it again")
    if not isinstance(index.get("metadata"), dict):
        raise CheckpointError(
            f'{path} has no metadata, which transformers reads; add "metadata": {{}}'
        )
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard or Path(shard).name != shard:
            raise CheckpointError(f"{path} places {name} in {shard}, which is outside the folder")
    return weight_map


def _read_sharded(index: Path) -> dict[str, TensorInfo]:
    weight_map = _weight_map(index)
    headers: dict[str, dict[str, TensorInfo]] = {}
    for shard in sorted(set(weight_map.values())):
        path = index.with_name(shard)
        if not path.is_file():
            raise CheckpointError(f"{index} names {shard}, which is missing; download it")
        headers[shard] = read_safetensors(path)
    missing = [name for name, shard in weight_map.items() if name not in headers[shard]]
    if missing:
        raise CheckpointError(
            f"{missing[0]} is not in {weight_map[missing[0]]}, where {index.name} places it "
            f"({len(missing)} such tensors); the shards belong to different checkpoints"
        )
    unnamed = [name for held in headers.values() for name in held if name not in weight_map]
    if unnamed:
        raise CheckpointError(
            f"{index} does not name {unnamed[0]}, which its shards hold ({len(unnamed)} such "
            "tensors) and transformers loads; download the index again"
        )
    return {name: headers[shard][name] for name, shard in weight_map.items()}
