"""``ewq fit``: from a model and a size to a file, and how far that file is from the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ewq.checkpoint.gguf_header import nominal_bytes, read_header
from ewq.checkpoint.loading import load_tokenizer
from ewq.checkpoint.opening import Checkpoint
from ewq.errors import InputError, PlanError, check_known
from ewq.files import cache_dir, scratch_beside
from ewq.fit.plans import GRANULARITIES, Fitting, Rule
from ewq.fit.prepare import calibrate, converted, importance_of, open_fitting
from ewq.fit.targets import GGUF, padded
from ewq.gguf.cache import cached_gguf
from ewq.gguf.export import export_gguf
from ewq.gguf.quantize import recipe_types
from ewq.gguf.recipe import make_recipe
from ewq.planning.plan import BITSANDBYTES, QuantizationPlan
from ewq.progress import NO_PROGRESS, Progress
from ewq.sensitivity.calibration import (
    Calibrating,
    Calibration,
    calibration_texts,
    refuse_evaluation_text,
)

if TYPE_CHECKING:
    from ewq.data.texts import TextSet
    from ewq.measurement import Metric
    from ewq.model import LanguageModel

    Load = Callable[..., LanguageModel]
    Made = Mapping[str, tuple[Path, int]]

HEADER_SLACK = 256
"""Bytes that llama.cpp's quantizer may add to a file's header."""


@dataclass(frozen=True)
class Aim:
    """What a plan is to reach: exactly one of the first four, by units of a granularity."""

    size_bytes: int | None = None
    bpw: float | None = None
    kld: float | None = None
    like: str | None = None
    """One of llama.cpp's recipes, whose bytes are not exceeded."""
    granularity: str = "tensor"

    def __post_init__(self) -> None:
        given = [v for v in (self.size_bytes, self.bpw, self.kld, self.like) if v is not None]
        if len(given) != 1:
            raise InputError("give exactly one of a size, bits per weight, a KLD and a recipe")
        for value, unit in ((self.bpw, "bits per weight"), (self.kld, "nats")):
            if value is not None and not 0 < value < math.inf:
                raise PlanError(f"invalid target of {value} {unit}: expected a number above 0")
        check_known(self.granularity, GRANULARITIES, "granularity")


@dataclass(frozen=True)
class Measured:
    """A quantized model against the unquantized one, on the evaluation texts."""

    label: str
    nbytes: int
    """Of the file, or of the weights in memory."""
    metrics: Mapping[str, Metric]
    """``kld_mean``, ``top1_agreement``, ``ln_ppl_ratio`` and the others of the task."""


@dataclass(frozen=True)
class Fitted:
    """What :func:`fit` made."""

    path: Path
    plan: QuantizationPlan
    measured: tuple[Measured, ...]
    """What was made, and its rivals."""
    notes: tuple[str, ...]


def make_plan(fitting: Fitting, aim: Aim, *, file_bytes: bool = False) -> QuantizationPlan:
    """The plan that reaches an aim, or a PlanError; ``file_bytes``: a size includes the header."""
    rule: Rule
    if aim.kld is not None:
        rule = {"kind": "target_kld", "target_kld": aim.kld}
        return fitting.below(aim.kld, rule, aim.granularity)
    if aim.like is not None:
        budget = recipe_bytes(fitting.checkpoint, aim.like, fitting.target.name)
        rule = {"kind": "like", "like": aim.like}
    elif aim.bpw is not None:
        budget = int(aim.bpw * fitting.target.parameters / 8)
        rule = {"kind": "target_bpw", "target_bpw": aim.bpw}
    else:
        assert aim.size_bytes is not None
        header = fitting.target.header_bytes + HEADER_SLACK if file_bytes else 0
        budget = aim.size_bytes - header
        rule = {"kind": "target_size", "target_size_bytes": aim.size_bytes}
    return fitting.within(budget, rule, aim.granularity)


def check_recipes(names: Sequence[str | None], engine: str) -> None:
    """Refuse names that are no recipes of llama.cpp, or an engine that has none (InputError)."""
    for name in filter(None, names):
        make_recipe(name)
        if engine != GGUF:
            raise PlanError(
                f"{name} is of llama.cpp's recipes, which have no size for {engine}; take gguf"
            )


