"""How each recipe becomes a loaded model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ewq.checkpoint.embedded import fixture_path
from ewq.errors import BackendUnavailable
from ewq.files import cache_dir
from ewq.harness.subject import Placement, Subject
from ewq.instruments.gpu import gpus_of
from ewq.planning.sizes import format_of
from ewq.variants import (
    Fitted,
    GgufFile,
    GgufFitted,
    GgufPlanned,
    GgufType,
    Planned,
    Raw,
    Uniform,
    Variant,
    engine_of,
    find_variant,
)

if TYPE_CHECKING:
    from ewq.model import LanguageModel
    from ewq.planning.plan import QuantizationPlan


@dataclass(frozen=True)
class Loaded:
    """A model in memory with the plan it was made by."""

    model: LanguageModel
    plan: QuantizationPlan | None = None
    notes: Callable[[], tuple[str, ...]] = tuple
    """Sentences for people on how the plan was followed; worked out after the load is timed."""


def load_variant(variant: Variant, subject: Subject, placement: Placement) -> Loaded:
    """Load a variant's weights.

    Raises:
        EwqError: a missing library, a plan that does not fit, too little memory.
    """
    return _LOADERS[type(variant.recipe)](variant.recipe, subject, placement)


def get_ready(variant: Variant, subject: Subject, placement: Placement) -> None:
    """Do what comes before loading and is no part of it, so that it is not measured as such.

    The tokenizer, the analysis, the export to GGUF and its trial in a child, importing libraries,
    and what these load into a GPU are done once or cached, and would otherwise be charged to
    whichever variant comes first.
    """
    recipe = variant.recipe
    _ = subject.tokenizer
    if isinstance(recipe, Planned | Uniform | Fitted):
        _quantizer()
        _ = _plan(recipe, subject)
    file = _file_of(recipe, subject)
    if file is not None:
        from ewq.gguf.probe import probe_file

        probe_file(file)
    if gpus_of(placement.device):
        warm_up(file is not None, placement)


@cache
def warm_up(is_gguf: bool, placement: Placement) -> None:
    """Run tiny models of an engine, whose first model else pays for 60 to 200 MB of kernels."""
    tiny = Subject("warm-up", str(fixture_path("tiny-llama")))
    # Without a converter no file can be made, and a given one is measured all the same.
    with suppress(BackendUnavailable):
        for name in ("gguf-f16",) if is_gguf else ("fp16", "bnb-nf4", "bnb-int8"):
            model = load_variant(find_variant(name), tiny, placement).model
            model.generate([[1, 2, 3]], 4)
            model.close()


def weights_bytes(variant: Variant, subject: Subject, placement: Placement) -> int:
    """What a variant's weights take in memory, known without loading them."""
    file = _file_of(variant.recipe, subject)
    if file is not None:
        return file.stat().st_size
    plan = plan_of(variant, subject)
    precisions = plan.weights if plan else {}
    value_bytes = 4 if placement.dtype == "float32" else 2
    return subject.analysis.footprint.loaded_nbytes(precisions, format_of("nf4"), value_bytes)


def plan_of(variant: Variant, subject: Subject) -> QuantizationPlan | None:
    """The plan that a variant is made by, known without loading it."""
    if isinstance(variant.recipe, Planned | Uniform | GgufPlanned | Fitted | GgufFitted):
        return _plan(variant.recipe, subject)
    return None


def same_model(one: Variant, other: Variant, subject: Subject) -> bool:
    """Whether two plans, in the same engine, give every weight the same type."""
    first, second = plan_of(one, subject), plan_of(other, subject)
    if first is None or second is None:
        return False
    engines = {engine_of(each.name) for each in (one, other)}
    return len(engines) == 1 and (first.weights, first.types, first.target) == (
        second.weights,
        second.types,
        second.target,
    )


def _plan(
    recipe: Planned | Uniform | GgufPlanned | Fitted | GgufFitted, subject: Subject
) -> QuantizationPlan:
    if isinstance(recipe, Fitted | GgufFitted):
        return subject.fitted_plan(recipe)
    if isinstance(recipe, Uniform):
        return subject.uniform_plan(recipe.precision)
    return subject.plan(recipe.plan)


