"""Statistics of every quantizable weight of a checkpoint, and the plans they lead to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ewq.checkpoint.layout import Layout, find_layout
from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.entropy.statistics import WeightStatistics
from ewq.errors import CheckpointError, PlanError
from ewq.files import content_key, read_cached, write_cached
from ewq.measurement import Json
from ewq.planning.drafting import Draft
from ewq.planning.plan import QuantizationPlan
from ewq.planning.scorers import DEFAULT_SCORER, NEED_NF4_ERRORS, Unit, check_scorer
from ewq.planning.sizes import DEFAULT_FORMAT, Footprint, footprint_of, format_of
from ewq.precision import Precision
from ewq.progress import NO_PROGRESS, Progress

DEFAULT_FACTOR = 0.65
GRANULARITIES = ("block", "tensor")
CACHE = "analyses"
CACHE_VERSION = 2
"""Raised whenever a statistic changes its meaning."""


@dataclass(frozen=True)
class Analysis:
    """Everything a plan needs to know about a checkpoint; many plans share one."""

    checkpoint: Checkpoint
    layout: Layout
    footprint: Footprint
    statistics: Mapping[str, WeightStatistics]
    """By the weight's name, in block order."""

    def plan(
        self,
        factor: float | None = None,
        *,
        target_bpw: float | None = None,
        target_size_bytes: int | None = None,
        scorer: str = DEFAULT_SCORER,
        granularity: str = "block",
        target: str = DEFAULT_FORMAT,
        seed: int = 0,
    ) -> QuantizationPlan:
        """A plan by the factor rule (0.65 unless given) or within a budget.

        Args:
            factor: 4-bit starts below ``mean - factor * std``.
            target_bpw: bits per weight over the whole model, never exceeded.
            target_size_bytes: bytes of the whole model, never exceeded.
            scorer: a name of :data:`ewq.planning.scorers.SCORERS`.
            granularity: ``block`` or ``tensor``.
            target: storage to count sizes for, of :data:`ewq.planning.sizes.FORMATS`.
            seed: of the ``random`` scorer.

        Raises:
            PlanError: more than one rule, or a budget that cannot be met.
            InputError: an unknown scorer, granularity or target.
        """
        given = [value for value in (factor, target_bpw, target_size_bytes) if value is not None]
        if len(given) > 1:
            raise PlanError("give only one of factor, target_bpw and target_size_bytes")
        draft = self._draft(scorer, granularity, target, seed)
        if target_bpw is not None:
            if not math.isfinite(target_bpw):
                raise PlanError(
                    f"invalid target of {target_bpw} bits per weight: expected a number such as 6.5"
                )
            budget = int(target_bpw * self.footprint.numel / 8)
            return draft.within(budget, {"kind": "target_bpw", "target_bpw": target_bpw})
        if target_size_bytes is not None:
            rule: Mapping[str, Json] = {
                "kind": "target_size",
                "target_size_bytes": target_size_bytes,
            }
            return draft.within(target_size_bytes, rule)
        return draft.by_factor(DEFAULT_FACTOR if factor is None else factor)

    def uniform_plan(
        self, precision: Precision, *, target: str = DEFAULT_FORMAT
    ) -> QuantizationPlan:
        """The plan that gives every quantizable weight the same precision."""
        draft = self._draft(DEFAULT_SCORER, "block", target, 0)
        rule: Mapping[str, Json] = {"kind": "uniform", "precision": precision.value}
        return draft.finish([precision] * len(draft.units), rule, {})

    def _draft(self, scorer: str, granularity: str, target: str, seed: int) -> Draft:
        check_choices(scorer, granularity, target)
        errors = self.nf4_errors if scorer in NEED_NF4_ERRORS else {}
        members = [block.weights for block in self.layout.blocks]
        if granularity == "tensor":
            members = [(name,) for name in self.layout.weights]
        units = [
            Unit(
                names,
                [self.statistics[name] for name in names],
                [errors[name] for name in names if name in errors],
            )
            for names in members
        ]
        return Draft(
            self.checkpoint,
            self.layout,
            self.footprint,
            units,
            granularity,
            format_of(target),
            scorer,
            seed,
        )

    @cached_property
    def nf4_errors(self) -> Mapping[str, float]:
        """``|W - NF4(W)| / |W|`` of every weight, measured when a scorer first asks for it."""
        from ewq.entropy.weights import measure_nf4_errors

        return measure_nf4_errors(self.checkpoint, self.layout, self.statistics)


def check_choices(scorer: str, granularity: str, target: str) -> None:
    """Make sure that there are such a scorer, granularity and target, before anything is measured.

    Raises:
        PlanError: no such granularity.
        InputError: no such scorer or target.
    """
    check_scorer(scorer)
    format_of(target)
    if granularity not in GRANULARITIES:
        raise PlanError(f"unknown granularity {granularity!r}; known: {', '.join(GRANULARITIES)}")


def analyze(
    model: str | Path | Checkpoint,
    *,
    cache: bool = True,
    progress: Progress = NO_PROGRESS,
    workers: int | None = None,
    device: str | None = None,
) -> Analysis:
    """Measure every quantizable weight of a checkpoint.

    Args:
        model: hub id, folder, ``.gguf`` file, or a checkpoint already opened.
        cache: use and keep the statistics under the user's cache folder.
        progress: told about bytes downloaded and read.
        workers: threads; all available processors unless given.
        device: ``cuda`` counts 16-bit patterns on the GPU; the processor unless given.

    Raises:
        CheckpointError: not found, damaged, of an unknown layout, or a weight with NaN or infinity.
    """
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model, progress)
    layout = find_layout(checkpoint)
    key = cache_key(checkpoint) if cache else ""
    statistics = _cached_statistics(key, layout) if cache else None
    if statistics is None:
        # Imported late: an analysis found in the cache needs no compiled loops.
        from ewq.entropy.weights import measure_weights

        statistics = measure_weights(checkpoint, layout, progress, workers, device)
        if cache:
            plain = {name: weight.to_json() for name, weight in statistics.items()}
            write_cached(CACHE, key, plain)
    return Analysis(checkpoint, layout, footprint_of(checkpoint, layout), statistics)


def cache_key(checkpoint: Checkpoint) -> str:
    """A checkpoint's place in the cache: its fingerprint, and its files' sizes and times.

    Raises:
        CheckpointError: one of its files has vanished.
    """
    try:
        facts = [(file.name, file.stat()) for file in checkpoint.files]
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error
    files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in facts]
    return content_key(CACHE_VERSION, checkpoint.fingerprint, files)


def _cached_statistics(key: str, layout: Layout) -> dict[str, WeightStatistics] | None:
    kept = read_cached(CACHE, key)
    if not isinstance(kept, dict) or kept.keys() != set(layout.weights):
        return None
    return {name: WeightStatistics(**kept[name]) for name in layout.weights}
