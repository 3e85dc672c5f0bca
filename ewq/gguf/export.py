"""Making a GGUF: convert, quantize by llama.cpp, read back, and only then give it its name."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ewq.checkpoint.gguf_header import GgufHeader, read_header
from ewq.errors import EwqError, InputError
from ewq.gguf.convert import CONVERTED_TYPES, convert_folder
from ewq.gguf.quantize import run_quantizer
from ewq.gguf.quantize_job import QuantizeJob, as_command
from ewq.gguf.recipe import PlanRecipe, Recipe, TypeRecipe, make_recipe
from ewq.gguf.report import ExportReport, read_back
from ewq.gguf.tensor_types import exact_types, left_alone
from ewq.precision import Precision
from ewq.progress import NO_PROGRESS, Progress

if TYPE_CHECKING:
    from ewq.checkpoint.opening import Checkpoint
    from ewq.planning.plan import QuantizationPlan

PLAIN_TYPES = frozenset({"F32", "F16", "BF16"})
BASE_TYPES = {"F32": "F32", "BF16": "BF16", "F16": "F16"}
"""Checkpoint dtype -> type of the converted file that the quantizer starts from."""


@dataclass(frozen=True)
class Base:
    """The unquantized (or given) GGUF that the quantizer reads."""

    path: Path
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One export."""

    model: str | Path
    """Hub id, Hugging Face folder, or another ``.gguf``."""
    out: Path
    """The file; it appears when it is complete and checked, not before."""
    recipe: Recipe
    converter: Path | None = None
    """llama.cpp's own ``convert_hf_to_gguf.py`` instead of the pinned one."""


def export_gguf(
    model: str | Path,
    out: str | Path,
    *,
    type_name: str | None = None,
    plan: QuantizationPlan | None = None,
    types: Mapping[Precision, str] | None = None,
    imatrix: Path | None = None,
    converter: Path | None = None,
    progress: Progress = NO_PROGRESS,
) -> ExportReport:
    """Export a model as one GGUF file.

    Args:
        model: hub id, Hugging Face folder, or another ``.gguf``.
        out: the file; it appears when it is complete and checked, not before.
        type_name: one of llama.cpp's recipes, such as ``F16``, ``Q8_0`` or ``Q4_K_M``.
        plan: precisions per weight; instead of ``type_name``.
        types: ggml type per precision of the plan; default F16, Q8_0, Q4_K.
        imatrix: importance matrix for the quantizer.
        converter: llama.cpp's own ``convert_hf_to_gguf.py``.
        progress: where to report.

    Raises:
        InputError: a request that makes no sense, or a plan of another model.
        EwqError: conversion or quantization failed, or the file is not what was asked for.
    """
    recipe = make_recipe(type_name, plan, types, imatrix)
    return carry_out(Request(model, Path(out), recipe, converter), progress)


def carry_out(request: Request, progress: Progress = NO_PROGRESS) -> ExportReport:
    """:func:`export_gguf` for a request that is a value already."""
    checkpoint = _open(request.model, request.recipe, progress)
    with scratch_beside(request.out) as work:
        base = make_base(checkpoint, request.recipe, work, request.converter, progress)
        return build(base, request.recipe, request.out, work, progress)


def _open(model: str | Path, recipe: Recipe, progress: Progress) -> Checkpoint:
    from ewq.checkpoint.opening import open_checkpoint
    from ewq.planning.plan import check_plan

    checkpoint = open_checkpoint(model, progress)
    if isinstance(recipe, PlanRecipe):
        check_plan(recipe.plan, checkpoint)
    return checkpoint


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A hidden folder on ``out``'s disk that is removed whatever happens.

    Raises:
        InputError: ``out`` is a folder, or its folder cannot be written.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; name the .gguf file to write")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
    except OSError as error:
        raise InputError(f"cannot write to {out.parent}: {error.strerror}") from error
    with scratch as name:
        yield Path(name)


def base_type(checkpoint: Checkpoint) -> str:
    """Type to convert to before quantizing: the dtype that holds most of the checkpoint."""
    totals: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.nbytes
    return BASE_TYPES.get(max(totals, key=lambda dtype: totals[dtype]), "F16")


