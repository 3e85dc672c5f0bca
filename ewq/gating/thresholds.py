"""The thresholds file: what a variant may lose, and how much a run may differ from its baseline.

``[default.TASK]`` and ``[variant."ID".TASK]`` hold limits on one run's own metrics,
``[tolerance.TASK]`` and ``[cpu.tolerance.TASK]`` how much worse than the baseline they may get.
"""

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from ewq.codec import CodecError, decode
from ewq.errors import InputError
from ewq.tasks.table import TASKS, Tolerance, figure_of
from ewq.variants import REFERENCE, find_variant, is_plan_name

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
class Thresholds:
    """A thresholds file, read and checked."""

    source: str
    default: ByTask[Limit] = field(default_factory=dict)
    variants: Mapping[str, ByTask[Limit]] = field(default_factory=dict)
    tolerances: ByTask[Tolerance] = field(default_factory=dict)
    cpu_tolerances: ByTask[Tolerance] = field(default_factory=dict)
    """What counts on a CPU before :attr:`tolerances`."""

    def for_(self, variant: str, task: str) -> dict[str, Limit]:
        """Metric -> limit, the variant's own before the default; none on what pairs a reference."""
        own = self.variants.get(variant, {}).get(task, {})
        return {
            metric: limit
            for metric, limit in {**self.default.get(task, {}), **own}.items()
            if variant != REFERENCE or not ((known := figure_of(task, metric)) and known.paired)
        }

    def tolerances_for(self, task: str, device: str) -> dict[str, Tolerance]:
        """Metric -> tolerance of one task on a device, built-in values where the file has none."""
        layers = [DEFAULT_TOLERANCES, self.tolerances]
        if device == "cpu":
            layers = [DEFAULT_TOLERANCES, CPU_TOLERANCES, self.tolerances, self.cpu_tolerances]
        return {metric: rule for layer in layers for metric, rule in layer.get(task, {}).items()}


BUILT_IN = Thresholds(source="built-in tolerances")
"""No limits, default tolerances: for comparing runs without a file."""


def load_thresholds(path: Path, variants: Collection[str]) -> Thresholds:
    """Read a thresholds file; ``variants`` are ids that count as known beside the variant table's.

    An InputError, which names the place, for anything unreadable, unknown or out of range.
    """
    try:
        return _read(tomllib.loads(path.read_text(encoding="utf-8")), str(path), variants)
    except OSError as error:
        raise InputError(f"cannot read thresholds {path}: {error.strerror}") from error
    except CodecError as error:
        raise InputError(f"thresholds {path}, {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"thresholds {path} are not valid TOML: {error}") from error


def _read(document: dict[str, Any], source: str, variants: Collection[str]) -> Thresholds:
    _table(document, "", ("default", "variant", "tolerance", "cpu"))
    on_cpu = _table(document.get("cpu", {}), "cpu", ("tolerance",))
    own = _table(document.get("variant", {}), "variant")
    for variant in own:
        _require_variant(variant, variants)
    return Thresholds(
        source=source,
        default=_rules(Limit, document, "default"),
        variants={name: _rules(Limit, own, name, f"variant.{name!r}") for name in own},
        tolerances=_rules(Tolerance, document, "tolerance"),
        cpu_tolerances=_rules(Tolerance, on_cpu, "tolerance", "cpu.tolerance"),
    )


def _table(value: object, place: str, known: Collection[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CodecError(f"{place}: must be a table, not {value!r}")
    for name in value:
        if known is not None and name not in known:
            listed = ", ".join(sorted(known))
            raise CodecError(f"{f'{place}.{name}'.lstrip('.')}: unknown; known: {listed}")
    return value


def _require_variant(variant: str, known: Collection[str]) -> None:
    if variant in known or is_plan_name(variant):
        return
    try:
        find_variant(variant)
    except InputError as error:
        raise CodecError(f"variant.{variant!r}: {error}") from error


def _rules(
    kind: type[Rule], parent: Mapping[str, Any], name: str, place: str = ""
) -> dict[str, dict[str, Rule]]:
    place = place or name
    return {
        task: {
            metric: _rule(kind, entry, (place, task, metric))
            for metric, entry in _table(metrics, f"{place}.{task}").items()
        }
        for task, metrics in _table(parent.get(name, {}), place, TASKS).items()
    }


def _rule(kind: type[Rule], entry: object, names: tuple[str, str, str]) -> Rule:
    (_, task, metric), where = names, ".".join(names)
    if figure_of(task, metric) is None:
        raise CodecError(f"{where}: unknown metric of task {task!r}")
    rule = decode(kind, _table(entry, where), where)
    if not 0 < rule.alpha < 1:
        raise CodecError(f"{where}.alpha: must lie between 0 and 1, is {rule.alpha:g}")
    if problem := _limit(rule, metric) if isinstance(rule, Limit) else _tolerance(rule):
        raise CodecError(f"{where}: {problem}")
    return rule


def _limit(limit: Limit, metric: str) -> str:
    """What is wrong with a limit; empty where nothing is."""
    if limit.min is None and limit.max is None:
        return "needs min or max"
    if limit.min is not None and limit.max is not None and limit.min > limit.max:
        return f"min {limit.min:g} is above max {limit.max:g}"
    if limit.test is Test.MCNEMAR and (metric != "accuracy_delta" or limit.max is not None):
        return "test mcnemar applies only to a min of accuracy_delta"
    return ""


def _tolerance(tolerance: Tolerance) -> str:
    sizes = [size for size in (tolerance.relative, tolerance.absolute) if size is not None]
    if not sizes:
        return "needs relative or absolute"
    return "must not be negative" if min(sizes) < 0 else ""
