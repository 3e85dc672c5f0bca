"""``ewq fit``: from a model and a size to a file, and how far that file is from the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ewq.checkpoint.gguf_header import read_header
from ewq.checkpoint.opening import Checkpoint
from ewq.checkpoint.tokenizer import load_tokenizer
from ewq.errors import InputError, PlanError
from ewq.files import cache_dir
from ewq.fit.plans import Fitting, Rule
from ewq.fit.prepare import calibrate, converted, open_fitting, write_importance
from ewq.fit.targets import GGUF, padded
from ewq.gguf.cache import cached_gguf
from ewq.gguf.export import export_gguf
from ewq.gguf.quantize import recipe_types
from ewq.gguf.recipe import make_recipe
from ewq.gguf.rounding import stored_bytes
from ewq.planning.plan import BITSANDBYTES, QuantizationPlan
from ewq.progress import NO_PROGRESS, Progress
from ewq.sensitivity.calibration import Calibrating, calibration_texts, refuse_evaluation_text

if TYPE_CHECKING:
    from ewq.data.texts import TextSet
    from ewq.measurement import Metric
    from ewq.model import LanguageModel
    from ewq.sensitivity.calibration import Calibration

TOKENS_PER_DOMAIN = 512
"""Of the evaluation texts, unless more are asked for."""
HEADER_SLACK = 256
"""Bytes that llama.cpp's quantizer may add to a file's header."""


@dataclass(frozen=True)
class Aim:
    """What a plan is to reach: exactly one of the fields."""

    size_bytes: int | None = None
    bpw: float | None = None
    kld: float | None = None
    like: str | None = None
    """One of llama.cpp's recipes, whose bytes are not exceeded."""

    def __post_init__(self) -> None:
        given = [v for v in (self.size_bytes, self.bpw, self.kld, self.like) if v is not None]
        if len(given) != 1:
            raise InputError("give exactly one of a size, bits per weight, a KLD and a recipe")


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
    own: Measured
    rivals: tuple[Measured, ...] = ()
    notes: tuple[str, ...] = field(default=())


def make_plan(
    fitting: Fitting, aim: Aim, granularity: str = "tensor", *, file_bytes: bool = False
) -> QuantizationPlan:
    """The plan that reaches an aim.

    Args:
        fitting: the model, costed.
        aim: what to reach.
        granularity: ``tensor``, ``kind`` or ``block``.
        file_bytes: a size is that of the whole file, header included.

    Raises:
        PlanError: it cannot be reached, or a recipe's bytes for bitsandbytes.
    """
    if aim.kld is not None:
        return fitting.below(aim.kld, {"kind": "target_kld", "target_kld": aim.kld}, granularity)
    if aim.like is not None:
        if fitting.target.name != GGUF:
            raise PlanError(f"like {aim.like} is a size of GGUF files; give a size in bytes")
        budget = recipe_bytes(fitting.checkpoint, aim.like)
        return fitting.within(budget, {"kind": "like", "like": aim.like}, granularity)
    if aim.bpw is not None:
        budget = int(aim.bpw * fitting.target.parameters / 8)
        return fitting.within(budget, {"kind": "target_bpw", "target_bpw": aim.bpw}, granularity)
    assert aim.size_bytes is not None
    header = fitting.target.header_bytes + HEADER_SLACK if file_bytes else 0
    rule: Rule = {"kind": "target_size", "target_size_bytes": aim.size_bytes}
    return fitting.within(aim.size_bytes - header, rule, granularity)


def check_recipes(names: Sequence[str | None]) -> None:
    """Make sure that llama.cpp has recipes of these names, before anything is measured.

    Raises:
        InputError: it has not.
    """
    for name in filter(None, names):
        make_recipe(name)


