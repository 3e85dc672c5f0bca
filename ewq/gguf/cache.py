"""GGUF files that are made once and kept under the content they were made from."""

import json
import os
from pathlib import Path
from typing import Any

from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.errors import CheckpointError
from ewq.files import check_output, content_key, file_digest, scratch_beside, write_text
from ewq.gguf.convert import PACKAGE, VARIABLE, VERSION, find_converter
from ewq.gguf.export import base_type, build, check_export, make_base, open_for
from ewq.gguf.probe import llama_cpp_version
from ewq.gguf.recipe import PlanRecipe, Recipe, TypeRecipe, plain_type
from ewq.progress import NO_PROGRESS, Progress

NAME_BYTES = 60
"""Of a model's name in that of a file; names of files are limited."""
SCHEMA = 2
"""Raised when exports change, so that old files are not taken for new ones."""


def cached_gguf(
    model: str | Path, recipe: Recipe, folder: Path, *, progress: Progress = NO_PROGRESS
) -> Path:
    """The GGUF of a model by a recipe: exported into ``folder`` on first use, found again later.

    An EwqError as of :func:`ewq.gguf.export.export_gguf`, or where the ``gguf`` extra is absent.
    """
    return _find_or_make(open_for(model, recipe, progress), recipe, folder, progress)


def export_notes(path: Path) -> tuple[str, ...]:
    """What the export of a cached file had to say: fallbacks, and weights left as they were."""
    return tuple(_entry(path)["notes"])


def _entry(path: Path) -> Any:
    """What is kept beside a cached file, written last: without it the file counts as cut short."""
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def _find_or_make(checkpoint: Checkpoint, recipe: Recipe, folder: Path, progress: Progress) -> Path:
    out = folder / _file_name(checkpoint, recipe)
    if _is_intact(out):
        return out
    check_output(out)
    check_export(checkpoint, recipe, out)
    with scratch_beside(out) as work:
        if plain_type(recipe) or checkpoint.is_gguf:
            # Notes are on tokenizers: here token ids come from the checkpoint's own.
            base, _ = make_base(checkpoint, recipe, work, progress)
        else:
            # A converted file is kept as well: all recipes share it.
            converted = TypeRecipe(base_type(checkpoint))
            base = _find_or_make(checkpoint, converted, folder, progress)
        report = build(base, recipe, out, work, progress)
    entry = {"fingerprint": open_checkpoint(out).fingerprint, "notes": report.notes}
    write_text(out.with_suffix(".json"), json.dumps(entry))
    return out


def _is_intact(path: Path) -> bool:
    """Whether a file is the one that was exported, by its header and samples of its content."""
    try:
        return bool(_entry(path)["fingerprint"] == open_checkpoint(path).fingerprint)
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        return False


def _file_name(checkpoint: Checkpoint, recipe: Recipe) -> str:
    if isinstance(recipe, PlanRecipe):
        label, made_of = "ewq", [recipe.plan.digest, dict(recipe.types)]
    else:
        label, made_of = recipe.name.lower(), [recipe.name]
    imatrix = file_digest(recipe.imatrix) if recipe.imatrix else None
    named = os.environ.get(VARIABLE)
    converter = file_digest(find_converter()) if named else f"{PACKAGE}-{VERSION}"
    origins = converter, llama_cpp_version()
    key = content_key(SCHEMA, checkpoint.fingerprint, made_of, imatrix, *origins)
    name = os.fsencode(checkpoint.path.stem)[:NAME_BYTES].decode(errors="ignore")
    return f"{name}-{label}-{key[:16]}.gguf"
