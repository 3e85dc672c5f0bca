"""Making a GGUF: convert, quantize by llama.cpp, read back, and only then give it its name."""

import math
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ewq.checkpoint.families import FAMILY_OF
from ewq.checkpoint.gguf_header import GgufHeader, read_header
from ewq.checkpoint.layout import HEADS, find_layout
from ewq.checkpoint.loading import load_tokenizer
from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.errors import CheckpointError, InputError
from ewq.files import check_output, said_of, scratch_beside
from ewq.gguf.convert import CONVERTED_TYPES, convert_folder
from ewq.gguf.gptq import recode
from ewq.gguf.imatrix import check_entries, effect_notes
from ewq.gguf.quantize import QuantizeJob, as_command, run_quantizer
from ewq.gguf.recipe import (
    DEFAULT_TYPES,
    EMBEDDING,
    OUTPUT,
    PlanRecipe,
    Recipe,
    TypeRecipe,
    exact_types,
    plain_type,
)
from ewq.gguf.report import ExportReport, read_back
from ewq.model import check_vocabulary
from ewq.planning.plan import check_budget, check_plan
from ewq.progress import NO_PROGRESS, Progress
from ewq.sensitivity.calibration import Calibration
from ewq.variants import Precision

WIDER_THAN_F16 = ("BF16", "F32", "F64")
ROUNDED_TO_INFINITY = 65_520
"""From here on float16 has no finite number: half way between its last two steps."""


def export_gguf(
    model: str | Path,
    out: str | Path,
    recipe: Recipe,
    *,
    calibration: Calibration | None = None,
    base: Path | None = None,
    progress: Progress = NO_PROGRESS,
) -> ExportReport:
    """Export a hub id, a Hugging Face folder or another ``.gguf`` as one GGUF file.

    ``out`` appears when it is complete and checked, not before. ``base`` is the model's conversion,
    where there is one. With a ``calibration`` weights are rounded so that errors cancel on its
    text (:mod:`ewq.gguf.gptq`).

    An InputError where ``out`` cannot be written, a weight would become infinite or nothing is
    to be rounded, a PlanError of another model's plan, an EwqError where llama.cpp fails.
    """
    out = Path(out)
    check_output(out)
    checkpoint = open_for(model, recipe, progress)
    check_export(checkpoint, recipe, out)
    rounding = None
    if calibration:
        from ewq.sensitivity.measure import check_trained

        check_trained(checkpoint)
        if plain := plain_type(recipe):
            raise InputError(f"{plain} rounds nothing: leave --rounding out, or name another type")
        rounding = partial(recode, checkpoint, calibration, progress)
    with scratch_beside(out) as work:
        notes: tuple[str, ...] = ()
        if base is None:
            base, notes = make_base(checkpoint, recipe, work, progress)
        return build(base, recipe, out, work, progress, rounding, notes)


def open_for(model: str | Path, recipe: Recipe, progress: Progress) -> Checkpoint:
    """The checkpoint to export, which the recipe's plan must fit in every respect."""
    checkpoint = open_checkpoint(model, progress)
    if _is_known(checkpoint):
        find_layout(checkpoint)
    if isinstance(recipe, PlanRecipe):
        check_plan(recipe.plan, checkpoint)
        if recipe.types == DEFAULT_TYPES:
            check_budget(recipe.plan, checkpoint, "gguf")
    return checkpoint


def check_export(checkpoint: Checkpoint, recipe: Recipe, out: Path) -> None:
    """Refuse a disk without room, and weights not finite, as in F16 are those beyond 65,504."""
    if checkpoint.is_gguf:
        return  # llama.cpp's quantizer validates what it writes
    width = 4 if _converted_type(checkpoint, recipe) == "F32" else 2
    converted = width * sum(tensor.numel for tensor in checkpoint.tensors.values())
    check_output(out, needed_bytes=converted)
    unquantized = plain_type(recipe) is not None
    for name, tensor in checkpoint.tensors.items():
        narrowed = (
            tensor.dtype in WIDER_THAN_F16
            and len(tensor.shape) > 1
            and _becomes_f16(name, checkpoint, recipe)
        )
        read = narrowed or (unquantized and tensor.dtype in (*WIDER_THAN_F16, "F16"))
        if not tensor.numel and len(tensor.shape) > 1:
            raise InputError(f"{name} has no values at all; the checkpoint is damaged")
        if not read or not tensor.numel:
            continue
        largest = checkpoint.largest(name)
        if not math.isfinite(largest):
            raise InputError(f"{name} holds values that are not finite; the checkpoint is damaged")
        if narrowed and largest >= ROUNDED_TO_INFINITY:
            instead = "--type BF16" if isinstance(recipe, TypeRecipe) else "--types raw=BF16"
            raise InputError(f"{name} holds {largest:,.0f}, which F16 cannot; use {instead}")


def base_type(checkpoint: Checkpoint) -> str:
    """Type to convert to before quantizing: the dtype that holds most of the checkpoint."""
    totals: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        totals[tensor.dtype] += tensor.nbytes
    [(dtype, _)] = totals.most_common(1)
    return dtype if dtype in CONVERTED_TYPES else "F16"


