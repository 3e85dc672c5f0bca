"""The table of tasks: everything that is known of a task without running it.

A task's code is the module of its name in this package, imported when the task runs. It has
``measure(inputs) -> TaskResult``, or ``prepare(inputs) -> Work`` where one measurement takes
several timed rounds; ``pair(result, reference) -> dict[str, Metric]`` where results are paired.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING

from ewq.errors import InputError, MeasurementError
from ewq.measurement import Items, Metric, TaskResult

if TYPE_CHECKING:
    from types import ModuleType

    from ewq.data.distributions import Reference
    from ewq.data.lm_eval import Documents
    from ewq.data.mmlu import MmluData
    from ewq.data.texts import TextSet
    from ewq.data.windows import Definition, Window
    from ewq.instruments.load_watch import LoadReading
    from ewq.model import LanguageModel
    from ewq.progress import Progress
    from ewq.tasks.tiers import Tier


OF_FAMILY = "-"
"""Between the name of a family and that of its member: ``lm_eval-hellaswag``."""
DIVERGENCE_AT, CHAT = "divergence_at", "chat"
"""A family whose members are depths and this one."""


class Data(StrEnum):
    """What a task reads; loaded before the clock starts."""

    NONE = ""
    QUESTIONS = "questions"
    TEXTS = "texts"
    DOCUMENTS = "documents"
    """Of one member of the family of lm-eval's tasks."""


class Pairing(StrEnum):
    """How a task compares with the reference variant."""

    NONE = "none"
    RESULTS = "results"
    """The module's ``pair`` compares two results item by item."""
    DISTRIBUTIONS = "distributions"
    """The task itself reads the reference's recorded distributions."""


class Kind(StrEnum):
    """What a figure comes from, and so what can make it doubtful."""

    QUALITY = "quality"
    CHOICE = "choice"
    """A share of right answers, or its change: it says nothing at chance level."""
    CLOCK = "clock"
    COUNT = "count"


@dataclass(frozen=True)
class Tolerance:
    """How much worse than its baseline a metric may get before that is a regression."""

    relative: float | None = None
    absolute: float | None = None
    """In the metric's unit; the larger of the two counts where both are given."""
    alpha: float = 0.05

    def allowed(self, before: float) -> float:
        """The tolerated change from a baseline of ``before``, in the metric's unit."""
        return max((self.relative or 0.0) * abs(before), self.absolute or 0.0)

    def __str__(self) -> str:
        parts = (self.relative, "{:.2%}"), (self.absolute, "{:g}")
        return " or ".join(form.format(size) for size, form in parts if size is not None)


@dataclass(frozen=True)
class ItemMean:
    """How a metric follows from items, so that two runs can be compared item by item."""

    column: str
    size: str | None = None
    """The column to divide by. ``None``: the first holds letters, upper case where right."""
    slope: Callable[[float], float] = lambda mean: 1.0
    """Change of the metric per change of the mean, at a mean."""


@dataclass(frozen=True)
class Figure:
    """Metrics that share a name pattern, and what may be said about them."""

    key: str
    """A name, or a regular expression that whole names match."""
    unit: str
    """Empty where a measurement itself says unit and direction, as lm-eval's tasks do."""
    higher_is_better: bool | None
    kind: Kind = Kind.QUALITY
    paired: bool = False
    """It compares with the reference variant, which therefore has none itself."""
    equal: float = 0.0
    """What a paired figure is for two equal variants."""
    reference: tuple[str, Callable[[float, float], float]] | None = None
    """The metric a paired figure is made of, and how the reference's value follows from both."""
    alternative: str = ""
    """The metric that devices of another kind report instead."""
    mean: ItemMean | None = None
    tolerance: Tolerance | None = None
    """Against a baseline, where a thresholds file says nothing; ``None``: not gated."""
    cpu_tolerance: Tolerance | None = None


