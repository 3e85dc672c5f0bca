"""A quantized model as a folder that ``from_pretrained`` opens."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.errors import EwqError, InputError
from ewq.instruments.memory import weights_bytes
from ewq.planning.plan import QuantizationPlan, write_plan
from ewq.progress import NO_PROGRESS, Progress
from ewq.quantizer.card import CARD, model_card
from ewq.quantizer.config import EwqConfig

PLAN = "plan.json"
NOT_COPIED = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.bin.index.json",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.gguf",
    "README.md",
    ".*",
)
"""Weights in any format, and what is written anew; tokenizer, templates and code are copied."""


@dataclass(frozen=True)
class Quantized:
    """What was written."""

    folder: Path
    plan: QuantizationPlan
    weights_bytes: int
    """Exact bytes of the model in memory, scales included."""


def quantize_to_folder(
    model: str | Path,
    config: EwqConfig,
    out: str | Path,
    *,
    device: str = "cpu",
    progress: Progress = NO_PROGRESS,
) -> Quantized:
    """Quantize a checkpoint into a folder; the folder is complete or does not appear.

    Args:
        model: hub id or model folder.
        config: plan or rule, and how to store the weights.
        out: a folder that does not exist yet, or is empty.
        device: where each weight is quantized.
        progress: told about bytes downloaded.

    Raises:
        InputError: ``out`` is in use, or ``model`` is a GGUF file or quantized already.
        PlanError, CheckpointError: as when loading.
        EwqError: the folder cannot be written.
    """
    out = Path(out)
    checkpoint = open_checkpoint(model, progress)
    _check(checkpoint, out)
    loaded = _load(checkpoint, config, device)
    plan = loaded.hf_quantizer.quantization_config.plan
    size = weights_bytes(loaded)
    with _appearing(out) as folder:
        _copy_companions(checkpoint.path, folder)
        loaded.save_pretrained(folder)
        write_plan(plan, folder / PLAN)
        (folder / CARD).write_text(
            model_card(plan, loaded.hf_quantizer.quantization_config.options, size),
            encoding="utf-8",
        )
    return Quantized(out, plan, size)


def _check(checkpoint: Checkpoint, out: Path) -> None:
    if checkpoint.is_gguf:
        raise InputError(
            f"{checkpoint.model} is a GGUF file; `ewq quantize` takes a Hugging Face model, "
            "`ewq export` makes GGUF files"
        )
    already = checkpoint.config.get("quantization_config")
    if already:
        method = already.get("quant_method", "unknown") if isinstance(already, dict) else "unknown"
        raise InputError(
            f"{checkpoint.model} is quantized already ({method}); give the original model"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder; remove it or choose another")


def _load(checkpoint: Checkpoint, config: EwqConfig, device: str) -> Any:  # noqa: ANN401
    """The quantized model, of the class that the checkpoint names."""
    import transformers

    auto = transformers.AutoModelForCausalLM
    model_class = getattr(transformers, checkpoint.architecture, auto)
    return model_class.from_pretrained(
        checkpoint.path, quantization_config=config, dtype="auto", device_map={"": device}
    )


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place once everything in it was written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.partial-"))
    except OSError as error:
        raise EwqError(f"cannot write {out}: {error.strerror or error}") from error
    try:
        yield partial
        partial.chmod(0o755)
        for path in partial.iterdir():
            path.chmod(0o644)
        partial.replace(out)
    except OSError as error:
        raise EwqError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_companions(source: Path, folder: Path) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file() and not any(path.match(pattern) for pattern in NOT_COPIED):
            shutil.copyfile(path, folder / path.name)
