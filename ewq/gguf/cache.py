"""GGUF files that are made once and kept under the content they were made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ewq.checkpoint.gguf_header import read_header
from ewq.errors import BackendUnavailable, CheckpointError
from ewq.gguf.convert import CONVERTED_TYPES
from ewq.gguf.converter import PACKAGE, VARIABLE, VERSION, find_converter
from ewq.gguf.export import Base, base_type, build, make_base, scratch_beside
from ewq.gguf.recipe import PlanRecipe, Recipe, TypeRecipe, make_recipe
from ewq.planning.plan import QuantizationPlan
from ewq.precision import Precision
from ewq.progress import NO_PROGRESS, Progress

if TYPE_CHECKING:
    from ewq.checkpoint.opening import Checkpoint

SCHEMA = 1
"""Raised when exports change, so that old files are not taken for new ones."""


def cached_gguf(
    model: str | Path,
    recipe: str | QuantizationPlan,
    cache_dir: Path,
    *,
    types: Mapping[Precision, str] | None = None,
    imatrix: Path | None = None,
    progress: Progress = NO_PROGRESS,
) -> Path:
    """The GGUF of a model by a recipe: exported on first use, found again afterwards.

    Args:
        model: hub id, Hugging Face folder, or ``.gguf``.
        recipe: one of llama.cpp's types (``F16``, ``Q4_K_M``), or a plan.
        cache_dir: where files are kept; named by what they were made from.
        types: ggml type per precision of the plan.
        imatrix: importance matrix for the quantizer.
        progress: where to report.

    Raises:
        BackendUnavailable: the ``gguf`` extra is absent.
        EwqError: as :func:`ewq.gguf.export.export_gguf`.
    """
    from ewq.checkpoint.opening import open_checkpoint
    from ewq.planning.plan import check_plan

    if isinstance(recipe, QuantizationPlan):
        made = make_recipe(None, recipe, types, imatrix)
    else:
        made = make_recipe(recipe, None, types, imatrix)
    checkpoint = open_checkpoint(model, progress)
    if isinstance(made, PlanRecipe):
        check_plan(made.plan, checkpoint)
    return _find_or_make(checkpoint, made, cache_dir, progress)


def _find_or_make(
    checkpoint: Checkpoint, recipe: Recipe, cache_dir: Path, progress: Progress
) -> Path:
    out = cache_dir / _file_name(checkpoint, recipe)
    if _intact(out):
        return out
    with scratch_beside(out) as work:
        base = _base(checkpoint, recipe, cache_dir, work, progress)
        build(base, recipe, out, work, progress)
    return out


def _base(
    checkpoint: Checkpoint, recipe: Recipe, cache_dir: Path, work: Path, progress: Progress
) -> Base:
    """Quantizing starts from a converted file that is kept as well: all recipes share it."""
    plain = isinstance(recipe, TypeRecipe) and recipe.name in CONVERTED_TYPES
    if plain or checkpoint.is_gguf:
        return make_base(checkpoint, recipe, work, progress=progress)
    converted = TypeRecipe(base_type(checkpoint))
    return Base(_find_or_make(checkpoint, converted, cache_dir, progress))


def _intact(path: Path) -> bool:
    try:
        return path.is_file() and bool(read_header(path).tensors)
    except CheckpointError:
        return False


def _file_name(checkpoint: Checkpoint, recipe: Recipe) -> str:
    made_from = {
        "schema": SCHEMA,
        "fingerprint": checkpoint.fingerprint,
        "recipe": _identity(recipe),
        "imatrix": _digest(recipe.imatrix) if recipe.imatrix else None,
        "converter": _converter(),
        "llama_cpp": _llama_version(),
    }
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    label = "ewq" if isinstance(recipe, PlanRecipe) else recipe.name.lower()
    return f"{checkpoint.path.stem}-{label}-{key[:16]}.gguf"


def _converter() -> str:
    named = os.environ.get(VARIABLE)
    return _digest(find_converter(Path(named))) if named else f"{PACKAGE}-{VERSION}"


def _identity(recipe: Recipe) -> list[str]:
    if isinstance(recipe, TypeRecipe):
        return [recipe.name]
    return [recipe.plan.digest, *(f"{kind}={name}" for kind, name in sorted(recipe.types.items()))]


def _llama_version() -> str:
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        raise BackendUnavailable("llama.cpp is not installed: pip install 'ewq[gguf]'") from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