def recipe_bytes(checkpoint: Checkpoint, name: str) -> int:
    """Bytes of all tensors of one of llama.cpp's recipes, its fallbacks included.

    Raises:
        InputError: llama.cpp has no such recipe.
    """
    make_recipe(name)
    base = converted(checkpoint)
    chosen = recipe_types(base, name.upper())
    return sum(
        padded(stored_bytes(chosen.get(tensor.name, tensor.type_name), tensor.numel))
        for tensor in read_header(base).tensors
    )


def plan_types(
    model: str,
    aim: Aim,
    target: str | None,
    how: Calibrating,
    granularity: str,
    progress: Progress,
) -> tuple[QuantizationPlan, int]:
    """The plan of types that reaches an aim, and the model's number of parameters."""
    check_recipes([aim.like])
    fitting = open_fitting(model, target or GGUF, how, progress)
    return make_plan(fitting, aim, granularity), fitting.target.parameters


def smallest_below(
    fitting: Fitting, kld: float, plan_within: Callable[[int], QuantizationPlan]
) -> QuantizationPlan:
    """The smallest of a scorer's own plans whose expected divergence is at most ``kld``.

    Found by halving the range of sizes, to a thousandth of it, as if more bytes never cost more.

    Args:
        fitting: the model, costed.
        kld: nats per token.
        plan_within: the scorer's plan of a size in bytes.

    Raises:
        PlanError: no plan of this scorer is below.
    """
    low, high = fitting.range_bytes()
    best = plan_within(high)
    if fitting.expected_of(best).value > kld:
        raise PlanError(f"no plan of scorer {best.scorer} is below {kld:g} nats per token")
    step = max(1, (high - low) // 1000)
    while high - low > step:
        middle = (low + high) // 2
        try:
            found = plan_within(middle)
        except PlanError:
            low = middle
            continue
        if fitting.expected_of(found).value <= kld:
            best, high = found, middle
        else:
            low = middle
    return replace(best, rule={"kind": "target_kld", "target_kld": kld})


def fit(
    model: str | Path,
    out: Path,
    aim: Aim,
    *,
    engine: str = GGUF,
    how: Calibrating = Calibrating(),  # noqa: B008 (frozen)
    granularity: str = "tensor",
    versus: Sequence[str] = (),
    texts: TextSet | None = None,
    tokens_per_domain: int = TOKENS_PER_DOMAIN,
    gptq: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Fitted:
    """Make the best file of a size, or the smallest of a divergence, and measure it.

    Args:
        model: hub id or model folder.
        out: a ``.gguf`` file, or for bitsandbytes a new folder.
        aim: size, bits per weight, divergence or recipe.
        engine: ``gguf`` or ``bitsandbytes``.
        how: calibration text, seed and device.
        granularity: ``tensor``, ``kind`` or ``block``.
        versus: recipes of llama.cpp to measure beside, with the same importance matrix.
        texts: to measure on; those that ewq carries unless given.
        tokens_per_domain: most tokens measured of each domain.
        gptq: round so that errors cancel on the calibration text (GGUF only); divergence is
            expected as if not.
        progress: where to report.

    Raises:
        InputError: calibration and evaluation text are the same, or too little memory.
        EwqError: the size cannot be reached, or something failed on the way.
    """
    from ewq.checkpoint.embedded import fixture_path
    from ewq.data.texts import load_texts

    evaluation = texts or load_texts(fixture_path("texts"))
    refuse_evaluation_text(calibration_texts(how.source), evaluation)
    check_recipes([*versus, aim.like])
    if engine == BITSANDBYTES and (versus or aim.like):
        raise InputError("--versus and --like name recipes of llama.cpp, not of bitsandbytes")
    fitting = open_fitting(model, engine, how, progress)
    tokenizer = load_tokenizer(fitting.checkpoint.path, fitting.checkpoint.model)
    plan = make_plan(fitting, aim, granularity, file_bytes=engine == GGUF)
    measuring = _Measuring(evaluation, tokenizer, tokens_per_domain, how.device, progress)
    if engine == BITSANDBYTES:
        own, rivals = _bitsandbytes(fitting, plan, Path(out), measuring)
    else:
        text = calibrate(fitting.checkpoint, how) if gptq else None
        own, rivals = _gguf(fitting, plan, Path(out), versus, measuring, text)
    return Fitted(Path(out), plan, own, rivals, fitting.sensitivity.notes())


def _gguf(
    fitting: Fitting,
    plan: QuantizationPlan,
    out: Path,
    versus: Sequence[str],
    on: _Measuring,
    calibration: Calibration | None,
) -> tuple[Measured, tuple[Measured, ...]]:
    from ewq.backends.llama_cpp import load_llama_cpp

    checkpoint, base = fitting.checkpoint, converted(fitting.checkpoint)
    imatrix = importance_of(fitting, base)
    recipe = make_recipe(plan=plan, imatrix=imatrix)
    export_gguf(checkpoint.path, out, recipe, calibration=calibration, progress=on.progress)
    files = {out.name: out} | {
        f"{name.upper()} with the same importance matrix": cached_gguf(
            checkpoint.path,
            make_recipe(name, imatrix=imatrix),
            cache_dir("gguf"),
            progress=on.progress,
        )
        for name in versus
    }

    def load(path: Path) -> LanguageModel:
        return load_llama_cpp(path, on.tokenizer, device=on.device)

    with on.against(lambda: load(base)) as compare:
        found = [
            Measured(label, path.stat().st_size, compare(load(path)))
            for label, path in files.items()
        ]
    return found[0], tuple(found[1:])


def importance_of(fitting: Fitting, base: Path) -> Path:
    """The importance matrix of a model's sensitivity, kept by content."""
    from ewq.files import content_key

    sensitivity = fitting.sensitivity
    key = content_key(sensitivity.fingerprint, sensitivity.calibration, base.name)
    path = cache_dir("imatrix", f"{key[:32]}.gguf")
    if not path.is_file():
        write_importance(fitting.checkpoint, sensitivity, base, path)
    return path


def _bitsandbytes(
    fitting: Fitting, plan: QuantizationPlan, out: Path, on: _Measuring
) -> tuple[Measured, tuple[Measured, ...]]:
    from ewq.backends.transformers import load_transformers
    from ewq.quantizer import EwqConfig
    from ewq.quantizer.folder import quantize_to_folder

    path = fitting.checkpoint.path
    made = quantize_to_folder(path, EwqConfig(plan), out, device=on.device, progress=on.progress)
    dtype = "float32" if on.device == "cpu" else "bfloat16"
    options: dict[str, Any] = {"tokenizer": on.tokenizer, "device": on.device, "dtype": dtype}
    with on.against(lambda: load_transformers(path, **options)) as compare:
        metrics = compare(load_transformers(out, **options))
    return Measured(out.name, made.weights_bytes, metrics), ()


@dataclass(frozen=True)
class _Measuring:
    """On which texts, and with what, quantized models are compared with the unquantized one."""

    texts: TextSet
    tokenizer: Any
    tokens_per_domain: int
    device: str
    progress: Progress

    @contextmanager
    def against(
        self, load: Callable[[], LanguageModel]
    ) -> Iterator[Callable[[LanguageModel], Mapping[str, Metric]]]:
        """Record the unquantized model's distributions; yields what compares another with them."""
        from ewq.tasks.divergence import record_reference, run

        options: dict[str, Any] = {
            "max_tokens_per_domain": self.tokens_per_domain,
            "progress": self.progress,
        }
        folder = cache_dir("references")
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            model = load()
            try:
                reference = record_reference(model, self.texts, Path(scratch), **options)
            finally:
                model.close()

            def compare(other: LanguageModel) -> Mapping[str, Metric]:
                try:
                    return run(other, self.texts, reference, **options).metrics
                finally:
                    other.close()

            try:
                yield compare
            finally:
                reference.close()
