"""Model folders that somebody made of the model under test: quantized, tuned, or an adapter of it.

transformers loads them by what their own ``config.json`` says; nothing in them is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from ewq.backends.transformers import TransformersModel, load_transformers
from ewq.checkpoint.hub import resolve
from ewq.checkpoint.layout import block_count, find_layout
from ewq.checkpoint.loading import first_line, load_tokenizer, refusals, tokenizer_files
from ewq.checkpoint.opening import ADAPTER, Checkpoint, open_checkpoint
from ewq.errors import BackendUnavailable, CheckpointError
from ewq.files import content_key, file_digest
from ewq.gguf.probe import MOST_RENAMED, shape_of_config
from ewq.instruments.memory import weights_bytes
from ewq.progress import NO_PROGRESS, Progress

ADAPTER_WEIGHTS = "adapter_model.safetensors"
LIBRARIES = {"awq": "gptqmodel", "ewq": "bitsandbytes", "gptq": "optimum gptqmodel"} | {
    method: method for method in ("bitsandbytes", "compressed-tensors", "torchao")
}
"""Method -> what runs it; of other methods transformers says it while loading."""
PROBE = "Naïve café: 12345 tokens,\n\tof 中文 and 🙂 -- isn't it?"
_BITS = ("num_bits", "bits", "w_bit", "nbits", "fmt", "_type")
_NOT_OF_WEIGHTS = ("input_activations", "output_activations", "kv_cache_scheme", "_data")


@dataclass(frozen=True)
class ModelFolder:
    """One such folder, opened: its headers are read and its files are whole."""

    path: Path
    base: Checkpoint
    """The model under test."""
    own: Checkpoint | None
    """``None`` of an adapter, whose weights are those of ``base`` with its changes."""

    @cached_property
    def quantization(self) -> Mapping[str, Any]:
        """What its config says of quantization; empty of plain weights."""
        found = self.own and self.own.config.get("quantization_config")
        return found if isinstance(found, Mapping) else {}

    @property
    def method(self) -> str:
        """Method and bits by its own config, such as ``gptq 4-bit``; empty of plain weights."""
        told = self.quantization
        if not told:
            return "" if self.own else "adapter, merged"
        bits = [f"{each}-bit" if each.isdigit() else each for each in _bits_in(told)]
        if self._method == "bitsandbytes":
            bits = ["int8" if told.get("load_in_8bit") else str(told.get("bnb_4bit_quant_type"))]
        return " ".join(dict.fromkeys((self._method, *bits)))

    @property
    def _method(self) -> str:
        # Older folders of bitsandbytes name no method.
        return str(self.quantization.get("quant_method", "bitsandbytes"))

    @property
    def fingerprint(self) -> str:
        """``sha256:...`` by which records know the folder's content."""
        if self.own:
            return self.own.fingerprint
        files = (file_digest(self.path / name) for name in (ADAPTER, ADAPTER_WEIGHTS))
        return f"sha256:{content_key(self.base.fingerprint, *files)}"

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in its files; floats of plain weights count in 16 bits."""
        tensors = (self.own or self.base).tensors.values()
        return sum(each.nbytes if self.quantization else each.loaded_nbytes for each in tensors)

    def require_library(self) -> None:
        """Raise a BackendUnavailable that says what to install for the method."""
        needed = LIBRARIES.get(self._method, "") if self.quantization else "peft" * (not self.own)
        absent = [name for name in needed.split() if not find_spec(name.replace("-", "_"))]
        if absent:
            raise BackendUnavailable(f"{self.path} ({self.method}): pip install {' '.join(absent)}")

    def require_same_model(self, tokenizer: Any, label: str) -> None:
        """Refuse what lacks the shape or the tokens of ``label``, or needs code of its own.

        A folder without tokenizer files is read with the model's, as every variant is.
        """
        if self.own is None:
            return
        with refusals(str(self.path)):
            AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        # By the configs alone: quantized tensors have other shapes.
        shapes = [shape_of_config(c.config, block_count(c) or 0) for c in (self.base, self.own)]
        (ours, theirs), kinds = shapes, (self.base.architecture, self.own.architecture)
        few = theirs.vocabulary < min(ours.vocabulary, len(tokenizer))
        if few or kinds[0] != kinds[1] or replace(ours, vocabulary=theirs.vocabulary) != theirs:
            why = f"is {kinds[1]} with {theirs}, {label} is {kinds[0]} with {ours}"
        elif not (why := self._differing_tokens(tokenizer, label)):
            return
        raise CheckpointError(f"{self.path} {why}: not made of this model; give its --ewq-model")

    def _differing_tokens(self, tokenizer: Any, label: str) -> str:
        """How its tokenizer differs, beyond a few renamed or added tokens; empty if it does not."""
        if not tokenizer_files(self.path):
            return ""
        other = load_tokenizer(self.path, str(self.path))
        known, ours = other.get_vocab(), tokenizer.get_vocab()
        differing = sum(known.get(token) != number for token, number in ours.items())
        if differing > MOST_RENAMED * len(ours):
            return f"spells {differing} of {len(ours)} tokens otherwise than {label}"
        one, two = (each.encode(PROBE, add_special_tokens=False) for each in (tokenizer, other))
        return "" if one == two else f"reads the same text into other tokens than {label}"


def _bits_in(told: Mapping[str, Any]) -> Iterator[str]:
    for key, value in told.items():
        if key in _BITS and isinstance(value, str | int):
            yield str(value)
        elif isinstance(value, Mapping) and key not in _NOT_OF_WEIGHTS:
            yield from _bits_in(value)


def open_model_folder(
    source: str, base: Checkpoint, progress: Progress = NO_PROGRESS
) -> ModelFolder:
    """Open a hub id or a local folder; a CheckpointError as of :func:`open_checkpoint`."""
    path = resolve(source, progress)
    if not (path / ADAPTER).is_file():
        return ModelFolder(path, base, open_checkpoint(source, progress))
    if not (path / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"{path} has {ADAPTER}, but no {ADAPTER_WEIGHTS}: save it again")
    return ModelFolder(path, base, None)


def load_model_folder(folder: ModelFolder, **how: Any) -> tuple[TransformersModel, tuple[str, ...]]:
    """The model, loaded as :func:`load_transformers` does, and sentences on how.

    A quantized one weighs what its files hold. Besides the errors of that function a
    BackendUnavailable where the method's library is missing or refuses the device.
    """
    folder.require_library()
    if folder.own is None:
        model = load_transformers(folder.base.path, adapter=folder.path, **how)
        return model, (f"the adapter in {folder.path} is merged into the model's weights",)
    if folder._method == "ewq":
        import ewq.quantizer  # noqa: F401 (registers the method)
    if not folder.quantization:
        return load_transformers(folder.path, **how), ()
    asked, stored = how["dtype"], folder.own.storage_dtype
    # Its tensors multiply values of their own type only.
    how["dtype"] = stored if folder._method == "torchao" else asked
    try:
        model = load_transformers(folder.path, **how)
        # What is unpacked or compiled at first use is so before anything is timed.
        model.token_logprobs([0], [[0]])
    except (ImportError, RuntimeError) as error:
        if "memory" in str(error).lower():
            raise
        text = f"{folder.path} ({folder.method}) does not run here: {first_line(error)}"
        raise BackendUnavailable(text) from error
    ignored = find_layout(folder.base).ignored
    numel = sum(each.numel for name, each in folder.base.tensors.items() if name not in ignored)
    held, size = weights_bytes(model._model, getattr(torch, stored)), folder.nbytes
    model.info = replace(model.info, weights_bytes=size, bits_per_weight=8 * size / numel)
    kept = model.info.dtype
    unpacked = f"unpacked by transformers: {held:,} bytes in memory, {size:,} in its files"
    typed = f"computes in {kept}, as it is stored, where {asked} was asked for"
    return model, (*(unpacked,) * (held > 1.01 * size), *(typed,) * (kept != asked))