def recipe_bytes(checkpoint: Checkpoint, name: str, engine: str = GGUF) -> int:
    """Bytes of all tensors of a recipe of llama.cpp (else an InputError), fallbacks included."""
    check_recipes([name], engine)
    base = converted(checkpoint)
    chosen = recipe_types(base, name.upper())
    return sum(
        padded(nominal_bytes(chosen.get(tensor.name, tensor.dtype), tensor.numel))
        for tensor in read_header(base).tensors
    )


def fit(
    model: str | Path,
    out: Path,
    aim: Aim,
    *,
    engine: str,
    how: Calibrating,
    versus: Sequence[str],
    texts: TextSet,
    tokens_per_domain: int,
    gptq: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Fitted:
    """Make the best file (or folder) of a size, or the smallest of a divergence, and measure it.

    ``versus`` names recipes to measure beside it on ``texts``; with ``gptq`` rounding errors cancel
    on the calibration text, and divergence is expected as if not. An InputError where calibration
    and evaluation text are the same, an EwqError where the size cannot be reached or a step fails.
    """
    refuse_evaluation_text(calibration_texts(how.source), texts)
    check_recipes([*versus, aim.like], engine)
    fitting = open_fitting(model, engine, how, progress)
    plan = make_plan(fitting, aim, file_bytes=engine == GGUF)
    if engine == BITSANDBYTES:
        original, made, load = _folder(fitting, plan, out, how.device, progress)
    else:
        text = calibrate(fitting.checkpoint, how) if gptq else None
        original, made, load = _files(fitting, plan, out, versus, text, progress)
    tokenizer = load_tokenizer(fitting.checkpoint.path, fitting.checkpoint.model)
    load = partial(load, tokenizer=tokenizer, device=how.device)
    options = {"max_tokens_per_domain": tokens_per_domain, "progress": progress}
    measured = _measure(original, made, load, texts, options)
    return Fitted(out, plan, tuple(measured), fitting.sensitivity.notes())


def _files(
    fitting: Fitting,
    plan: QuantizationPlan,
    out: Path,
    versus: Sequence[str],
    calibration: Calibration | None,
    progress: Progress,
) -> tuple[Path, Made, Load]:
    """The converted model, file and bytes by label, and what loads them."""
    from ewq.backends.llama_cpp import load_llama_cpp

    folder, base = fitting.checkpoint.path, converted(fitting.checkpoint)
    imatrix = importance_of(fitting.sensitivity, base)
    recipe = make_recipe(plan=plan, imatrix=imatrix)
    export_gguf(folder, out, recipe, base=base, calibration=calibration, progress=progress)
    files = {out.name: out}
    for name in versus:
        rival = make_recipe(name, imatrix=imatrix)
        label = f"{name.upper()} with the same importance matrix"
        files[label] = cached_gguf(folder, rival, cache_dir("gguf"), progress=progress)
    sizes = {label: (path, path.stat().st_size) for label, path in files.items()}
    return base, sizes, load_llama_cpp


def _folder(
    fitting: Fitting, plan: QuantizationPlan, out: Path, device: str, progress: Progress
) -> tuple[Path, Made, Load]:
    from ewq.backends.transformers import load_transformers
    from ewq.quantizer import EwqConfig
    from ewq.quantizer.folder import quantize_to_folder

    folder = fitting.checkpoint.path
    made = quantize_to_folder(folder, EwqConfig(plan), out, device=device, progress=progress)
    load = partial(load_transformers, dtype="float32" if device == "cpu" else "bfloat16")
    return folder, {out.name: (out, made.weights_bytes)}, load


def _measure(
    original: Path, made: Made, load: Load, texts: TextSet, options: Mapping[str, Any]
) -> list[Measured]:
    """Each quantized model against the distributions of the original, one in memory at a time."""
    from ewq.tasks.divergence import record_reference, run

    measured = []
    with scratch_beside(cache_dir("references", "fit")) as scratch:
        with closing(load(original)) as model:
            reference = record_reference(model, texts, scratch, **options)
        with closing(reference):
            for label, (path, nbytes) in made.items():
                with closing(load(path)) as model:
                    metrics = run(model, reference, progress=options["progress"]).metrics
                measured.append(Measured(label, nbytes, metrics))
    return measured