def _converted_type(checkpoint: Checkpoint, recipe: Recipe) -> str:
    if isinstance(recipe, TypeRecipe) and recipe.name in CONVERTED_TYPES:
        return recipe.name
    return base_type(checkpoint)


def make_base(
    checkpoint: Checkpoint,
    recipe: Recipe,
    work: Path,
    converter: Path | None = None,
    progress: Progress = NO_PROGRESS,
) -> Base:
    """The file to start from: the model itself if it is GGUF, else a conversion in ``work``."""
    if checkpoint.is_gguf:
        return Base(checkpoint.path)
    name = _converted_type(checkpoint, recipe)
    path = work / "base.gguf"
    return Base(path, convert_folder(checkpoint.path, path, name, converter, progress))


def build(base: Base, recipe: Recipe, out: Path, work: Path, progress: Progress) -> ExportReport:
    """Quantize ``base`` by ``recipe``, read the result back and move it to ``out``."""
    source = read_header(base.path)
    done = work / "done.gguf"
    if base.path.parent == work and _is_plain(source, recipe):
        base.path.rename(done)
        report = read_back(done, source, {}, (), base.notes)
    else:
        job = make_job(source, recipe, done)
        fallbacks = run_quantizer(job, progress)
        notes = (*base.notes, *_notes(job, source, recipe))
        report = read_back(done, source, job.types, fallbacks, notes)
    try:
        done.replace(out)
    except OSError as error:
        raise EwqError(f"cannot write {out}: {error.strerror}") from error
    return replace(report, path=out)


def _is_plain(source: GgufHeader, recipe: Recipe) -> bool:
    """Whether the converter already did all that was asked."""
    if not isinstance(recipe, TypeRecipe) or recipe.name not in CONVERTED_TYPES:
        return False
    return {tensor.type_name for tensor in source.tensors} <= {recipe.name, "F32"}


def make_job(source: GgufHeader, recipe: Recipe, out: Path) -> QuantizeJob:
    """What llama.cpp's quantizer must do to turn ``source`` into ``out``."""
    requantize = any(tensor.type_name not in PLAIN_TYPES for tensor in source.tensors)
    if isinstance(recipe, TypeRecipe):
        return QuantizeJob(
            source.path, out, recipe.name, imatrix=recipe.imatrix, requantize=requantize
        )
    raw = recipe.types[Precision.RAW]
    return QuantizeJob(
        source.path,
        out,
        # Any quantizing recipe: llama.cpp looks at exact types only under one.
        "Q8_0",
        types=exact_types(source, recipe),
        embedding_type=raw,
        output_type=raw,
        imatrix=recipe.imatrix,
        requantize=requantize,
    )


def _notes(job: QuantizeJob, source: GgufHeader, recipe: Recipe) -> tuple[str, ...]:
    notes = left_alone(source, recipe) if isinstance(recipe, PlanRecipe) else ()
    if job.requantize:
        lossy = f"{source.path.name} was quantized before; its losses add to those of this export"
        notes = (*notes, lossy)
    return notes


def command_for(request: Request, progress: Progress = NO_PROGRESS) -> str:
    """The same export as a shell script for llama.cpp's own programs; nothing is kept.

    The names of tensors come from a conversion, which is made and removed again.

    Raises:
        InputError: as :func:`export_gguf`.
    """
    checkpoint = _open(request.model, request.recipe, progress)
    with tempfile.TemporaryDirectory() as name:
        base = make_base(checkpoint, request.recipe, Path(name), request.converter, progress)
        source = read_header(base.path)
        job = make_job(source, request.recipe, request.out)
    if checkpoint.is_gguf:
        return as_command(job)
    if _is_plain(source, request.recipe):
        return _convert_command(checkpoint, request.out, request.recipe)
    first = request.out.with_suffix(".base.gguf")
    quantize = as_command(replace(job, source=first))
    return _convert_command(checkpoint, first, request.recipe) + " && \\\n" + quantize


def _convert_command(checkpoint: Checkpoint, out: Path, recipe: Recipe) -> str:
    outtype = _converted_type(checkpoint, recipe).lower()
    words = ["python", "convert_hf_to_gguf.py", str(checkpoint.path), "--outtype", outtype]
    return shlex.join([*words, "--outfile", str(out)])
