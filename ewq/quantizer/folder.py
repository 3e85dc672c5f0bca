"""A quantized model as a folder that ``from_pretrained`` opens."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ewq.checkpoint.layout import check_original
from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.conversion_errors import loading, require_all_weights
from ewq.errors import CheckpointError, InputError
from ewq.files import check_output, whole_folder
from ewq.instruments.memory import weights_bytes
from ewq.planning.plan import QuantizationPlan, write_plan
from ewq.precision import Precision
from ewq.progress import NO_PROGRESS, Progress
from ewq.quantizer.config import EwqConfig, StorageOptions
from ewq.version import __version__

PLAN = "plan.json"
GENERATION = "generation_config.json"
MOST_TIMES_SMALLER = 8
"""No model becomes smaller than that: float32 stored in 4 bits, without scales."""
NAMED = 3
CARD = "README.md"
STORED = {
    Precision.RAW: "as in the original",
    Precision.EIGHT_BIT: "8 bits, LLM.int8",
    Precision.FOUR_BIT: "4 bits",
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
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
    notes: tuple[str, ...] = ()
    """What was left out, for people."""


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
        progress: counts bytes downloaded.

    Raises:
        InputError: ``out`` is in use or cannot be written, or ``model`` is a GGUF file or
            quantized already.
        PlanError, CheckpointError: as when loading.
        EwqError: the folder cannot be written.
    """
    out = Path(out)
    check_output(out, folder=True)
    checkpoint = open_checkpoint(model, progress)
    _check(checkpoint)
    stored_bytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    check_output(out, folder=True, needed_bytes=stored_bytes // MOST_TIMES_SMALLER)
    loaded = _load(checkpoint, config, device)
    plan = loaded.hf_quantizer.quantization_config.plan
    size = weights_bytes(loaded)
    with whole_folder(out) as folder:
        left_out = _copy_companions(checkpoint, folder)
        _save(loaded, checkpoint.path, folder)
        write_plan(plan, folder / PLAN)
        (folder / CARD).write_text(
            _model_card(plan, loaded.hf_quantizer.quantization_config.options, size),
            encoding="utf-8",
        )
    return Quantized(out, plan, size, _notes(checkpoint, left_out))


def _check(checkpoint: Checkpoint) -> None:
    if checkpoint.is_gguf:
        raise InputError(
            f"{checkpoint.model} is a GGUF file; `ewq quantize` takes a Hugging Face model, "
            "`ewq export` makes GGUF files"
        )
    check_original(checkpoint)


def _load(checkpoint: Checkpoint, config: EwqConfig, device: str) -> Any:
    """The quantized model, of the class that the checkpoint names."""
    import torch
    import transformers

    auto = transformers.AutoModelForCausalLM
    model_class = getattr(transformers, checkpoint.architecture, auto)
    with loading(checkpoint.model):
        loaded: Any = model_class.from_pretrained(
            checkpoint.path,
            quantization_config=config,
            dtype=getattr(torch, checkpoint.storage_dtype),
            device_map={"": device},
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, info = loaded
    require_all_weights(checkpoint.model, info)
    _require_finite(checkpoint.model, model)
    return model


def _require_finite(label: str, model: Any) -> None:
    """Refuse weights that would be delivered raw and are no numbers; the plan saw the others."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.isfinite().all():
            raise CheckpointError(f"{name} of {label} holds NaN or infinity; nothing was written")


def _save(model: Any, source: Path, folder: Path) -> None:
    """Save the model; how to generate with it stays as the original says.

    transformers loads generation parameters that it then refuses to save: contradictory ones, and
    those in ``config.json``. Neither is a reason to lose a quantized model.
    """
    generation = model.generation_config
    for name, value in model.config._get_generation_parameters().items():
        setattr(model.config, name, None)
        setattr(generation, name, value)
    model.generation_config = type(generation)()
    model.save_pretrained(folder)
    if (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, folder / GENERATION)
    else:
        generation.to_json_file(folder / GENERATION, use_diff=True)


def _copy_companions(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Copy what belongs to a model besides its weights, sub-folders included.

    Returns:
        Names of other weights, which were not copied.
    """
    left_out = []
    for path in sorted(checkpoint.path.rglob("*")):
        name = path.relative_to(checkpoint.path)
        if not path.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        if not any(path.match(pattern) for pattern in NOT_COPIED):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
        elif path not in checkpoint.files and path.suffix not in (".json", ".md"):
            left_out.append(str(name))
    return left_out


def _notes(checkpoint: Checkpoint, left_out: list[str]) -> tuple[str, ...]:
    return (*_narrowed(checkpoint), *_not_copied(left_out))


def _narrowed(checkpoint: Checkpoint) -> tuple[str, ...]:
    wide = sum(tensor.dtype in ("F32", "F64") for tensor in checkpoint.tensors.values())
    if not wide:
        return ()
    return (f"what is not quantized was stored wider and is now {checkpoint.storage_dtype}",)


def _not_copied(left_out: list[str]) -> tuple[str, ...]:
    if not left_out:
        return ()
    more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
    return (f"not copied, other weights: {', '.join(left_out[:NAMED])}{more}",)


def _model_card(plan: QuantizationPlan, options: StorageOptions, weights_bytes: int) -> str:
    """Markdown with the front matter of the Hugging Face hub."""
    return "\n".join([*_front_matter(plan), *_opening(plan), *_facts(plan, options, weights_bytes)])


def _front_matter(plan: QuantizationPlan) -> list[str]:
    base = [f"base_model: {plan.model}"] if _HUB_ID.fullmatch(plan.model) else []
    return ["---", "library_name: transformers", *base, "tags:", "- ewq", "- bitsandbytes", "---"]


def _opening(plan: QuantizationPlan) -> list[str]:
    name = plan.model.rstrip("/").rpartition("/")[2]
    return [
        f"# {name}, quantized by an entropy-weighted plan",
        "",
        "Opening this model needs the package `ewq`, which teaches transformers the method:",
        "",
        "```",
        "pip install ewq",
        "```",
        "",
        "```python",
        "import ewq.quantizer  # before from_pretrained",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", device_map="auto")',
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
        "```",
        "",
        "Without that import transformers reports that the quantization type `ewq` is unknown",
        "and would read packed weights as if they were plain ones: do not use the result.",
        "",
    ]


def _facts(plan: QuantizationPlan, options: StorageOptions, weights_bytes: int) -> list[str]:
    counts = Counter(plan.weights.values())
    rows = [f"| {STORED[of]} | {counts[of]} |" for of in Precision if counts[of]]
    return [
        "## What was done",
        "",
        f"- original: `{plan.model}`, fingerprint `{plan.fingerprint}`",
        f"- rule: `{json.dumps(dict(plan.rule))}`, scorer `{plan.scorer}`, per {plan.granularity}",
        f"- plan: `plan.json`, digest `{plan.digest}`",
        f"- options: `{json.dumps(options.to_json())}`",
        f"- size in memory: {weights_bytes:,} bytes (planned: {plan.size_bytes:,})",
        f"- made by ewq {__version__}",
        "",
        "| linear weights of the decoder blocks | count |",
        "| --- | ---: |",
        *rows,
        "",
        "Embeddings, norms, biases and the output head are as in the original. Weights that",
        "bitsandbytes cannot quantize (experts stacked into one parameter) are too, whatever",
        "the plan says; then the size in memory is above the planned one.",
        "",
    ]
