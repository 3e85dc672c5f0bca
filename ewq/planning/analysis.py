"""Statistics of every quantizable weight of a checkpoint, and the plans they lead to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ewq import __version__
from ewq.checkpoint.layout import Layout, find_layout
from ewq.checkpoint.opening import Checkpoint, open_checkpoint
from ewq.entropy.statistics import WeightStatistics
from ewq.errors import CheckpointError, PlanError
from ewq.files import content_key, read_cached, write_cached
from ewq.measurement import Json
from ewq.planning.budget import within_budget
from ewq.planning.footprint import Footprint, footprint_of
from ewq.planning.formats import DEFAULT_FORMAT, Format, format_of
from ewq.planning.plan import PlanBlock, QuantizationPlan
from ewq.planning.rules import Spread, by_thresholds, factor_thresholds, spread
from ewq.planning.scorers import DEFAULT_SCORER, Unit, check_scorer, score_units
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

    model: str
    fingerprint: str
    architecture: str
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
            target: storage to count sizes for, of :data:`ewq.planning.formats.FORMATS`.
            seed: of the ``random`` scorer.

        Raises:
            PlanError: more than one rule, or a budget that cannot be met.
            InputError: an unknown scorer, granularity or target.
        """
        given = [value for value in (factor, target_bpw, target_size_bytes) if value is not None]
        if len(given) > 1:
            raise PlanError("give one of factor, target bits per weight and target size")
        drafting = self._drafting(scorer, granularity, target, seed)
        if target_bpw is not None:
            if not math.isfinite(target_bpw):
                raise PlanError(
                    f"target bits per weight is {target_bpw}; give a number such as 6.5"
                )
            budget = int(target_bpw * self.footprint.numel / 8)
            return drafting.within(budget, {"kind": "target_bpw", "target_bpw": target_bpw})
        if target_size_bytes is not None:
            rule: Mapping[str, Json] = {
                "kind": "target_size",
                "target_size_bytes": target_size_bytes,
            }
            return drafting.within(target_size_bytes, rule)
        return drafting.by_factor(DEFAULT_FACTOR if factor is None else factor)

    def uniform_plan(
        self, precision: Precision, *, target: str = DEFAULT_FORMAT
    ) -> QuantizationPlan:
        """The plan that gives every quantizable weight the same precision."""
        drafting = self._drafting(DEFAULT_SCORER, "block", target, 0)
        rule: Mapping[str, Json] = {"kind": "uniform", "precision": precision.value}
        return drafting.finish([precision] * len(drafting.scores), rule, {})

    def unit(self, names: Sequence[str]) -> Unit:
        """The statistics of some weights, to be scored together."""
        return Unit(tuple(self.statistics[name] for name in names))

    def _drafting(self, scorer: str, granularity: str, target: str, seed: int) -> _Drafting:
        check_choices(scorer, granularity, target)
        blocks = tuple(block.weights for block in self.layout.blocks)
        members = blocks if granularity == "block" else tuple((n,) for n in self.layout.weights)
        scores = score_units(scorer, [self.unit(names) for names in members], seed)
        drawn = {"seed": seed} if scorer == "random" else {}
        return _Drafting(self, scorer, granularity, format_of(target), members, scores, drawn)


def check_choices(scorer: str, granularity: str, target: str) -> None:
    """Make sure that there are such a scorer, granularity and target, before anything is measured.

    Raises:
        PlanError: no such granularity.
        InputError: no such scorer or target.
    """
    check_scorer(scorer)
    format_of(target)
    if granularity not in GRANULARITIES:
        raise PlanError(f"granularity is {granularity!r}; there are: {', '.join(GRANULARITIES)}")