@dataclass(frozen=True)
class Inputs:
    """What the harness gives a task; what is called is loaded on first use."""

    model: Callable[[], LanguageModel]
    """The variant's model. Do not keep it: the handle behind it closes it."""
    load_reading: Callable[[], LoadReading]
    questions: Callable[[], MmluData]
    texts: Callable[[], TextSet]
    definition: Callable[[], Definition]
    distributions: Callable[[str], Reference]
    """The reference's, of a task."""
    window_nll: dict[Window, float]
    """Of the windows that a task has run on this model, in nats: perplexity needs no more."""
    sizes: Tier
    progress: Progress
    documents: Callable[[str], Documents]
    task: str = ""
    """The task that runs, under its whole name."""


@dataclass(frozen=True)
class Work:
    """One task on one variant, ready to be timed."""

    once: Callable[[], object]
    """One timed round. It ends only when the device has finished."""
    result: Callable[[], TaskResult]
    rounds: int = 1
    warmup_rounds: int = 0


@dataclass(frozen=True)
class Task:
    """What is known of one task."""

    name: str
    figures: tuple[Figure, ...]
    """The first whose key matches a metric's name describes it."""
    data: Data = Data.NONE
    pairing: Pairing = Pairing.NONE
    item_names: tuple[str, ...] = ()
    """Columns that say which item a row is: equal in two runs that can be compared by items."""
    item_values: tuple[str, ...] = ()
    in_rounds: bool = False
    same_session: bool = False
    """The reference must be measured in the same session: clocks drift between runs."""
    on_random_weights: bool = False
    probe: str = ""
    """The task at which the reference must do better than chance for this one to say something."""
    family: bool = False
    """Its members are tasks, ``NAME-MEMBER``, that options ask for."""
    first: bool = False
    """It is measured before a variant's other tasks, which leave freed memory behind."""

    @property
    def is_clocked(self) -> bool:
        """Whether it measures times, or memory with them, and so needs the machine to itself."""
        return any(figure.kind is Kind.CLOCK for figure in self.figures)

    @property
    def module(self) -> ModuleType:
        """The task's code."""
        return import_module(f"ewq.tasks.{self.name.partition(OF_FAMILY)[0]}")

    def prepare(self, inputs: Inputs) -> Work:
        """Load the data and the model, so that only the task's own work is timed."""
        inputs = replace(inputs, task=self.name)
        if self.data in (Data.QUESTIONS, Data.TEXTS):
            _ = inputs.questions() if self.data is Data.QUESTIONS else inputs.texts()
        inputs.model()
        if self.in_rounds:
            work: Work = self.module.prepare(inputs)
            return work
        measure, outcome = self.module.measure, list[TaskResult]()
        return Work(lambda: outcome.append(measure(inputs)), lambda: outcome[-1])

    def pair(self, result: TaskResult, reference: TaskResult | None) -> Mapping[str, Metric]:
        """Metrics of a result against the reference's, where the task pairs results."""
        if reference is None or self.pairing is not Pairing.RESULTS:
            return {}
        metrics: Mapping[str, Metric] = self.module.pair(result, reference)
        return metrics

    def figure(self, metric: str) -> Figure | None:
        """What is known of a metric; ``None`` where the task does not report it."""
        return next((each for each in self.figures if re.fullmatch(each.key, metric)), None)

    def check(self, metrics: Mapping[str, Metric], items: Items) -> None:
        """Raise a MeasurementError of a metric or column that is not as the table says."""
        columns, promised = sorted(items.columns), sorted({*self.item_names, *self.item_values})
        if columns != promised:
            raise MeasurementError(f"{self.name}: items of {columns}, promised {promised}")
        for name, metric in metrics.items():
            known = self.figure(name)
            if known is None:
                raise MeasurementError(f"{self.name} reports {name!r}, which its table entry lacks")
            found = (metric.unit, metric.higher_is_better)
            wanted = (known.unit, known.higher_is_better)
            if known.unit and found != wanted:
                raise MeasurementError(f"{self.name}: {name!r} is {found}, not {wanted}")


