"""How much every matrix of a model matters: measured once and kept, resumed where it stopped.

For small changes the Kullback-Leibler divergence of a model from itself is the quadratic form of
its Fisher information: per token ``1/2 E[(g . dW)^2]``, ``g`` being the gradient of ``log p(y|x)``
with the label drawn from the model's own distribution. Its diagonal is enough, and the diagonal
of one matrix factors into rows and columns (:meth:`Sensitivity.weighting`).
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ewq.checkpoint.layout import check_original, find_layout
from ewq.checkpoint.loading import load_pretrained
from ewq.checkpoint.opening import Checkpoint
from ewq.errors import BackendUnavailable, CheckpointError, EwqError, InputError
from ewq.files import cache_dir, content_key, scratch_beside
from ewq.instruments.gpu import check_device, free_memory
from ewq.progress import NO_PROGRESS, Progress, step
from ewq.sensitivity.calibration import Calibrating, Calibration

Floats = NDArray[np.float64]
VERSION = 3
"""Raised whenever a sum changes its meaning or its place."""
FLOOR = 1e-4
"""Least importance of a column, as a share of the mean: a column that the text never used is
not free."""
KEPT_EVERY = 4
"""Sequences between two savings of an unfinished pass."""


@dataclass(frozen=True)
class Matrix:
    """The sums of one matrix, or of a stack of experts' matrices (``[experts, ...]``)."""

    rows: Floats
    """Squared sequence gradients summed over columns and sequences."""
    columns: Floats
    """The same summed over rows."""
    inputs: Floats
    """Squared inputs summed over tokens; 0 where the matrix is only looked up (an embedding)."""
    tokens: Floats
    """Tokens that reached each expert."""
    input_rounding: Floats
    """``[1]``: squared gradients with respect to inputs times the variance that rounding these to
    8 bits has, as LLM.int8 does."""
    squares: Floats
    """``[sequences]``: squared norm of each sequence's gradient."""

    @property
    def is_lookup(self) -> bool:
        """Whether no input was ever multiplied with it."""
        return not self.tokens.any()

    @property
    def mean_squares(self) -> Floats:
        """Mean squared input by column, llama.cpp's importance; NaN for experts without tokens."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.inputs / self.tokens[:, None]

    def importance(self) -> Floats:
        """Weights of columns, floored: mean squared inputs, or squared gradients of a lookup."""
        found = self.columns if self.is_lookup else np.nan_to_num(self.mean_squares)
        means = found.mean(axis=1, keepdims=True)
        return np.where(means > 0, np.maximum(found, FLOOR * means), 1.0)


@dataclass(frozen=True)
class Sensitivity:
    """What one pass over a calibration text tells about a model."""

    fingerprint: str
    calibration: str
    """``sha256:...`` of the token sequences."""
    tokens: int
    matrices: Mapping[str, Matrix]
    """By name in the loaded model's state dict."""

    @property
    def sequences(self) -> int:
        """Number of sequences."""
        return len(next(iter(self.matrices.values())).squares)

    def weighting(self, name: str) -> tuple[Floats, Floats]:
        """``rows`` and ``columns`` with ``KLD = sum_ij rows_i columns_j dW_ij^2`` nats per token.

        ``rows = R / 2T`` for the summed squares ``R`` over ``T`` tokens, ``columns = C / sum C``;
        ``[experts, rows]`` and ``[experts, columns]``. An InputError where there is no such matrix.
        """
        if name not in self.matrices:
            raise InputError(f"the sensitivity of {name} was not measured")
        matrix = self.matrices[name]
        columns = matrix.importance()
        return matrix.rows / (2 * self.tokens), columns / columns.sum(axis=1, keepdims=True)

    def input_rounding_cost(self, name: str) -> float:
        """Nats per token that rounding a matrix's inputs to 8 bits costs."""
        return float(self.matrices[name].input_rounding[0]) / (2 * self.tokens)

    def stderr(self, costs: Mapping[str, float]) -> float:
        """Standard error of a sum of costs, each of which varies with its gradient's squares."""
        totals = np.zeros(self.sequences)
        for name, cost in costs.items():
            squares = self.matrices[name].squares
            totals += cost * squares / squares.mean() if squares.any() else 0.0
        return float(totals.std(ddof=1) / math.sqrt(self.sequences)) if self.sequences > 1 else 0.0

    def flattened(self) -> Sensitivity:
        """One sensitivity for all weights of a matrix, and no importance matrix.

        Costs then are a number of the matrix times its relative error, as in HIGGS (Malinovskii
        et al. 2024, arXiv:2411.17525).
        """
        flat = {
            name: replace(
                of,
                rows=np.full_like(of.rows, of.rows.mean()),
                columns=np.ones_like(of.columns),
                inputs=np.zeros_like(of.inputs),
                tokens=np.zeros_like(of.tokens),
            )
            for name, of in self.matrices.items()
        }
        return replace(self, matrices=flat)

    def notes(self) -> tuple[str, ...]:
        """Sentences on what the text did not reach."""
        unseen = [
            name
            for name, matrix in self.matrices.items()
            for tokens in matrix.tokens
            if len(matrix.tokens) > 1 and not matrix.is_lookup and not tokens
        ]
        if not unseen:
            return ()
        return (
            f"{len(unseen)} experts saw no token of the calibration text, the first in "
            f"{unseen[0]}, and count for nothing in the plan; give a longer text with "
            "--calibration",
        )


