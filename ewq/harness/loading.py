"""How each recipe becomes a loaded model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ewq.cache_dir import cache_dir
from ewq.harness.placement import Placement
from ewq.harness.subject import Subject
from ewq.variants import (
    GgufFile,
    GgufPlanned,
    GgufType,
    Planned,
    Raw,
    Uniform,
    Variant,
)

if TYPE_CHECKING:
    from ewq.model import LanguageModel
    from ewq.plan import QuantizationPlan


@dataclass(frozen=True)
class Loaded:
    """A model in memory with the plan it was made by."""

    model: LanguageModel
    plan: QuantizationPlan | None = None


def load_variant(variant: Variant, subject: Subject, placement: Placement) -> Loaded:
    """Load a variant's weights.

    Raises:
        EwqError: a missing library, a plan that does not fit, too little memory.
    """
    return _LOADERS[type(variant.recipe)](variant.recipe, subject, placement)


def _raw(_: Raw, subject: Subject, placement: Placement) -> Loaded:
    return Loaded(_transformers(subject, placement))


def _uniform(recipe: Uniform, subject: Subject, placement: Placement) -> Loaded:
    return _quantized(subject.uniform_plan(recipe.precision), subject, placement)


def _planned(recipe: Planned, subject: Subject, placement: Placement) -> Loaded:
    return _quantized(subject.plan(recipe.factor), subject, placement)


def _quantized(plan: QuantizationPlan, subject: Subject, placement: Placement) -> Loaded:
    from ewq.quantizer import EwqConfig

    return Loaded(_transformers(subject, placement, EwqConfig(plan=plan)), plan)


def _transformers(
    subject: Subject,
    placement: Placement,
    quantization_config: Any = None,  # noqa: ANN401 - any transformers quantization config
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
    from ewq.gguf import cached_gguf

    path = cached_gguf(
        subject.folder, recipe.type_name, cache_dir("gguf"), progress=subject.progress
    )
    return Loaded(_llama_cpp(path, subject, placement))


def _gguf_planned(recipe: GgufPlanned, subject: Subject, placement: Placement) -> Loaded:
    from ewq.gguf import cached_gguf

    plan = subject.plan(recipe.factor)
    path = cached_gguf(subject.folder, plan, cache_dir("gguf"), progress=subject.progress)
    return Loaded(_llama_cpp(path, subject, placement), plan)


def _gguf_file(recipe: GgufFile, subject: Subject, placement: Placement) -> Loaded:
    return Loaded(_llama_cpp(recipe.path, subject, placement))


def _llama_cpp(path: Path, subject: Subject, placement: Placement) -> LanguageModel:
    from ewq.backends.llama_cpp import load_llama_cpp

    return load_llama_cpp(path, subject.tokenizer, device=placement.device)


_LOADERS: dict[type, Callable[[Any, Subject, Placement], Loaded]] = {
    Raw: _raw,
    Uniform: _uniform,
    Planned: _planned,
    GgufType: _gguf_type,
    GgufPlanned: _gguf_planned,
    GgufFile: _gguf_file,
}