def known_task(name: str) -> Task | None:
    """The task of a name, members of families among them; ``None`` where there is none."""
    family, of, member = name.partition(OF_FAMILY)
    if of and member and family in FAMILIES:
        return replace(TASKS[family], name=name)
    return TASKS.get(name)


def find_task(name: str) -> Task:
    """The task of a name; an InputError where there is none."""
    if (task := known_task(name)) is None:
        raise InputError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    return task


def figure_of(task: str, metric: str) -> Figure | None:
    """What is known of a metric of a task; ``None`` where either is unknown."""
    return known.figure(metric) if (known := known_task(task)) else None


_SPREAD = r"(_b\d+)?(_p10|_p90)?"
"""Batch size above 1, then percentile."""
_RESIDENT_BYTES = 64e6
"""Allocators and library caches move a process's resident memory by tens of megabytes."""
_TENTH, _HALF = Tolerance(0.10), Tolerance(0.5)
_PER_BYTE = ItemMean("nll", "bytes", lambda _: 1 / math.log(2))

_ANSWERS = (
    Figure("accuracy", "fraction", True, Kind.CHOICE,
           mean=ItemMean("answer"), tolerance=Tolerance(absolute=0.005)),
    Figure(r"accuracy_macro|accuracy/.+", "fraction", True, Kind.CHOICE),
    Figure(r"answered_[A-D]", "fraction", None),
    Figure("accuracy_delta", "fraction", True, Kind.CHOICE, paired=True,
           reference=("accuracy", lambda now, delta: now - delta)),
    Figure("flips", "fraction", False, paired=True),
    Figure("mcnemar_p", "p", None, Kind.CHOICE, paired=True),
)  # fmt: skip

_PERPLEXITY = (
    Figure("perplexity", "ratio", False,
           mean=ItemMean("nll", "tokens", math.exp), tolerance=Tolerance(0.001)),
    Figure(r"perplexity/(?s:.+)", "ratio", False),
    Figure("bits_per_byte", "bits", False, mean=_PER_BYTE, tolerance=Tolerance(0.001)),
    Figure(r"bits_per_byte/(?s:.+)", "bits", False),
    Figure("ln_ppl_ratio", "nats", False, paired=True,
           reference=("perplexity", lambda now, ratio: now / math.exp(ratio))),
    Figure(r"ln_ppl_ratio/(?s:.+)", "nats", False, paired=True),
)  # fmt: skip

_DIVERGENCE = (
    Figure("kld_mean", "nats", False, paired=True,
           mean=ItemMean("kld", "tokens"), tolerance=Tolerance(0.01, 1e-5)),
    Figure("kld_p99", "nats", False, paired=True, tolerance=Tolerance(0.10, 1e-4)),
    Figure(r"kld_p\d+", "nats", False, paired=True),
    Figure("top1_agreement", "fraction", True, paired=True, equal=1.0,
           mean=ItemMean("same_top", "tokens"), tolerance=Tolerance(absolute=0.005)),
    Figure(r"top1_agreement/.+", "fraction", True, paired=True, equal=1.0),
    Figure("rms_delta_p", "fraction", False, paired=True, tolerance=Tolerance(0.05, 1e-4)),
    Figure("ln_ppl_ratio", "nats", False, paired=True),
)  # fmt: skip

_THROUGHPUT = (
    *(Figure(f"{phase}_tokens_per_s", "tokens/s", True, Kind.CLOCK,
             tolerance=_TENTH, cpu_tolerance=_HALF) for phase in ("prefill", "decode")),
    Figure("ttft_s", "s", False, Kind.CLOCK, tolerance=_TENTH, cpu_tolerance=Tolerance(1.0)),
    Figure(rf"(prefill|decode)_tokens_per_s{_SPREAD}", "tokens/s", True, Kind.CLOCK),
    Figure(rf"ttft_s{_SPREAD}", "s", False, Kind.CLOCK),
    Figure("decode_ratio", "ratio", True, Kind.CLOCK, paired=True, equal=1.0,
           reference=("decode_tokens_per_s", lambda now, ratio: now / ratio if ratio else 0.0),
           tolerance=_TENTH, cpu_tolerance=_HALF),
    Figure(r"(prefill|decode)_ratio(_b\d+)?", "ratio", True, Kind.CLOCK, paired=True, equal=1.0),
)  # fmt: skip

