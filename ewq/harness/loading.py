"""How each recipe becomes a loaded model."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ewq.checkpoint.embedded import fixture_path
from ewq.checkpoint.layout import find_layout
from ewq.errors import BackendUnavailable
from ewq.files import cache_dir, file_digest
from ewq.gguf.cache import cached_gguf, export_notes
from ewq.gguf.probe import probe_file, require_same_model, shape_of_config
from ewq.gguf.recipe import make_recipe
from ewq.harness.subject import Placement, Subject
from ewq.instruments.gpu import gpus_of
from ewq.measurement import Json
from ewq.model import LanguageModel
from ewq.planning.plan import BITSANDBYTES, QuantizationPlan, check_budget, require_target
from ewq.planning.sizes import format_of
from ewq.variants import (
    LLAMA_CPP,
    TRANSFORMERS,
    Fitted,
    GgufFile,
    GgufType,
    HfFolder,
    Planned,
    Raw,
    Uniform,
    Variant,
    engine_of,
    find_variant,
)

if TYPE_CHECKING:
    from ewq.backends.model_folder import ModelFolder


@dataclass(frozen=True)
class Loaded:
    """A model in memory with the plan it was made by."""

    model: LanguageModel
    plan: QuantizationPlan | None = None
    notes: tuple[str, ...] = ()
    """Sentences for people on how the plan was followed."""


def load_variant(variant: Variant, subject: Subject, placement: Placement) -> Loaded:
    """Load a variant's weights; an EwqError where a library is missing or a plan does not fit."""
    plan, file = plan_of(variant, subject), _file_of(variant, subject)
    if file is None:
        from ewq.backends.transformers import load_transformers

        how: dict[str, Any] = {
            "device": placement.device,
            "dtype": placement.dtype,
            "batch_tokens": placement.batch_tokens,
            "tokenizer": subject.tokenizer,
            "decode_mode": placement.decode,
        }
        if isinstance(variant.recipe, HfFolder):
            from ewq.backends.model_folder import load_model_folder

            made, notes = load_model_folder(_folder_of(variant.recipe, subject), **how)
            return Loaded(made, None, notes)
        config = _quantizer().EwqConfig(plan=plan) if plan else None
        return Loaded(
            load_transformers(subject.checkpoint.path, quantization_config=config, **how), plan
        )
    from ewq.backends.llama_cpp import load_llama_cpp

    running = load_llama_cpp(
        file, subject.tokenizer, device=placement.device, cache_type=variant.cache.upper()
    )
    given = isinstance(variant.recipe, GgufFile)
    return Loaded(running, plan, () if given else export_notes(file))


def check_variant(variant: Variant, subject: Subject, *, named: bool) -> None:
    """Refuse before anything loads what could not be loaded, with an InputError.

    An optional library may be missing unless the variant is ``named`` by the user.
    """
    recipe, native = variant.recipe, engine_of(variant.name) == LLAMA_CPP
    if native and not all(map(find_spec, ("llama_cpp", "gguf"))):
        if named:
            raise BackendUnavailable(f"{variant.name} needs llama.cpp: pip install 'ewq[gguf]'")
        return
    if isinstance(recipe, HfFolder):
        folder = _folder_of(recipe, subject)
        folder.require_same_model(subject.tokenizer, subject.label)
        if named:
            folder.require_library()
    elif not native and not isinstance(recipe, Raw) and not find_spec("bitsandbytes"):
        raise BackendUnavailable(f"{variant.name} needs bitsandbytes: pip install bitsandbytes")
    if isinstance(recipe, GgufFile):
        blocks = len(find_layout(subject.checkpoint).blocks)
        shape = shape_of_config(subject.checkpoint.config, blocks)
        require_same_model(recipe.path, shape, subject.tokenizer, subject.label)
    elif isinstance(recipe, Planned) and isinstance(recipe.plan, Path):
        plan = subject.plan(recipe.plan)
        require_target(plan, "gguf" if native else BITSANDBYTES)
        applied = "gguf" if native else "nf4" if plan.target == "gguf" else plan.target
        check_budget(plan, subject.checkpoint, applied)
    elif isinstance(recipe, Fitted) and recipe.like:
        make_recipe(recipe.like)


