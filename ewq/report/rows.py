"""A stored run as reports see it: figures with their errors, a row for each variant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ewq import variants
from ewq.errors import InputError
from ewq.gating.change import doubt_about
from ewq.gating.gates import overall
from ewq.measurement import DoubtKind, Metric
from ewq.record import Record, Verdict
from ewq.stats import half_width
from ewq.storage.runs import Run
from ewq.tasks.table import OF_FAMILY, figure_of

MISSING = "–"
LM_EVAL = f"lm_eval{OF_FAMILY}"
MMLU_TASKS = {"mmlu": "MMLU", "mmlu_cloze": "MMLU (cloze)"}


@dataclass(frozen=True)
class Estimate:
    """A value in the unit it is shown in, and how sure it is."""

    value: float
    stderr: float | None = None
    freedom: int | None = None

    @classmethod
    def of(cls, metric: Metric, scale: float = 1.0) -> Estimate:
        """A metric times ``scale``."""
        stderr = None if metric.stderr is None else scale * metric.stderr
        return cls(scale * metric.value, stderr, metric.freedom)

    @classmethod
    def percent_change(cls, log_ratio: Metric) -> Estimate:
        """The logarithm of a ratio as a change in percent."""
        ratio = math.exp(log_ratio.value)
        stderr = None if log_ratio.stderr is None else 100 * ratio * log_ratio.stderr
        return cls(100 * math.expm1(log_ratio.value), stderr, log_ratio.freedom)

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval; zero where no error is known."""
        return half_width(self.stderr, self.freedom) if self.stderr else 0.0

    @property
    def differs_from_zero(self) -> bool:
        """Whether the 95 % interval excludes zero; never where no error is known."""
        return self.stderr is not None and abs(self.value) > self.half_width

    def text(self, digits: int | None = None, *, signed: bool = False) -> str:
        """``12.34 ±0.05``; by default two digits of the error, but at most five decimals."""
        if digits is None:
            scale = self.stderr or abs(self.value)
            first = math.floor(math.log10(scale)) if scale else 0
            digits = min(5, max(0, (1 if self.stderr else 2) - first))
        value = round(self.value, digits) + 0.0  # no "-0.00"
        text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
        return f"{text} ±{self.stderr:.{digits}f}" if self.stderr is not None else text


def figure_text(
    estimate: Estimate | None, digits: int | None = None, *, signed: bool = False
) -> str:
    """:meth:`Estimate.text`, or a dash where nothing was measured."""
    return MISSING if estimate is None else estimate.text(digits, signed=signed)


def decimals_for(value: float) -> int:
    """Decimal places that leave three digits."""
    return max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0


def gigabytes(size_bytes: float) -> str:
    """A size in GB with three digits, without the unit."""
    return f"{size_bytes / 1e9:.{decimals_for(size_bytes / 1e9)}f}"


def metric_title(task: str, name: str) -> str:
    """A metric's name, with its task where it does not begin with that."""
    return name if name.startswith(task) else f"{task} {name}"


@dataclass(frozen=True)
class VariantKind:
    """A sort of variant; ``draw.js`` knows its colour and mark by the label."""

    label: str
    planned: bool = False
    control: bool = False


UNQUANTIZED = VariantKind("16 bits, not quantized")
PLANNED = VariantKind("EWQ plan, bitsandbytes", planned=True)
UNIFORM = VariantKind("uniform control, bitsandbytes", control=True)
GGUF_PLANNED = VariantKind("EWQ plan, GGUF", planned=True)
GGUF_UNIFORM = VariantKind("uniform control, GGUF preset", control=True)
FITTED = VariantKind("fitted plan, bitsandbytes", planned=True)
GGUF_FITTED = VariantKind("fitted plan, GGUF", planned=True)
FOLDER = VariantKind("folder, as transformers loads it")
OTHER = VariantKind("other")


def variant_kind(variant: str) -> VariantKind:
    """The kind of a stored variant; names this version does not know are ``OTHER``."""
    native = variants.engine_of(variant) == variants.LLAMA_CPP
    if variants.KV in variant:  # Neither plan nor control: its losses are those of two choices.
        return OTHER
    if variants.is_plan_name(variant):
        return GGUF_PLANNED if native else PLANNED
    if variants.is_fit_name(variant):
        return GGUF_FITTED if native else FITTED
    if variant.startswith(variants.HF):
        return FOLDER
    if variant == "gguf-f16":
        return UNQUANTIZED
    kinds = {variants.Raw: UNQUANTIZED, variants.Uniform: UNIFORM, variants.GgufType: GGUF_UNIFORM}
    return kinds.get(type(variants.FIXED.get(variant)), OTHER)