def make_base(
    checkpoint: Checkpoint, recipe: Recipe, work: Path, progress: Progress
) -> tuple[Path, tuple[str, ...]]:
    """The file to start from, with notes: a model that is GGUF, else a conversion in ``work``."""
    if checkpoint.is_gguf:
        return checkpoint.path, ()
    path = work / "base.gguf"
    type_name, known = _converted_type(checkpoint, recipe), _is_known(checkpoint)
    ignored = find_layout(checkpoint).ignored if known else frozenset()
    heads = {name for name in checkpoint.tensors if name.endswith(HEADS)}
    try:
        notes = convert_folder(checkpoint.path, path, type_name, progress, without=heads & ignored)
    except CheckpointError:
        _check_tokenizer(checkpoint)
        raise
    header = read_header(path)
    if known and heads - ignored and OUTPUT not in {tensor.name for tensor in header.tensors}:
        # Some architectures of llama.cpp take the embedding for the head whatever is stored.
        raise CheckpointError(
            f"{checkpoint.model} has an output head that differs from its embedding, which "
            f"llama.cpp's {header.architecture} cannot hold; it cannot be exported"
        )
    return path, notes


def _check_tokenizer(checkpoint: Checkpoint) -> None:
    """Raise a CheckpointError of a tokenizer at fault, of which the converter names no file."""
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.model)
    rows = checkpoint.config.get("vocab_size")
    if isinstance(rows, int):
        check_vocabulary(rows, list(tokenizer.get_vocab().values()))


def _is_known(checkpoint: Checkpoint) -> bool:
    """Whether ewq knows the names of the model's tensors; llama.cpp's converter knows more."""
    quantized = bool(checkpoint.config.get("quantization_config"))
    return checkpoint.config.get("model_type") in FAMILY_OF and not quantized


def build(
    base: Path,
    recipe: Recipe,
    out: Path,
    work: Path,
    progress: Progress,
    rounding: Callable[[Path, GgufHeader], tuple[str, ...]] | None = None,
    notes: tuple[str, ...] = (),
) -> ExportReport:
    """Quantize ``base`` by ``recipe``, read the result back and move it to ``out``."""
    source, done = read_header(base), work / "done.gguf"
    if base.parent == work and _is_converted(source, recipe):
        base.rename(done)
        report = read_back(done, source, {}, {}, notes)
    else:
        job = make_job(source, recipe, done)
        if recipe.imatrix:
            check_entries(recipe.imatrix, source)
        fallbacks = run_quantizer(job, progress).fallbacks
        if job.requantize:
            notes += (f"{base.name} was quantized before; its losses add to those of this export",)
        if rounding:
            notes += rounding(done, source)
        report = read_back(done, source, job.types, fallbacks, notes)
    if recipe.imatrix:
        # llama-imatrix collects neither embedding nor head by itself.
        stored = {t.name: t.stored for t in report.tensors if t.name not in (EMBEDDING, OUTPUT)}
        report = replace(report, notes=report.notes + effect_notes(recipe.imatrix, stored))
    with said_of(out):
        done.replace(out)
    return replace(report, path=out)


def make_job(source: GgufHeader, recipe: Recipe, out: Path) -> QuantizeJob:
    """What llama.cpp's quantizer must do to turn ``source`` into ``out``."""
    requantize = any(tensor.dtype not in CONVERTED_TYPES for tensor in source.tensors)
    if isinstance(recipe, TypeRecipe):
        job = QuantizeJob(source.path, out, recipe.name)
    else:
        # llama.cpp looks at exact types only under a recipe that quantizes, whichever it is.
        job = QuantizeJob(source.path, out, "Q8_0", exact_types(source, recipe))
    return replace(job, imatrix=recipe.imatrix, requantize=requantize)


def export_command(
    model: str | Path, out: Path, recipe: Recipe, progress: Progress = NO_PROGRESS
) -> str:
    """The same export as a shell script for llama.cpp's own programs."""
    checkpoint = open_for(model, recipe, progress)
    with tempfile.TemporaryDirectory() as name:  # a conversion has the names of tensors
        base, _ = make_base(checkpoint, recipe, Path(name), progress)
        source = read_header(base)
        job = make_job(source, recipe, out)
    if checkpoint.is_gguf:
        return as_command(job)
    if _is_converted(source, recipe):
        return _convert_command(checkpoint, out, recipe)
    first = out.with_suffix(".base.gguf")
    quantize = as_command(replace(job, source=first))
    return _convert_command(checkpoint, first, recipe) + " && \\\n" + quantize


def _converted_type(checkpoint: Checkpoint, recipe: Recipe) -> str:
    return plain_type(recipe) or base_type(checkpoint)


def _becomes_f16(name: str, checkpoint: Checkpoint, recipe: Recipe) -> bool:
    if _converted_type(checkpoint, recipe) == "F16":
        return True
    if isinstance(recipe, TypeRecipe) or recipe.plan.types:
        return False
    return recipe.types[recipe.plan.weights.get(name, Precision.RAW)] == "F16"


def _is_converted(source: GgufHeader, recipe: Recipe) -> bool:
    plain = plain_type(recipe)
    return plain is not None and {of.dtype for of in source.tensors} <= {plain, "F32"}


def _convert_command(checkpoint: Checkpoint, out: Path, recipe: Recipe) -> str:
    outtype = _converted_type(checkpoint, recipe).lower()
    words = ["python", "convert_hf_to_gguf.py", str(checkpoint.path), "--outtype", outtype]
    return shlex.join([*words, "--outfile", str(out)])