@dataclass(frozen=True)
class _Drafting:
    """A plan in the making: units scored, precisions not yet chosen."""

    analysis: Analysis
    scorer: str
    granularity: str
    target: Format
    members: Sequence[tuple[str, ...]]
    """Weights of each unit."""
    scores: Sequence[float]
    drawn: Mapping[str, Json]
    """What a random scorer was seeded with; it belongs to the rule."""

    @property
    def spread(self) -> Spread:
        return spread(self.scores)

    def by_factor(self, factor: float) -> QuantizationPlan:
        thresholds = factor_thresholds(self.spread, factor)
        precisions = by_thresholds(self.scores, thresholds)
        return self.finish(precisions, {"kind": "factor", "factor": factor}, thresholds)

    def within(self, budget_bytes: int, rule: Mapping[str, Json]) -> QuantizationPlan:
        footprint = self.analysis.footprint
        sizes = [self._sizes(names) for names in self.members]
        precisions = within_budget(
            self.scores, sizes, footprint.rest_nbytes(self.target), budget_bytes, footprint.numel
        )
        return self.finish(precisions, rule, {})

    def _sizes(self, names: Sequence[str]) -> dict[Precision, int]:
        return {of: sum(self._nbytes(name, of) for name in names) for of in Precision}

    def _nbytes(self, name: str, precision: Precision) -> int:
        return self.target.nbytes(self.analysis.footprint.weights[name], precision)

    def finish(
        self,
        precisions: Sequence[Precision],
        rule: Mapping[str, Json],
        thresholds: Mapping[str, float],
    ) -> QuantizationPlan:
        of = self.analysis
        weights = {
            name: precision
            for names, precision in zip(self.members, precisions, strict=True)
            for name in names
        }
        size_bytes = of.footprint.nbytes(weights, self.target)
        return QuantizationPlan(
            model=of.model,
            fingerprint=of.fingerprint,
            architecture=of.architecture,
            scorer=self.scorer,
            granularity=self.granularity,
            rule={**rule, **self.drawn},
            mean=self.spread.mean,
            std=self.spread.std,
            thresholds=thresholds,
            blocks=self._blocks(weights),
            weights=weights,
            bits_per_weight=8 * size_bytes / of.footprint.numel,
            size_bytes=size_bytes,
            ewq_version=__version__,
            target=self.target.name,
        )

    def _blocks(self, weights: Mapping[str, Precision]) -> tuple[PlanBlock, ...]:
        """Blocks as reported: scored as blocks, whatever the granularity of the decision."""
        layout = self.analysis.layout
        units = [self.analysis.unit(block.weights) for block in layout.blocks]
        scores = self.scores
        if self.granularity != "block":
            scores = self._block_means()
        blocks = []
        for block, unit, score in zip(layout.blocks, units, scores, strict=True):
            kinds = {weights[name] for name in block.weights}
            precision = kinds.pop() if len(kinds) == 1 else None
            size = sum(self._nbytes(name, weights[name]) for name in block.weights)
            blocks.append(PlanBlock(block.index, block.name, unit.numel, score, precision, size))
        return tuple(blocks)

    def _block_means(self) -> list[float]:
        by_name = {names[0]: score for names, score in zip(self.members, self.scores, strict=True)}
        of = self.analysis
        return [
            sum(by_name[name] * of.statistics[name].numel for name in block.weights)
            / of.layout.numel(block)
            for block in of.layout.blocks
        ]


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
    statistics = _cached_statistics(key, layout.weights) if cache else None
    if statistics is None:
        # Imported late: an analysis found in the cache needs no compiled loops.
        from ewq.entropy.sweep import sweep

        statistics = sweep(checkpoint, layout, progress, workers, device)
        if cache:
            plain = {name: of.to_json() for name, of in statistics.items()}
            write_cached(CACHE, key, plain)
    return Analysis(
        checkpoint.model,
        checkpoint.fingerprint,
        checkpoint.architecture,
        layout,
        footprint_of(checkpoint, layout),
        statistics,
    )


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


def _cached_statistics(key: str, names: Sequence[str]) -> dict[str, WeightStatistics] | None:
    kept = read_cached(CACHE, key)
    if not isinstance(kept, dict) or kept.keys() != set(names):
        return None
    return {name: WeightStatistics(**kept[name]) for name in names}