@dataclass(frozen=True)
class VariantRow:
    """All records of one variant, by task; figures that were not measured are ``None``."""

    variant: str
    records: Mapping[str, Record]

    @property
    def kind(self) -> VariantKind:
        """See :func:`variant_kind`."""
        return variant_kind(self.variant)

    def metric(self, task: str, name: str) -> Metric | None:
        """One figure as it was stored."""
        record = self.records.get(task)
        return record.metrics.get(name) if record else None

    def value(self, task: str, name: str) -> float | None:
        """One figure without its error."""
        metric = self.metric(task, name)
        return None if metric is None else metric.value

    def estimate(self, task: str, name: str, scale: float = 1.0) -> Estimate | None:
        """One figure with its error, times ``scale``."""
        metric = self.metric(task, name)
        return Estimate.of(metric, scale) if metric else None

    def perplexity_change(self) -> Estimate | None:
        """Change from FP16 in percent, paired on the same tokens."""
        metric = self.metric("perplexity", "ln_ppl_ratio")
        return Estimate.percent_change(metric) if metric else None

    @property
    def verdict(self) -> Verdict:
        """The gravest verdict of all tasks."""
        return overall(record.verdict for record in self.records.values())

    def at_chance(self, task: str) -> bool:
        """Whether the task's accuracy cannot be told from guessing."""
        record = self.records.get(task)
        doubts = record.doubts if record else ()
        return any(doubt.kind is DoubtKind.CHANCE for doubt in doubts)

    @property
    def clock_doubt(self) -> str:
        """Why its speed is not to be trusted; empty where nothing was noticed."""
        record = self.records.get("throughput")
        doubt = doubt_about("decode_tokens_per_s", record) if record else None
        return doubt.text if doubt else ""

    @property
    def weights_bytes(self) -> float | None:
        """Size of the variant's weights, scales included."""
        return self.value("memory", "weights_bytes")

    @property
    def bits(self) -> str:
        """Bits per weight, and the method that a folder's own config names."""
        told = self.records["memory"].settings.get("method") if "memory" in self.records else None
        value = self.value("memory", "bits_per_weight")
        text = MISSING if value is None else f"{value:.2f}"
        return f"{text} ({told})" if told else text

    @property
    def memory_bytes(self) -> float | None:
        """Peak VRAM where there is a GPU, else the size of the weights."""
        peak = self.value("memory", "vram_peak_bytes")
        return self.weights_bytes if peak is None else peak

    @property
    def plan(self) -> Mapping[str, Any] | None:
        """The stored summary of the plan that made it; ``None`` for uniform and other variants."""
        record = self.records.get("memory")
        plan: Any = record.side.get("plan") if record else None
        made = isinstance(plan, Mapping) and (plan.get("rule") or {}).get("kind") != "uniform"
        return plan if made else None


def variant_rows(records: Iterable[Record]) -> list[VariantRow]:
    """Rows in the order of tables, whatever order a run measured or resumed its variants in."""
    grouped: dict[str, dict[str, Record]] = {}
    for record in records:
        grouped.setdefault(record.variant, {})[record.task] = record
    names = sorted(grouped, key=variants.table_place)
    return [VariantRow(name, grouped[name]) for name in names]


def lm_eval_figures(rows: Sequence[VariantRow]) -> list[tuple[str, str]]:
    """Task and metric of all that was measured with lm-eval's tasks, without what pairs it."""
    records = [record for row in rows for record in row.records.values()]
    named = ((r.task, name) for r in records if r.task.startswith(LM_EVAL) for name in r.metrics)
    return [
        key for key in dict.fromkeys(named) if not ((known := figure_of(*key)) and known.paired)
    ]


def reference_row(rows: Sequence[VariantRow]) -> VariantRow | None:
    """The row that paired figures refer to, if it is among them."""
    return next((row for row in rows if row.variant == variants.REFERENCE), None)


@dataclass(frozen=True)
class ReportedRun:
    """The newest of the runs given, and all of them in order of time."""

    run: Run
    history: tuple[Run, ...]

    @cached_property
    def rows(self) -> list[VariantRow]:
        """The run's variants."""
        return variant_rows(self.run.records.values())

    @property
    def first(self) -> Record:
        """Any record: those of a run share model, fingerprint and tier."""
        return next(iter(self.run.records.values()))

    @property
    def records(self) -> list[Record]:
        """All records, variants in the order of tables."""
        return [record for row in self.rows for record in row.records.values()]


def reported_run(runs: Sequence[Run]) -> ReportedRun:
    """Runs, given in any order; an InputError where the newest holds nothing that ewq measured."""
    ordered = tuple(sorted(runs, key=lambda run: (run.datetime, run.path.name)))
    newest = ordered[-1]
    if not newest.records:
        raise InputError(f"run {newest.path} holds no ewq record: nothing to report")
    return ReportedRun(newest, ordered)


def run_data(run: Run) -> dict[str, Any]:
    """What a script may want to know of a run."""
    return {
        "name": run.name,
        "path": str(run.path),
        "commit": run.commit,
        "dirty": run.dirty,
        "datetime": run.datetime.isoformat(),
        "complete": run.complete,
        "missing": [list(key) for key in run.lost],
    }
