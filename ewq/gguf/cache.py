"""GGUF files that are made once and kept under the content they were made from."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ewq.checkpoint.gguf_header import read_header
from ewq.errors import BackendUnavailable, CheckpointError
from ewq.files import content_key, file_digest, scratch_beside
from ewq.gguf.convert import CONVERTED_TYPES, PACKAGE, VARIABLE, VERSION, find_converter
from ewq.gguf.export import Base, base_type, build, make_base, open_for
from ewq.gguf.recipe import PlanRecipe, Recipe, TypeRecipe
from ewq.progress import NO_PROGRESS, Progress

if TYPE_CHECKING:
    from ewq.checkpoint.opening import Checkpoint

SCHEMA = 1
"""Raised when exports change, so that old files are not taken for new ones."""


def cached_gguf(
    model: str | Path, recipe: Recipe, folder: Path, *, progress: Progress = NO_PROGRESS
) -> Path:
    """The GGUF of a model by a recipe: exported on first use, found again afterwards.

    Args:
        model: hub id, Hugging Face folder, or ``.gguf``.
        recipe: what to make, by :func:`ewq.gguf.recipe.make_recipe`.
        folder: where files are kept; named by what they were made from.
        progress: where to report.

    Raises:
        BackendUnavailable: the ``gguf`` extra is absent.
        EwqError: as :func:`ewq.gguf.export.export_gguf`.
    """
    return _find_or_make(open_for(model, recipe, progress), recipe, folder, progress)


def _find_or_make(checkpoint: Checkpoint, recipe: Recipe, folder: Path, progress: Progress) -> Path:
    out = folder / _file_name(checkpoint, recipe)
    if _is_intact(out):
        return out
    with scratch_beside(out) as work:
        base = _base(checkpoint, recipe, folder, work, progress)
        build(base, recipe, out, work, progress)
    return out


def _base(
    checkpoint: Checkpoint, recipe: Recipe, folder: Path, work: Path, progress: Progress
) -> Base:
    """Quantizing starts from a converted file that is kept as well: all recipes share it."""
    plain = isinstance(recipe, TypeRecipe) and recipe.name in CONVERTED_TYPES
    if plain or checkpoint.is_gguf:
        return make_base(checkpoint, recipe, work, progress=progress)
    converted = TypeRecipe(base_type(checkpoint))
    return Base(_find_or_make(checkpoint, converted, folder, progress))


def _is_intact(path: Path) -> bool:
    try:
        return path.is_file() and bool(read_header(path).tensors)
    except CheckpointError:
        return False


def _file_name(checkpoint: Checkpoint, recipe: Recipe) -> str:
    if isinstance(recipe, PlanRecipe):
        label, made_of = "ewq", [recipe.plan.digest, dict(recipe.types)]
    else:
        label, made_of = recipe.name.lower(), [recipe.name]
    imatrix = file_digest(recipe.imatrix) if recipe.imatrix else None
    key = content_key(
        SCHEMA, checkpoint.fingerprint, made_of, imatrix, _converter(), _llama_version()
    )
    return f"{checkpoint.path.stem}-{label}-{key[:16]}.gguf"


def _converter() -> str:
    named = os.environ.get(VARIABLE)
    return file_digest(find_converter(Path(named))) if named else f"{PACKAGE}-{VERSION}"


def _llama_version() -> str:
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        raise BackendUnavailable("llama.cpp is not installed: pip install 'ewq[gguf]'") from None