def _quantizer() -> ModuleType:
    """The quantizer, or one line where bitsandbytes is missing: it is no optional library."""
    from ewq.quantizer.config import require_bitsandbytes

    require_bitsandbytes()
    return import_module("ewq.quantizer")


def _file_of(recipe: object, subject: Subject) -> Path | None:
    """The file of a variant that llama.cpp runs."""
    if isinstance(recipe, GgufFile):
        return recipe.path
    return (
        _gguf_path(recipe, subject)
        if isinstance(recipe, GgufType | GgufPlanned | GgufFitted)
        else None
    )


def _gguf_path(recipe: GgufType | GgufPlanned | GgufFitted, subject: Subject) -> Path:
    """The exported file, made on first use."""
    from ewq.gguf.cache import cached_gguf
    from ewq.gguf.recipe import make_recipe

    if isinstance(recipe, GgufType):
        made = make_recipe(recipe.type_name, imatrix=subject.imatrix if recipe.imatrix else None)
    elif isinstance(recipe, GgufFitted):
        made = make_recipe(plan=subject.fitted_plan(recipe), imatrix=subject.imatrix)
    else:
        made = make_recipe(plan=subject.plan(recipe.plan))
    return cached_gguf(subject.folder, made, cache_dir("gguf"), progress=subject.progress)


def _raw(_: Raw, subject: Subject, placement: Placement) -> Loaded:
    return Loaded(_transformers(subject, placement))


def _quantized(
    recipe: Planned | Uniform | Fitted, subject: Subject, placement: Placement
) -> Loaded:
    plan = _plan(recipe, subject)
    config = _quantizer().EwqConfig(plan=plan)
    return Loaded(_transformers(subject, placement, config), plan)


def _transformers(
    subject: Subject,
    placement: Placement,
    quantization_config: Any = None,
) -> LanguageModel:
    from ewq.backends.transformers import load_transformers

    return load_transformers(
        subject.folder,
        quantization_config=quantization_config,
        device=placement.device,
        dtype=placement.dtype,
        batch_tokens=placement.batch_tokens,
        tokenizer=subject.tokenizer,
        decode_mode=placement.decode,
    )


def _gguf_type(recipe: GgufType, subject: Subject, placement: Placement) -> Loaded:
    path = _gguf_path(recipe, subject)
    return Loaded(_llama_cpp(path, subject, placement), notes=partial(_export_notes, path))


def _gguf_planned(recipe: GgufPlanned, subject: Subject, placement: Placement) -> Loaded:
    path, plan = _gguf_path(recipe, subject), subject.plan(recipe.plan)
    return Loaded(_llama_cpp(path, subject, placement), plan, partial(_export_notes, path))


def _gguf_fitted(recipe: GgufFitted, subject: Subject, placement: Placement) -> Loaded:
    path, plan = _gguf_path(recipe, subject), subject.fitted_plan(recipe)
    return Loaded(_llama_cpp(path, subject, placement), plan, partial(_export_notes, path))


def _export_notes(path: Path) -> tuple[str, ...]:
    from ewq.gguf.cache import export_notes

    return export_notes(path)


def _gguf_file(recipe: GgufFile, subject: Subject, placement: Placement) -> Loaded:
    _require_same_model(recipe.path, subject)
    return Loaded(_llama_cpp(recipe.path, subject, placement))


def _require_same_model(path: Path, subject: Subject) -> None:
    from ewq.checkpoint.layout import find_layout
    from ewq.gguf.probe import require_same_model, shape_of_config

    blocks = len(find_layout(subject.checkpoint).blocks)
    shape = shape_of_config(subject.checkpoint.config, blocks)
    require_same_model(path, shape, subject.tokenizer, subject.label)


def _llama_cpp(path: Path, subject: Subject, placement: Placement) -> LanguageModel:
    from ewq.backends.llama_cpp import load_llama_cpp

    return load_llama_cpp(path, subject.tokenizer, device=placement.device)


_LOADERS: dict[type, Callable[[Any, Subject, Placement], Loaded]] = {
    Raw: _raw,
    Uniform: _quantized,
    Planned: _quantized,
    GgufType: _gguf_type,
    GgufPlanned: _gguf_planned,
    Fitted: _quantized,
    GgufFitted: _gguf_fitted,
    GgufFile: _gguf_file,
}
