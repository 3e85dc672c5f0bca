"""The thresholds file: what a variant may lose, and how much a run may differ from its baseline.

``[default.TASK]`` and ``[variant."ID".TASK]`` hold limits on one run's own metrics;
``[tolerance.TASK]`` holds how much worse than a stored baseline a metric may get, and
``[cpu.tolerance.TASK]`` the same for runs on a CPU, whose clocks say less than a GPU's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from ewq.codec import CodecError, decode
from ewq.errors import InputError
from ewq.tasks.table import TASKS, Tolerance, figure_of
from ewq.variants import REFERENCE, find_variant, is_plan_name

Rule = TypeVar("Rule", "Limit", Tolerance)


class Test(StrEnum):
    """The statistical test that decides whether a limit is broken."""

    __test__ = False  # not a test class, whatever pytest's name patterns say

    BOUND = "bound"
    """The value itself against the limit."""
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
    """Probability of a false alarm that the test accepts."""

    def __str__(self) -> str:
        parts = (("min", self.min), ("max", self.max))
        return ", ".join(f"{name} {value:g}" for name, value in parts if value is not None)


LimitsByTask = Mapping[str, Mapping[str, Limit]]
"""Task -> metric -> limit."""
TolerancesByTask = Mapping[str, Mapping[str, Tolerance]]
"""Task -> metric -> tolerance."""

DEFAULT_TOLERANCES: TolerancesByTask = {
    name: {each.key: each.tolerance for each in task.figures if each.tolerance}
    for name, task in TASKS.items()
}
"""What counts where the thresholds file says nothing; the file overrides metric by metric."""
CPU_TOLERANCES: TolerancesByTask = {
    name: {each.key: each.cpu_tolerance for each in task.figures if each.cpu_tolerance}
    for name, task in TASKS.items()
}
"""The same on a CPU; calibrate your machine for less (``tools/calibrate.py``)."""


@dataclass(frozen=True)
class Thresholds:
    """A thresholds file, read and checked."""

    source: str
    default: LimitsByTask = field(default_factory=dict)
    variants: Mapping[str, LimitsByTask] = field(default_factory=dict)
    tolerances: TolerancesByTask = field(default_factory=dict)
    cpu_tolerances: TolerancesByTask = field(default_factory=dict)
    """What counts on a CPU before :attr:`tolerances`."""

    def for_(self, variant: str, task: str) -> dict[str, Limit]:
        """Metric -> limit of one benchmark; the variant's own entry replaces the default one.

        The reference variant has no paired metrics, and so no limits on them.
        """
        own = self.variants.get(variant, {}).get(task, {})
        limits = {**self.default.get(task, {}), **own}
        if variant == REFERENCE:
            return {
                metric: limit
                for metric, limit in limits.items()
                if not ((figure := figure_of(task, metric)) and figure.paired)
            }
        return limits

    def tolerances_for(self, task: str, device: str) -> dict[str, Tolerance]:
        """Metric -> tolerance of one task on a device, built-in values where the file has none."""
        layers = [DEFAULT_TOLERANCES, self.tolerances]
        if device == "cpu":
            layers = [DEFAULT_TOLERANCES, CPU_TOLERANCES, self.tolerances, self.cpu_tolerances]
        found: dict[str, Tolerance] = {}
        for layer in layers:
            found |= layer.get(task, {})
        return found


BUILT_IN = Thresholds(source="built-in tolerances")
"""No limits, default tolerances: for comparing runs without a file."""


def load_thresholds(path: Path, variants: Collection[str]) -> Thresholds:
    """Read a thresholds file; every name in it must be known.

    Args:
        path: the TOML file.
        variants: ids of this run, such as GGUF files; those of the variant table are known besides.

    Raises:
        InputError: not readable, not TOML, or an unknown table, variant, task, metric or key, a
            limit without bounds, or a value out of range; the message names the place.
    """
    document = _parse(path)
    reader = _Reader(path)
    reader.require_known(document, ("default", "variant", "tolerance", "cpu"), "")
    on_cpu = reader.table(document.get("cpu", {}), "cpu")
    reader.require_known(on_cpu, ("tolerance",), "cpu")
    own = reader.table(document.get("variant", {}), "variant")
    for variant in own:
        reader.require_variant(variant, variants)
    return Thresholds(
        source=str(path),
        default=reader.limits(document.get("default", {}), "default"),
        variants={name: reader.limits(table, f"variant.{name!r}") for name, table in own.items()},
        tolerances=reader.tolerances(document.get("tolerance", {}), "tolerance"),
        cpu_tolerances=reader.tolerances(on_cpu.get("tolerance", {}), "cpu.tolerance"),
    )


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read thresholds {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"thresholds {path} are not valid TOML: {error}") from error


class _Reader:
    """Turns tables into values; knows the file's name for its messages."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def limits(self, table: object, place: str) -> dict[str, dict[str, Limit]]:
        result: dict[str, dict[str, Limit]] = {}
        for task, metric, entry, where in self._entries(table, place):
            result.setdefault(task, {})[metric] = self._limit(entry, where, metric)
        return result

    def tolerances(self, table: object, place: str) -> dict[str, dict[str, Tolerance]]:
        result: dict[str, dict[str, Tolerance]] = {}
        for task, metric, entry, where in self._entries(table, place):
            result.setdefault(task, {})[metric] = self._tolerance(entry, where)
        return result

    def table(self, value: object, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(place, f"must be a table, not {value!r}")
        return value

    def require_known(self, table: Mapping[str, Any], known: Collection[str], place: str) -> None:
        for name in table:
            if name not in known:
                raise self._error(f"{place}.{name}".lstrip("."), f"unknown; known: {_list(known)}")

    def require_variant(self, variant: str, known: Collection[str]) -> None:
        if variant in known or is_plan_name(variant):
            return
        try:
            find_variant(variant)
        except InputError as error:
            raise self._error(f"variant.{variant!r}", str(error)) from error

    def _entries(self, table: object, place: str) -> Iterator[tuple[str, str, dict[str, Any], str]]:
        tasks = self.table(table, place)
        self.require_known(tasks, TASKS, place)
        for task, metrics in tasks.items():
            for metric, entry in self.table(metrics, f"{place}.{task}").items():
                where = f"{place}.{task}.{metric}"
                if figure_of(task, metric) is None:
                    raise self._error(where, f"unknown metric of task {task!r}")
                yield task, metric, self.table(entry, where), where

    def _limit(self, entry: Mapping[str, Any], where: str, metric: str) -> Limit:
        limit = self._decoded(Limit, entry, where)
        if limit.min is None and limit.max is None:
            raise self._error(where, "needs min or max")
        if limit.min is not None and limit.max is not None and limit.min > limit.max:
            raise self._error(where, f"min {limit.min:g} is above max {limit.max:g}")
        if limit.test is Test.MCNEMAR and (metric != "accuracy_delta" or limit.max is not None):
            raise self._error(f"{where}.test", "mcnemar applies only to a min of accuracy_delta")
        return limit

    def _tolerance(self, entry: Mapping[str, Any], where: str) -> Tolerance:
        tolerance = self._decoded(Tolerance, entry, where)
        sizes = (tolerance.relative, tolerance.absolute)
        if sizes == (None, None):
            raise self._error(where, "needs relative or absolute")
        if any(size is not None and size < 0 for size in sizes):
            raise self._error(where, "must not be negative")
        return tolerance

    def _decoded(self, kind: type[Rule], entry: Mapping[str, Any], where: str) -> Rule:
        try:
            rule = decode(kind, entry, where)
        except CodecError as error:
            raise InputError(f"thresholds {self.path}, {error}") from error
        if not 0 < rule.alpha < 1:
            raise self._error(f"{where}.alpha", f"must lie between 0 and 1, is {rule.alpha:g}")
        return rule

    def _error(self, where: str, problem: str) -> InputError:
        return InputError(f"thresholds {self.path}, {where}: {problem}")


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(str(name) for name in names))
