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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ewq.checkpoint.layout import find_layout
from ewq.conversion_errors import load_pretrained
from ewq.errors import CheckpointError, EwqError, InputError
from ewq.files import cache_dir, content_key, scratch_beside
from ewq.progress import NO_PROGRESS, Progress

if TYPE_CHECKING:
    from ewq.checkpoint.opening import Checkpoint
    from ewq.sensitivity.calibration import Calibration

Floats = NDArray[np.float64]
VERSION = 2
"""Raised whenever a sum changes its meaning."""
FLOOR = 1e-4
"""Least importance of a column, as a share of the mean: a column that the text never used is
not free."""
KEPT_EVERY = 4
"""Sequences between two savings of an unfinished pass."""
FIELDS = ("rows", "columns", "inputs", "tokens", "input_rounding")


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
    """``[1]``: see :class:`ewq.sensitivity.gradients.Sums`."""

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
    squares: Mapping[str, Floats]
    """``[sequences]``: squared gradient norm of each sequence, by matrix."""

    @property
    def sequences(self) -> int:
        """Number of sequences."""
        return len(next(iter(self.squares.values())))

    def weighting(self, name: str) -> tuple[Floats, Floats]:
        """``rows`` and ``columns`` with ``KLD = sum_ij rows_i columns_j dW_ij^2`` nats per token.

        ``rows = R / 2T`` for the summed squares ``R`` over ``T`` tokens, ``columns = C / sum C``;
        ``[experts, rows]`` and ``[experts, columns]``.

        Raises:
            InputError: the model has no such matrix.
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
            mean = self.squares[name].mean()
            totals += cost * self.squares[name] / mean if mean else 0.0
        return float(totals.std(ddof=1) / math.sqrt(self.sequences)) if self.sequences > 1 else 0.0

    def flattened(self) -> Sensitivity:
        """One sensitivity for all weights of a matrix, and no importance matrix.

        Costs then are a number of the matrix times its relative error, as in HIGGS (Malinovskii
        et al. 2024, arXiv:2411.17525).
        """
        flat = {
            name: Matrix(
                np.full_like(of.rows, of.rows.sum() / of.rows.size),
                np.ones_like(of.columns),
                np.zeros_like(of.inputs),
                np.zeros_like(of.tokens),
                of.input_rounding,
            )
            for name, of in self.matrices.items()
        }
        return replace(self, matrices=flat)

    def notes(self) -> tuple[str, ...]:
        """Sentences on what the text did not reach."""
        unseen = {
            name: int((matrix.tokens == 0).sum())
            for name, matrix in self.matrices.items()
            if len(matrix.tokens) > 1 and not matrix.is_lookup
        }
        count = sum(unseen.values())
        if not count:
            return ()
        first = next(name for name, number in unseen.items() if number)
        return (
            f"{count} experts saw no token of the calibration text (the first in {first}) and "
            "count for nothing in the plan; give a longer text with --calibration",
        )


def measure_sensitivity(
    checkpoint: Checkpoint,
    calibration: Calibration,
    *,
    device: str = "cpu",
    seed: int = 0,
    cache: bool = True,
    progress: Progress = NO_PROGRESS,
) -> Sensitivity:
    """Run the calibration sequences forwards and backwards.

    A pass found in the cache is not run again; one that was interrupted goes on where it was kept.

    Args:
        checkpoint: a Hugging Face folder.
        calibration: the sequences.
        device: ``cpu`` (float32) or ``cuda`` (bfloat16, sums in float32).
        seed: of the sampled labels.
        cache: use and keep results under the user's cache folder.
        progress: told of tokens.

    Raises:
        CheckpointError: no Hugging Face folder, or not loadable.
        MeasurementError: gradients or logits that are not finite.
    """
    if checkpoint.is_gguf:
        raise CheckpointError(
            f"{checkpoint.model}: sensitivity needs the Hugging Face folder, not a GGUF file"
        )
    dtype = "float32" if device == "cpu" else "bfloat16"
    key = content_key(VERSION, checkpoint.fingerprint, calibration.digest, seed, dtype)
    path = cache_dir("sensitivity", f"{key[:32]}.npz")
    kept = _read(path, checkpoint, calibration) if cache else None
    if kept is None or kept.sequences < len(calibration.sequences):
        run = _Pass(checkpoint, calibration, device, dtype, seed, path if cache else None, kept)
        kept = run.finish(progress)
    return kept


def load_model(checkpoint: Checkpoint, device: str, dtype: str) -> Any:
    """The model in evaluation mode, its experts one product each.

    Raises:
        CheckpointError: transformers cannot load it.
    """
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


@dataclass(frozen=True)
class _Pass:
    """A pass under way."""

    checkpoint: Checkpoint
    calibration: Calibration
    device: str
    dtype: str
    seed: int
    path: Path | None
    kept: Sensitivity | None

    def finish(self, progress: Progress) -> Sensitivity:
        from ewq.sensitivity.gradients import GradientSums

        blocks = [block.name for block in find_layout(self.checkpoint).blocks]
        sums = GradientSums(load_model(self.checkpoint, self.device, self.dtype), blocks)
        squares: dict[str, list[float]] = {name: [] for name in sums.sums}
        if self.kept is not None:
            _restore(sums.sums, squares, self.kept)
        done = self.kept.sequences if self.kept else 0
        progress.start("measuring sensitivity", self.calibration.tokens, "tokens")
        progress.advance(sum(map(len, self.calibration.sequences[:done])))
        try:
            for index in range(done, len(self.calibration.sequences)):
                ids = self.calibration.sequences[index]
                for name, square in sums.add(ids, _seed(self.seed, index)).items():
                    squares[name].append(square)
                progress.advance(len(ids))
                last = index + 1 == len(self.calibration.sequences)
                if self.path and (last or (index + 1) % KEPT_EVERY == 0):
                    _write(self.path, self._result(sums.sums, squares))
        finally:
            progress.finish()
        return self._result(sums.sums, squares)

    def _result(self, sums: Mapping[str, Any], squares: Mapping[str, list[float]]) -> Sensitivity:
        done = len(next(iter(squares.values())))
        return Sensitivity(
            self.checkpoint.fingerprint,
            self.calibration.digest,
            sum(map(len, self.calibration.sequences[:done])),
            {
                name: Matrix(**{field: getattr(of, field) for field in FIELDS})
                for name, of in sums.items()
            },
            {name: np.array(values) for name, values in squares.items()},
        )


def _seed(seed: int, index: int) -> int:
    return seed * 1_000_003 + index


def _restore(sums: Mapping[str, Any], squares: dict[str, list[float]], kept: Sensitivity) -> None:
    for name, of in sums.items():
        for field in FIELDS:
            getattr(of, field)[...] = getattr(kept.matrices[name], field)
        squares[name].extend(kept.squares[name])


def _write(path: Path, of: Sensitivity) -> None:
    """Keep a pass, finished or not; where the cache cannot be written it is simply not kept."""
    names = list(of.matrices)
    arrays = {"names": np.array(names), "tokens": np.array(of.tokens)}
    arrays["squares"] = np.array([of.squares[name] for name in names])
    for number, name in enumerate(names):
        for field in FIELDS:
            arrays[f"{field}/{number}"] = getattr(of.matrices[name], field)
    try:
        with scratch_beside(path) as work:
            np.savez(work / "sums.npz", allow_pickle=False, **arrays)
            (work / "sums.npz").replace(path)
    except (EwqError, OSError):
        return


def _read(path: Path, checkpoint: Checkpoint, calibration: Calibration) -> Sensitivity | None:
    """What is kept; ``None`` where there is nothing, or something damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            names = [str(name) for name in kept["names"]]
            matrices = {
                name: Matrix(**{field: kept[f"{field}/{number}"] for field in FIELDS})
                for number, name in enumerate(names)
            }
            squares = dict(zip(names, kept["squares"], strict=True))
            tokens = int(kept["tokens"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return Sensitivity(checkpoint.fingerprint, calibration.digest, tokens, matrices, squares)
