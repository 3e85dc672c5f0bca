"""The thresholds file: what a variant may lose, and how much a run may differ from its baseline.

``[default.TASK]`` and ``[variant."ID".TASK]`` hold limits on one run's own metrics,
``[tolerance.TASK]`` and ``[cpu.tolerance.TASK]`` how much worse than the baseline they may get.
"""

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from ewq.codec import CodecError, decode
from ewq.errors import InputError
from ewq.tasks.table import OF_FAMILY, TASKS, Tolerance, figure_of, known_task
from ewq.variants import HF, REFERENCE, find_variant, is_plan_name

Rule = TypeVar("Rule", "Limit", Tolerance)
ByTask = Mapping[str, Mapping[str, Rule]]
"""Task -> metric -> what the file says of it."""


class Test(StrEnum):
    """The statistical test that decides whether a limit is broken."""

    __test__ = False  # not a test class, whatever pytest's name patterns say

    BOUND = "bound"
    NONINFERIORITY = "noninferiority"
    """One-sided: is the value shown to be on the right side of the limit, error included?"""
    MCNEMAR = "mcnemar"
    """Accuracy only: beyond the limit, and the flips are too lopsided for chance."""


@dataclass(frozen=True)
class Limit:
    """The range a metric must stay in, in the metric's own unit."""

    min: float | None = None
    max: float | None = None
    test: Test = Test.BOUND
    alpha: float = 0.05

    def __str__(self) -> str:
        parts = (("min", self.min), ("max", self.max))
        return ", ".join(f"{name} {value:g}" for name, value in parts if value is not None)


DEFAULT_TOLERANCES: ByTask[Tolerance] = {
    name: {each.key: each.tolerance for each in task.figures if each.tolerance}
    for name, task in TASKS.items()
}
"""What counts where the thresholds file says nothing; the file overrides metric by metric."""
CPU_TOLERANCES: ByTask[Tolerance] = {
    name: {each.key: each.cpu_tolerance for each in task.figures if each.cpu_tolerance}
    for name, task in TASKS.items()
}
"""The same on a CPU; calibrate your machine for less (``tools/calibrate.py``)."""


@dataclass(frozen=True)
class OnCpu:
    """What counts on a CPU before the rest."""

    tolerance: ByTask[Tolerance] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    """The tables of a thresholds file."""

    default: ByTask[Limit] = field(default_factory=dict)
    variant: Mapping[str, ByTask[Limit]] = field(default_factory=dict)
    tolerance: ByTask[Tolerance] = field(default_factory=dict)
    cpu: OnCpu = OnCpu()


@dataclass(frozen=True)
class Thresholds(File):
    """A thresholds file, read and checked; without one, no limits and default tolerances."""

    source: str = "built-in tolerances"

    def for_(self, variant: str, task: str) -> dict[str, Limit]:
        """Metric -> limit, the variant's own before the default; none on what pairs a reference."""
        own = _of(self.variant.get(variant, {}), task)
        return {
            metric: limit
            for metric, limit in {**_of(self.default, task), **own}.items()
            if variant != REFERENCE or not ((known := figure_of(task, metric)) and known.paired)
        }

    def tolerances_for(self, task: str, device: str) -> dict[str, Tolerance]:
        """Metric -> tolerance of one task on a device, built-in values where the file has none."""
        layers = [DEFAULT_TOLERANCES, self.tolerance]
        if device == "cpu":
            layers = [DEFAULT_TOLERANCES, CPU_TOLERANCES, self.tolerance, self.cpu.tolerance]
        return {metric: rule for layer in layers for metric, rule in _of(layer, task).items()}


def _of(table: ByTask[Rule], task: str) -> dict[str, Rule]:
    """What a table says of a task, before it that of its family."""
    return {**table.get(task.partition(OF_FAMILY)[0], {}), **table.get(task, {})}


BUILT_IN = Thresholds()


def load_thresholds(path: Path, variants: Collection[str]) -> Thresholds:
    """Read a thresholds file; ``variants`` are ids that count as known beside the variant table's.

    An InputError, which names the place, for anything unreadable, unknown or out of range.
    """
    try:
        found = decode(File, tomllib.loads(path.read_text(encoding="utf-8")))
        _check(found, variants)
    except OSError as error:
        raise InputError(f"cannot read thresholds {path}: {error.strerror}") from error
    except (ValueError, InputError) as error:
        raise InputError(f"thresholds {path}, {error}") from error
    return Thresholds(**vars(found), source=str(path))


def _check(file: File, variants: Collection[str]) -> None:
    """Raise a CodecError or InputError of an unknown name, or a rule without sense."""
    for variant in file.variant:
        if not (variant in variants or is_plan_name(variant) or variant.startswith(HF)):
            find_variant(variant)
    limits = {"default": file.default}
    limits |= {f"variant.{name!r}": own for name, own in file.variant.items()}
    tolerances = {"tolerance": file.tolerance, "cpu.tolerance": file.cpu.tolerance}
    tables: dict[str, ByTask[Limit] | ByTask[Tolerance]] = {**limits, **tolerances}
    for place, table in tables.items():
        for task, rules in table.items():
            if known_task(task) is None:
                raise CodecError(f"{place}.{task}: unknown; known: {', '.join(sorted(TASKS))}")
            for metric, rule in rules.items():
                if problem := _problem(task, metric, rule):
                    raise CodecError(f"{place}.{task}.{metric}: {problem}")


def _problem(task: str, metric: str, rule: Limit | Tolerance) -> str:
    """What is wrong with a rule; empty where nothing is."""
    if figure_of(task, metric) is None:
        return f"unknown metric of task {task!r}"
    if not 0 < rule.alpha < 1:
        return f"alpha must lie between 0 and 1, is {rule.alpha:g}"
    if isinstance(rule, Tolerance):
        sizes = [size for size in (rule.relative, rule.absolute) if size is not None]
        negative = min(sizes, default=0) < 0
        return "must not be negative" * negative if sizes else "needs relative or absolute"
    if rule.min is None and rule.max is None:
        return "needs min or max"
    if rule.min is not None and rule.max is not None and rule.min > rule.max:
        return f"min {rule.min:g} is above max {rule.max:g}"
    pairs = rule.max is None and metric.startswith(("accuracy_delta", "delta/"))
    if rule.test is Test.MCNEMAR and not pairs:
        return "test mcnemar applies only to a min of accuracy_delta, or delta/METRIC of lm-eval"
    return ""