def measure_sensitivity(
    checkpoint: Checkpoint,
    calibration: Calibration,
    how: Calibrating,
    progress: Progress = NO_PROGRESS,
) -> Sensitivity:
    """Run the calibration sequences forwards and backwards: float32 on a CPU, bfloat16 on CUDA.

    A pass found in the cache is not run again; one that was interrupted goes on where it was kept.
    Of ``how`` it takes seed, device and cache.

    A CheckpointError of what cannot be loaded or is no Hugging Face folder, a BackendUnavailable of
    no such device or too little memory, a MeasurementError of gradients that are not finite.
    """
    check_trained(checkpoint)
    dtype = "float32" if how.device == "cpu" else "bfloat16"
    key = content_key(VERSION, checkpoint.fingerprint, calibration.digest, how.seed, dtype)
    path = cache_dir("sensitivity", f"{key[:32]}.npz") if how.cache else None
    kept = _read(path, checkpoint, calibration) if path else None
    sequences, done = calibration.sequences, kept.sequences if kept else 0
    if kept and done == len(sequences):
        return kept
    from ewq.sensitivity.gradients import GradientSums

    _require_memory(checkpoint, how.device)
    model = load_model(checkpoint, how.device, dtype)
    gradients = GradientSums(model, [block.name for block in find_layout(checkpoint).blocks])
    if kept:
        gradients.sums = {name: dict(vars(matrix)) for name, matrix in kept.matrices.items()}
    with step(progress, "measuring sensitivity", calibration.tokens, "tokens") as advance:
        advance(sum(map(len, sequences[:done])))
        for count, ids in enumerate(sequences[done:], done + 1):
            gradients.add(ids, how.seed * 1_000_003 + count - 1)
            advance(len(ids))
            if count % KEPT_EVERY == 0 or count == len(sequences):
                tokens = sum(map(len, sequences[:count]))
                matrices = {name: Matrix(**of) for name, of in gradients.sums.items()}
                kept = Sensitivity(checkpoint.fingerprint, calibration.digest, tokens, matrices)
                if path:
                    _write(path, kept)
    assert kept is not None  # there is at least one sequence
    return kept


def check_trained(checkpoint: Checkpoint) -> None:
    """A CheckpointError of what has no gradients: a GGUF file, a quantized model, half a one."""
    if checkpoint.is_gguf:
        raise CheckpointError(f"{checkpoint.model}: sensitivity needs the Hugging Face folder")
    check_original(checkpoint)


def load_model(checkpoint: Checkpoint, device: str, dtype: str) -> Any:
    """The model in evaluation mode; a CheckpointError where transformers cannot load it."""
    import torch
    import transformers

    several_parts = "text_config" in checkpoint.config
    kind = "AutoModelForImageTextToText" if several_parts else "AutoModelForCausalLM"
    model = load_pretrained(
        getattr(transformers, kind),
        checkpoint.path,
        checkpoint.model,
        dtype=getattr(torch, dtype),
        device_map={"": device},
        # One product for each expert, so that its inputs can be told from the others'.
        experts_implementation="eager",
    )
    return model.eval()


def _require_memory(checkpoint: Checkpoint, device: str) -> None:
    check_device(device)
    parameters = sum(tensor.numel for tensor in checkpoint.tensors.values())
    needed, (there, _) = (6 if device == "cpu" else 4) * parameters, free_memory(device)
    if needed > there:
        raise BackendUnavailable(
            f"measuring {checkpoint.model} takes about {needed / 1e9:.1f} GB of memory on {device} "
            f"({parameters / 1e9:.2f} billion parameters), and {there / 1e9:.1f} GB are free; "
            "use a machine with more, or --device cuda"
        )


def _write(path: Path, of: Sensitivity) -> None:
    """Keep a pass, finished or not; where the cache cannot be written it is simply not kept."""
    arrays: dict[str, Any] = {
        f"{name}/{field}": values
        for name, matrix in of.matrices.items()
        for field, values in vars(matrix).items()
    }
    with suppress(EwqError, OSError), scratch_beside(path) as work:
        np.savez(work / "sums.npz", allow_pickle=False, tokens=of.tokens, **arrays)
        (work / "sums.npz").replace(path)


def _read(path: Path, checkpoint: Checkpoint, calibration: Calibration) -> Sensitivity | None:
    """What is kept; ``None`` where there is nothing, or something damaged."""
    sums: dict[str, dict[str, Floats]] = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            tokens = int(kept["tokens"])
            for key in kept.files:
                name, _, field = key.rpartition("/")
                sums.setdefault(name, {})[field] = kept[key]
        del sums[""]
        matrices = {name: Matrix(**of) for name, of in sums.items()}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return Sensitivity(checkpoint.fingerprint, calibration.digest, tokens, matrices)