_MEMORY = (
    Figure("weights_bytes", "bytes", False, Kind.COUNT, tolerance=Tolerance(0.005)),
    Figure("bits_per_weight", "bits", False, Kind.COUNT, tolerance=Tolerance(0.005)),
    Figure("vram_peak_bytes", "bytes", False, Kind.COUNT,
           alternative="ram_peak_bytes", tolerance=Tolerance(0.05)),
    Figure("ram_peak_bytes", "bytes", False, Kind.COUNT,
           alternative="vram_peak_bytes", tolerance=Tolerance(0.05, _RESIDENT_BYTES)),
    Figure("load_peak_ram_bytes", "bytes", False, Kind.COUNT,
           tolerance=Tolerance(0.10, _RESIDENT_BYTES)),
    Figure("load_s", "s", False, Kind.CLOCK),
    Figure("cache_bytes_per_1000_tokens", "bytes", False, Kind.COUNT, tolerance=Tolerance(0.005)),
)  # fmt: skip

_SAMPLES = (
    Figure("samples_token_agreement", "fraction", True, paired=True, equal=1.0),
    Figure("samples_common_tokens", "count", True, paired=True),
)

_NOISE_FLOOR = (
    Figure(r"flips/(repeat|regrouped)", "fraction", False),
    Figure(r"logprob_change/(repeat|regrouped)", "nats", False),
)

_LM_EVAL = (
    Figure("delta/.+", "", None, paired=True),
    Figure("flips/.+", "fraction", False, paired=True),
    Figure("mcnemar_p/.+", "p", None, paired=True),
    Figure(".+", "", None, tolerance=Tolerance(0.01)),
)  # fmt: skip

_DIVERGED = Task(
    "divergence", _DIVERGENCE, Data.TEXTS, Pairing.DISTRIBUTIONS,
    item_names=("domain", "tokens", "document"),
    item_values=("kld", "same_top", "delta_p_squared", "nll_change"),
)  # fmt: skip

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            "mmlu", _ANSWERS, Data.QUESTIONS, Pairing.RESULTS, item_values=("answer",),
            probe="mmlu",
        ),
        Task("mmlu_cloze", _ANSWERS, Data.QUESTIONS, Pairing.RESULTS, item_values=("answer",)),
        Task(
            "perplexity", _PERPLEXITY, Data.TEXTS, Pairing.RESULTS,
            item_names=("domain", "tokens", "bytes", "document"), item_values=("nll",),
        ),
        _DIVERGED,
        replace(_DIVERGED, name=DIVERGENCE_AT, family=True),
        Task(
            "throughput", _THROUGHPUT, pairing=Pairing.RESULTS,
            item_names=("batch_size",), item_values=("first_token_s", "decode_s"),
            in_rounds=True, same_session=True, on_random_weights=True,
        ),
        Task("memory", _MEMORY, on_random_weights=True, first=True),
        Task("noise_floor", _NOISE_FLOOR, Data.QUESTIONS, item_values=("answer",), probe="mmlu"),
        Task(
            "samples", _SAMPLES, pairing=Pairing.RESULTS,
            item_names=("prompt",), item_values=("tokens",),
        ),
        Task(
            "lm_eval", _LM_EVAL, Data.DOCUMENTS, Pairing.RESULTS,
            item_names=("metric", "document", "cluster"), item_values=("value",), family=True,
        ),
    )
}  # fmt: skip
FAMILIES = frozenset(name for name, task in TASKS.items() if task.family)
"""Tasks of which only members are measured."""