def content_of(variant: Variant, subject: Subject) -> dict[str, Json]:
    """What tells by its content what was given by a path, for settings: its name says nothing."""
    recipe = variant.recipe
    if isinstance(recipe, GgufFile):
        return {"gguf_sha256": file_digest(recipe.path)}
    # A project's own kind of subject knows its variants itself.
    if isinstance(recipe, HfFolder) and isinstance(subject, Subject):
        folder = _folder_of(recipe, subject)
        return {"folder": folder.fingerprint, "method": folder.method}
    return {}


def _folder_of(recipe: HfFolder, subject: Subject) -> ModelFolder:
    from ewq.backends.model_folder import open_model_folder

    return open_model_folder(recipe.source, subject.checkpoint, subject.progress)


def get_ready(variant: Variant, subject: Subject, placement: Placement) -> None:
    """Do what the first variant to load would else be charged for: analysis, export, kernels."""
    _ = subject.tokenizer
    if engine_of(variant.name) == TRANSFORMERS and not isinstance(variant.recipe, Raw | HfFolder):
        _quantizer()
        plan_of(variant, subject)
    if file := _file_of(variant, subject):
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
    """What a variant's weights take in memory; of llama.cpp's types by the bits in their names."""
    recipe, native = variant.recipe, engine_of(variant.name) == LLAMA_CPP
    if isinstance(recipe, GgufFile):
        return recipe.path.stat().st_size
    if isinstance(recipe, HfFolder):
        return _folder_of(recipe, subject).nbytes
    if isinstance(recipe, Fitted) and recipe.size_bytes:
        return recipe.size_bytes
    if name := getattr(recipe, "type_name", None) or getattr(recipe, "like", None):
        return subject.footprint.numel * int(re.findall(r"\d+", name)[0]) // 8
    plan, target = plan_of(variant, subject), format_of("gguf" if native else "nf4")
    value_bytes = 4 if placement.dtype == "float32" and not native else 2
    return subject.footprint.loaded_nbytes(plan.weights if plan else {}, target, value_bytes)


def plan_of(variant: Variant, subject: Subject) -> QuantizationPlan | None:
    """The plan that a variant is made by, known without loading it."""
    if variant.name not in subject.plans:
        subject.plans[variant.name] = _make_plan(variant, subject)
    return subject.plans[variant.name]


def _make_plan(variant: Variant, subject: Subject) -> QuantizationPlan | None:
    recipe = variant.recipe
    if isinstance(recipe, Uniform):
        return subject.analysis.uniform_plan(recipe.precision)
    if isinstance(recipe, Planned):
        return subject.plan(recipe.plan)
    if isinstance(recipe, Fitted):
        return subject.fitted_plan(recipe, engine_of(variant.name))
    return None


def same_model(one: Variant, other: Variant, subject: Subject) -> bool:
    """Whether two plans, in the same engine, give every weight the same type."""
    if (engine_of(one.name), one.cache) != (engine_of(other.name), other.cache):
        return False
    plans = [plan_of(each, subject) for each in (one, other)]
    first, second = (plan and (plan.weights, plan.types, plan.target) for plan in plans)
    return first is not None and first == second


def _quantizer() -> ModuleType:
    """The quantizer, or one line where bitsandbytes is missing: it is no optional library."""
    from ewq.quantizer.config import require_bitsandbytes

    require_bitsandbytes()
    return import_module("ewq.quantizer")


def _file_of(variant: Variant, subject: Subject) -> Path | None:
    """The file of a variant that llama.cpp runs, exported on first use."""
    recipe = variant.recipe
    if isinstance(recipe, GgufFile):
        return recipe.path
    if engine_of(variant.name) == TRANSFORMERS:
        return None
    own = recipe if isinstance(recipe, GgufType) else None
    weighted = own.imatrix if own else isinstance(recipe, Fitted)
    imatrix = subject.imatrix if weighted else None
    made = make_recipe(own.type_name if own else None, plan_of(variant, subject), imatrix=imatrix)
    folder = cache_dir("gguf")
    return cached_gguf(subject.checkpoint.path, made, folder, progress=subject.progress)
