"""A quantized model as a folder that ``from_pretrained`` opens."""

import json
import re
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ewq.checkpoint.layout import check_original
from ewq.checkpoint.loading import load_pretrained
from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.errors import CheckpointError, InputError
from ewq.files import check_output, whole_folder
from ewq.instruments.gpu import check_device
from ewq.instruments.memory import weights_bytes
from ewq.measurement import Json
from ewq.planning.plan import QuantizationPlan, write_plan
from ewq.progress import NO_PROGRESS, Progress
from ewq.quantizer.config import EwqConfig
from ewq.variants import Precision
from ewq.version import __version__

GENERATION = "generation_config.json"
MOST_TIMES_SMALLER = 8
"""No model becomes smaller than that: float32 stored in 4 bits, without scales."""
NAMED = 3
STORED = {
    Precision.RAW: "as in the original",
    Precision.EIGHT_BIT: "8 bits, LLM.int8",
    Precision.FOUR_BIT: "4 bits",
}
WEIGHTS = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt"),
    *("*.h5", "*.msgpack", "*.onnx", "*.gguf"),
)
WRITTEN_ANEW = ("config.json", "*.safetensors.index.json", "*.bin.index.json", "README.md")
MODEL_CARD = Path(__file__).with_name("model_card.md")
"""Markdown with the front matter of the Hugging Face hub, a template of ``str.format``."""


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
    """Quantize a hub id or model folder, weight by weight on ``device``, into a new folder.

    An InputError where ``out`` is in use or cannot be written, ``model`` is a GGUF file or there is
    no such ``device``, an EwqError where it cannot be loaded or quantized: then no folder appears.
    """
    out = Path(out)
    check_output(out, folder=True)
    checkpoint = open_checkpoint(model, progress)
    if checkpoint.is_gguf:
        raise InputError(f"{checkpoint.model} is a GGUF file; `ewq export` takes it")
    check_original(checkpoint)
    check_device(device)
    stored_bytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    check_output(out, folder=True, needed_bytes=stored_bytes // MOST_TIMES_SMALLER)
    loaded, plan = _load(checkpoint, config, device), config.plan
    size = weights_bytes(loaded)
    with whole_folder(out) as folder:
        notes = _copy_companions(checkpoint, folder)
        _save(loaded, checkpoint.path, folder)
        write_plan(plan, folder / "plan.json")
        card = _model_card(plan, asdict(config.options), size)
        (folder / "README.md").write_text(card, encoding="utf-8")
    if any(tensor.dtype in ("F32", "F64") for tensor in checkpoint.tensors.values()):
        stored = checkpoint.storage_dtype
        notes = (f"what is not quantized was stored wider and is now {stored}", *notes)
    return Quantized(out, plan, size, notes)


def _load(checkpoint: Checkpoint, config: EwqConfig, device: str) -> Any:
    import torch
    import transformers

    auto = transformers.AutoModelForCausalLM
    model = load_pretrained(
        getattr(transformers, checkpoint.architecture, auto),
        checkpoint.path,
        checkpoint.model,
        quantization_config=config,
        dtype=getattr(torch, checkpoint.storage_dtype),
        device_map={"": device},
    )
    # What would be delivered raw; the plan saw the others.
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.isfinite().all():
            raise CheckpointError(f"{name} of {checkpoint.model} holds NaN or infinity")
    return model


def _save(model: Any, source: Path, folder: Path) -> None:
    """Save the model; how to generate with it stays as the original says.

    transformers loads contradictory generation parameters, and then refuses to save them.
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


def _copy_companions(checkpoint: Checkpoint, folder: Path) -> tuple[str, ...]:
    """Copy tokenizer, templates and code, sub-folders included; a note on weights left out."""
    left_out = []
    for path in sorted(checkpoint.path.rglob("*")):
        name = path.relative_to(checkpoint.path)
        if not path.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        if any(map(path.match, WEIGHTS)):
            left_out += [str(name)] if path not in checkpoint.files else []
        elif not any(map(path.match, WRITTEN_ANEW)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
    if not left_out:
        return ()
    more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
    return (f"not copied, other weights: {', '.join(left_out[:NAMED])}{more}",)


def _model_card(plan: QuantizationPlan, options: dict[str, Json], nbytes: int) -> str:
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", plan.model)
    counts = Counter(plan.weights.values())
    rows = [f"| {STORED[of]} | {counts[of]} |" for of in Precision if counts[of]]
    return MODEL_CARD.read_text(encoding="utf-8").format(
        base_model=f"base_model: {plan.model}\n" if is_hub_id else "",
        name=plan.model.rstrip("/").rpartition("/")[2],
        plan=plan,
        rule=json.dumps(dict(plan.rule)),
        options=json.dumps(options),
        nbytes=nbytes,
        version=__version__,
        rows="\n".join(rows),
    )
