"""A plan in the making: units to be scored, precisions to be chosen, sizes to be counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ewq.checkpoint.layout import Block, Layout
from ewq.checkpoint.opening import Checkpoint
from ewq.measurement import Json
from ewq.planning.plan import PlanBlock, QuantizationPlan
from ewq.planning.rules import Spread, by_thresholds, factor_thresholds, spread, within_budget
from ewq.planning.scorers import Unit, score_units
from ewq.planning.sizes import Footprint, Format
from ewq.precision import Precision
from ewq.version import __version__


@dataclass(frozen=True)
class Draft:
    """What is decided before the precisions are."""

    checkpoint: Checkpoint
    layout: Layout
    footprint: Footprint
    units: Sequence[Unit]
    """In block order; each gets one precision."""
    granularity: str
    target: Format
    scorer: str
    seed: int
    """Of the ``random`` scorer."""

    @cached_property
    def scores(self) -> list[float]:
        """One per unit."""
        return score_units(self.scorer, self.units, self.seed)

    @cached_property
    def spread(self) -> Spread:
        """Of the scores."""
        return spread(self.scores)

    def by_factor(self, factor: float) -> QuantizationPlan:
        """The plan of the factor rule."""
        thresholds = factor_thresholds(self.spread, factor)
        precisions = by_thresholds(self.scores, thresholds)
        return self.finish(precisions, {"kind": "factor", "factor": factor}, thresholds)

    def within(self, budget_bytes: int, rule: Mapping[str, Json]) -> QuantizationPlan:
        """The plan of the budget rule; ``rule`` is how the plan file tells it."""
        sizes = [
            {of: self._nbytes(unit.names, dict.fromkeys(unit.names, of)) for of in Precision}
            for unit in self.units
        ]
        rest_bytes = self.footprint.rest_nbytes(self.target)
        precisions = within_budget(
            self.scores, sizes, rest_bytes, budget_bytes, self.footprint.numel
        )
        return self.finish(precisions, rule, {})

    def finish(
        self,
        precisions: Sequence[Precision],
        rule: Mapping[str, Json],
        thresholds: Mapping[str, float],
    ) -> QuantizationPlan:
        """The plan that gives each unit its precision."""
        weights = {
            name: precision
            for unit, precision in zip(self.units, precisions, strict=True)
            for name in unit.names
        }
        size_bytes = self.footprint.nbytes(weights, self.target)
        return QuantizationPlan(
            model=self.checkpoint.model,
            fingerprint=self.checkpoint.fingerprint,
            architecture=self.checkpoint.architecture,
            scorer=self.scorer,
            granularity=self.granularity,
            rule={**rule, "seed": self.seed} if self.scorer == "random" else rule,
            mean=self.spread.mean,
            std=self.spread.std,
            thresholds=thresholds,
            blocks=tuple(self._block(block, weights) for block in self.layout.blocks),
            weights=weights,
            bits_per_weight=8 * size_bytes / self.footprint.numel,
            size_bytes=size_bytes,
            ewq_version=__version__,
            target=self.target.name,
        )

    def _nbytes(self, names: Sequence[str], precisions: Mapping[str, Precision]) -> int:
        stored = self.footprint.weights
        return sum(self.target.nbytes(stored[name], precisions[name]) for name in names)

    def _block(self, block: Block, weights: Mapping[str, Precision]) -> PlanBlock:
        """A block as reported: scored as a block, whatever the granularity of the decision."""
        kinds = {weights[name] for name in block.weights}
        return PlanBlock(
            block.index,
            block.name,
            self.layout.numel(block),
            self._block_scores[block.index],
            kinds.pop() if len(kinds) == 1 else None,
            self._nbytes(block.weights, weights),
        )

    @cached_property
    def _block_scores(self) -> list[float]:
        """The units' own scores, or the parameter-weighted means over each block's weights."""
        if self.granularity == "block":
            return self.scores
        pairs = zip(self.units, self.scores, strict=True)
        weighted = {unit.names[0]: score * unit.numel for unit, score in pairs}
        return [
            sum(weighted[name] for name in block.weights) / self.layout.numel(block)
            for block in self.layout.blocks
        ]
