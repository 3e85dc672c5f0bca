"""From a model to a :class:`~ewq.fit.plans.Fitting`: sensitivity, target and costs, each cached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ewq.checkpoint.layout import find_layout
from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.checkpoint.tokenizer import load_tokenizer
from ewq.errors import BackendUnavailable, InputError
from ewq.files import cache_dir, content_key, read_cached, write_cached
from ewq.fit.costs import ROWS_DRAWN, measure_costs
from ewq.fit.plans import Fitting
from ewq.fit.targets import GGUF, INT8, Target, bitsandbytes_target, gguf_target
from ewq.gguf.imatrix import write_imatrix
from ewq.gguf.recipe import TensorNames
from ewq.planning.plan import BITSANDBYTES
from ewq.progress import NO_PROGRESS, Progress
from ewq.sensitivity.calibration import (
    Calibrating,
    Calibration,
    calibration_texts,
    make_calibration,
    random_calibration,
)
from ewq.sensitivity.measure import Sensitivity, measure_sensitivity

TARGETS = (GGUF, BITSANDBYTES)
COSTS_VERSION = 2
"""Raised whenever a cost changes its meaning."""


def calibrate(
    checkpoint: Checkpoint,
    how: Calibrating,
    tokenizer: Any = None,
) -> Calibration:
    """The token sequences of a model.

    Raises:
        InputError: no such text, or one too short.
        CheckpointError: the model has no usable tokenizer.
    """
    length = _context_length(checkpoint)
    if how.data_free:
        rows = replace(how, tokens=min(how.tokens, length or how.tokens))
        return random_calibration(_of_text(checkpoint)["vocab_size"], rows)
    return make_calibration(
        calibration_texts(how.source),
        tokenizer or load_tokenizer(checkpoint.path, checkpoint.model),
        sequences=how.sequences,
        tokens=how.tokens,
        context_length=length,
        seed=how.seed,
    )


def prepare(
    checkpoint: Checkpoint,
    calibration: Calibration,
    how: Calibrating,
    *,
    target: str = GGUF,
    rows_drawn: int = ROWS_DRAWN,
    progress: Progress = NO_PROGRESS,
) -> Fitting:
    """Measure and cost a model for one target.

    Raises:
        EwqError: the model cannot be loaded, measured or converted.
    """
    sensitivity = measure_sensitivity(
        checkpoint,
        calibration,
        device=how.device,
        seed=how.seed,
        cache=how.cache,
        progress=progress,
    )
    if how.data_free:
        sensitivity = sensitivity.flattened()
    if target == BITSANDBYTES:
        made = bitsandbytes_target(checkpoint, sensitivity)
    else:
        made = gguf_target(checkpoint, converted(checkpoint, progress), sensitivity)
    costs = _costs(made, sensitivity, how, rows_drawn, progress)
    scorer = "higgs" if how.data_free else "fisher"
    return Fitting(checkpoint, find_layout(checkpoint), made, sensitivity, costs, scorer)


def open_fitting(
    model: str | Path | Checkpoint,
    target: str,
    how: Calibrating,
    progress: Progress = NO_PROGRESS,
) -> Fitting:
    """:func:`prepare` with the calibration text of ``how``.

    Args:
        model: hub id, model folder, or a checkpoint already opened.
        target: ``gguf``, or ``bitsandbytes`` (also by the name of one of its formats).
        how: calibration text, seed and device.
        progress: where to report.

    Raises:
        EwqError: as :func:`calibrate` and :func:`prepare`.
    """
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model, progress)
    engine = BITSANDBYTES if target.startswith("nf4") else target
    if engine not in TARGETS:
        raise InputError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")
    require_memory(checkpoint, how.device)
    calibration = calibrate(checkpoint, how)
    return prepare(checkpoint, calibration, how, target=engine, progress=progress)


def converted(checkpoint: Checkpoint, progress: Progress = NO_PROGRESS) -> Path:
    """The model as an unquantized GGUF file, made once."""
    from ewq.gguf.cache import cached_gguf
    from ewq.gguf.export import base_type
    from ewq.gguf.recipe import TypeRecipe

    recipe = TypeRecipe(base_type(checkpoint))
    return cached_gguf(checkpoint.path, recipe, cache_dir("gguf"), progress=progress)


def _costs(
    target: Target,
    sensitivity: Sensitivity,
    how: Calibrating,
    rows_drawn: int,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    types = {tensor.name: list(tensor.types) for tensor in target.tensors}
    key = content_key(
        *(COSTS_VERSION, sensitivity.fingerprint, sensitivity.calibration, sensitivity.sequences),
        *(how.seed, how.device == "cpu", how.data_free, rows_drawn, target.name, types),
    )
    kept = read_cached("costs", key) if how.cache else None
    if isinstance(kept, dict):
        return kept
    costs = measure_costs(
        target.tensors, sensitivity, target.rounded, rows_drawn=rows_drawn, progress=progress
    )
    for tensor in target.tensors:
        if INT8 in tensor.types:
            costs[tensor.name][INT8] += sensitivity.input_rounding_cost(tensor.matrix.name)
    if how.cache:
        write_cached("costs", key, costs)
    return costs


def write_importance(
    checkpoint: Checkpoint, sensitivity: Sensitivity, base: Path, out: Path
) -> Path:
    """The importance matrix of a converted file's tensors.

    Args:
        checkpoint: a Hugging Face folder.
        sensitivity: of it.
        base: its conversion, whose names the matrix has.
        out: the file to write.

    Raises:
        EwqError: ``out`` cannot be written.
    """
    from ewq.checkpoint.gguf_header import read_header

    names = TensorNames(read_header(base))
    matrices = {
        tensor: matrix
        for weight, matrix in sensitivity.matrices.items()
        if not matrix.is_lookup
        for tensor in names.of_weight(weight)
    }
    return write_imatrix(
        out,
        {name: matrix.importance() * matrix.tokens[:, None] for name, matrix in matrices.items()},
        {name: matrix.tokens for name, matrix in matrices.items()},
        source=sensitivity.calibration,
        sequences=sensitivity.sequences,
        sequence_tokens=sensitivity.tokens // sensitivity.sequences,
    )


def _context_length(checkpoint: Checkpoint) -> int | None:
    text = _of_text(checkpoint)
    found = text.get("max_position_embeddings") or text.get("n_positions")
    return found if isinstance(found, int) else None


def _of_text(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The config of the language model inside."""
    found: Mapping[str, Any] = checkpoint.config.get("text_config") or checkpoint.config
    return found


def require_memory(checkpoint: Checkpoint, device: str) -> None:
    """Say what the pass needs before it starts.

    Raises:
        BackendUnavailable: more memory than there is.
    """
    parameters = sum(tensor.numel for tensor in checkpoint.tensors.values())
    if device != "cpu":
        import torch

        needed, there = 4 * parameters, int(torch.cuda.mem_get_info(device)[0])
    else:
        import psutil

        needed, there = 6 * parameters, int(psutil.virtual_memory().available)
    if needed > there:
        raise BackendUnavailable(
            f"measuring {checkpoint.model} takes about {needed / 1e9:.1f} GB of memory on {device} "
            f"({parameters / 1e9:.2f} billion parameters), and {there / 1e9:.1f} GB are free; "
            "use a machine with more, or --device cuda"
        )
