"""Statistics of every quantizable weight of a checkpoint, and the plans they lead to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

from ewq.checkpoint.layout import Block, Layout, find_layout
from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.entropy import WeightStatistics
from ewq.errors import PlanError, check_known
from ewq.files import content_key, read_cached, write_cached
from ewq.measurement import Json
from ewq.planning import scorers
from ewq.planning.plan import PlanBlock, QuantizationPlan
from ewq.planning.scorers import DEFAULT_SCORER, Unit
from ewq.planning.sizes import DEFAULT_FORMAT, Footprint, Format, footprint_of, format_of
from ewq.progress import NO_PROGRESS, Progress
from ewq.variants import Precision
from ewq.version import __version__

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
        """A plan by the factor rule (0.65 unless given) or within a budget for the whole model.

        4-bit starts below ``mean - factor * std`` of the scores, which are of a ``scorer`` of
        :data:`ewq.planning.scorers.SCORERS` for each unit of a ``granularity`` (``block`` or
        ``tensor``); ``seed`` is of the random one. Sizes are counted for ``target``, of
        :data:`ewq.planning.sizes.FORMATS`.

        A PlanError of more than one rule or a budget that cannot be met, an InputError of an
        unknown scorer, granularity or target.
        """
        if sum(value is not None for value in (factor, target_bpw, target_size_bytes)) > 1:
            raise PlanError("give only one of factor, target_bpw and target_size_bytes")
        draft = self._draft(scorer, granularity, target, seed)
        if target_size_bytes is not None:
            size = target_size_bytes
            return draft.within(size, kind="target_size", target_size_bytes=size)
        if target_bpw is None:
            factor = DEFAULT_FACTOR if factor is None else factor
            thresholds = scorers.factor_thresholds(*scorers.spread(draft.scores), factor)
            precisions = scorers.by_thresholds(draft.scores, thresholds)
            return draft.finish(precisions, {"kind": "factor", "factor": factor}, thresholds)
        if not math.isfinite(target_bpw):
            raise PlanError(f"invalid target of {target_bpw} bits per weight: give a number")
        budget_bytes = int(target_bpw * self.footprint.numel / 8)
        return draft.within(budget_bytes, kind="target_bpw", target_bpw=target_bpw)

    def uniform_plan(
        self, precision: Precision, *, target: str = DEFAULT_FORMAT
    ) -> QuantizationPlan:
        """The plan that gives every quantizable weight the same precision."""
        draft = self._draft(DEFAULT_SCORER, "block", target, 0)
        rule: dict[str, Json] = {"kind": "uniform", "precision": precision.value}
        return draft.finish([precision] * len(draft.units), rule)

    def _draft(self, scorer: str, granularity: str, target: str, seed: int) -> _Draft:
        check_choices(scorer, granularity, target)
        errors = self.nf4_errors if scorer == "nf4-error" else {}
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
        return _Draft(self, units, granularity, format_of(target), scorer, seed)

    @cached_property
    def nf4_errors(self) -> Mapping[str, float]:
        """``|W - NF4(W)| / |W|`` of every weight, measured when a scorer first asks for it."""
        from ewq.entropy.weights import measure_nf4_errors

        return measure_nf4_errors(self.checkpoint, self.layout, self.statistics)


@dataclass(frozen=True)
class _Draft:
    """A plan in the making: units to be scored, precisions to be chosen, sizes to be counted."""

    analysis: Analysis
    units: Sequence[Unit]
    """In block order; each gets one precision."""
    granularity: str
    target: Format
    scorer: str
    seed: int

    @cached_property
    def scores(self) -> list[float]:
        return scorers.SCORERS[self.scorer](self.units, self.seed)

    def within(self, budget_bytes: int, **rule: Json) -> QuantizationPlan:
        """The plan of the budget rule; ``rule`` is how the plan file tells it."""
        sizes = [
            {of: self._nbytes(unit.names, dict.fromkeys(unit.names, of)) for of in Precision}
            for unit in self.units
        ]
        footprint = self.analysis.footprint
        rest_bytes = footprint.rest_nbytes(self.target)
        numel = footprint.numel
        chosen = scorers.within_budget(self.scores, sizes, rest_bytes, budget_bytes, numel)
        return self.finish(chosen, rule)

    def finish(
        self,
        precisions: Sequence[Precision],
        rule: Mapping[str, Json],
        thresholds: Mapping[str, float] | None = None,
    ) -> QuantizationPlan:
        checkpoint, footprint = self.analysis.checkpoint, self.analysis.footprint
        weights: dict[str, Precision] = {}
        scores: dict[str, float] = {}
        for unit, precision, score in zip(self.units, precisions, self.scores, strict=True):
            weights |= dict.fromkeys(unit.names, precision)
            scores |= dict.fromkeys(unit.names, score)
        mean, std = scorers.spread(self.scores)
        size_bytes = footprint.nbytes(weights, self.target)
        return QuantizationPlan(
            model=checkpoint.model,
            fingerprint=checkpoint.fingerprint,
            architecture=checkpoint.architecture,
            scorer=self.scorer,
            granularity=self.granularity,
            rule={**rule, "seed": self.seed} if self.scorer == "random" else rule,
            mean=mean,
            std=std,
            thresholds=thresholds or {},
            blocks=tuple(self._block(of, weights, scores) for of in self.analysis.layout.blocks),
            weights=weights,
            bits_per_weight=8 * size_bytes / footprint.numel,
            size_bytes=size_bytes,
            ewq_version=__version__,
            target=self.target.name,
        )

    def _nbytes(self, names: Sequence[str], precisions: Mapping[str, Precision]) -> int:
        stored = self.analysis.footprint.weights
        return sum(self.target.nbytes(stored[name], precisions[name]) for name in names)

    def _block(
        self, block: Block, weights: Mapping[str, Precision], scores: Mapping[str, float]
    ) -> PlanBlock:
        """A block as reported: scored as a block, whatever the granularity of the decision."""
        kinds = {weights[name] for name in block.weights}
        numel, statistics = self.analysis.layout.numel(block), self.analysis.statistics
        score = scores[block.weights[0]]
        if self.granularity == "tensor":
            score = sum(scores[name] * statistics[name].numel for name in block.weights) / numel
        precision = kinds.pop() if len(kinds) == 1 else None
        size_bytes = self._nbytes(block.weights, weights)
        return PlanBlock(block.index, block.name, numel, score, precision, size_bytes)


def check_choices(scorer: str, granularity: str, target: str) -> None:
    """Raise an InputError of an unknown scorer, granularity or target."""
    check_known(scorer, scorers.SCORERS, "scorer")
    check_known(granularity, GRANULARITIES, "granularity")
    format_of(target)


def analyze(
    model: str | Path | Checkpoint,
    *,
    cache: bool = True,
    progress: Progress = NO_PROGRESS,
    device: str | None = None,
) -> Analysis:
    """Measure every quantizable weight of a checkpoint, or find its statistics in the cache.

    On a ``device`` such as ``cuda`` 16-bit patterns are counted there. A CheckpointError of a model
    that is not found, damaged, of an unknown layout, or has a weight with NaN or infinity.
    """
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model, progress)
    layout = find_layout(checkpoint)
    key = cache_key(checkpoint) if cache else ""
    kept = read_cached(CACHE, key) if cache else None
    if isinstance(kept, dict) and kept.keys() == set(layout.weights):
        statistics = {name: WeightStatistics(**kept[name]) for name in layout.weights}
    else:
        # Imported late: an analysis found in the cache needs no compiled loops.
        from ewq.entropy.weights import measure_weights

        statistics = measure_weights(checkpoint, layout, progress, device)
        if cache:
            write_cached(CACHE, key, {name: asdict(one) for name, one in statistics.items()})
    return Analysis(checkpoint, layout, footprint_of(checkpoint, layout), statistics)


def cache_key(checkpoint: Checkpoint) -> str:
    """A checkpoint's place in the cache; files' times tell of edits that the fingerprint misses."""
    facts = [(file.name, file.stat()) for file in checkpoint.files]
    files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in facts]
    statistics = [field.name for field in fields(WeightStatistics)]
    return content_key(CACHE_VERSION, statistics, checkpoint.fingerprint, files)
