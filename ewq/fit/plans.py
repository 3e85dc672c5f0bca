"""The best plan within a size, or the smallest one within a divergence."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ewq.checkpoint.layout import Block, Layout
from ewq.checkpoint.opening import Checkpoint
from ewq.errors import PlanError
from ewq.fit.costs import PlannedTensor
from ewq.fit.targets import Target
from ewq.measurement import Json
from ewq.planning.knapsack import Choice, choose
from ewq.planning.plan import BITSANDBYTES, ExpectedKld, PlanBlock, QuantizationPlan, precisions_of
from ewq.planning.scorers import out_of_reach, spread
from ewq.sensitivity.measure import Sensitivity
from ewq.variants import Precision
from ewq.version import __version__

GRANULARITIES = ("tensor", "kind", "block")
Rule = Mapping[str, Json]


@dataclass(frozen=True)
class Fitting:
    """A model measured and costed: plans of any size cost no more work."""

    checkpoint: Checkpoint
    layout: Layout
    target: Target
    sensitivity: Sensitivity
    costs: Mapping[str, Mapping[str, float]]
    """Nats per token by tensor and type."""
    scorer: str = "fisher"

    def within(
        self, budget_bytes: int, rule: Rule, granularity: str = "tensor"
    ) -> QuantizationPlan:
        """The plan of least expected divergence whose tensors take at most ``budget_bytes``.

        A file's padding of tensors counts; a PlanError where even the smallest plan is larger.
        """
        units, fixed = self._units(granularity), self.target.fixed_stored_bytes
        found = choose(units, budget_bytes - fixed)
        if found is None:
            sizes = [[int(option.weight) for option in unit] for unit in units]
            low, high = (fixed + sum(map(end, sizes)) for end in (min, max))
            raise out_of_reach(budget_bytes, low, high, self.target.parameters)
        return self.of_types(_taken(units, found), rule, granularity)

    def below(self, kld: float, rule: Rule, granularity: str = "tensor") -> QuantizationPlan:
        """The smallest plan expected to diverge by at most ``kld`` nats (else a PlanError)."""
        units = self._units(granularity)
        found = choose([[Choice(o.weight, o.cost) for o in unit] for unit in units], kld)
        if found is None:
            least = sum(min(option.cost for option in unit) for unit in units)
            raise PlanError(f"no plan of this model is below {least:.3g} nats per token")
        return self.of_types(_taken(units, found), rule, granularity)

    def expected_of(self, plan: QuantizationPlan) -> ExpectedKld:
        """What a plan of precisions is expected to diverge by, as this target stores it."""
        bits = _bits(self.target.tensors)
        types = {}
        for tensor in self.target.tensors:
            precision = plan.weights.get(tensor.matrix.name, Precision.RAW)
            wanted = self.target.of_precision.get(precision, tensor.types[-1])
            types[tensor.name] = _nearest(tensor, wanted, bits)
        return self._expected(types)

    def of_types(
        self, types: Mapping[str, str], rule: Rule, granularity: str = "tensor"
    ) -> QuantizationPlan:
        """The plan that gives tensors these types."""
        tensors = self.target.tensors
        size_bytes = self.target.fixed_bytes + sum(t.sizes[types[t.name]] for t in tensors)
        blocks = tuple(self._block(block, types) for block in self.layout.blocks)
        mean, std = spread([block.entropy for block in blocks])
        return QuantizationPlan(
            model=self.checkpoint.model,
            fingerprint=self.checkpoint.fingerprint,
            architecture=self.checkpoint.architecture,
            scorer=self.scorer,
            granularity=granularity,
            rule=rule,
            mean=mean,
            std=std,
            thresholds={},
            blocks=blocks,
            weights=precisions_of(types) if self.target.name == BITSANDBYTES else {},
            bits_per_weight=8 * size_bytes / self.target.parameters,
            size_bytes=size_bytes,
            ewq_version=__version__,
            target=self.target.name,
            types={**types, **self.target.fixed},
            expected_kld=self._expected(types),
            calibration=self.sensitivity.calibration,
        )

    def _units(self, granularity: str) -> list[list[_Option]]:
        """For every group of tensors that change together, what they can be stored as."""
        grouped: dict[str, list[PlannedTensor]] = {}
        for tensor in self.target.tensors:
            unit = tensor.name
            if granularity == "kind":
                unit = re.sub(r"\.\d+\.", ".*.", unit)
            elif granularity == "block" and tensor.block is not None:
                unit = f"block {tensor.block}"
            grouped.setdefault(unit, []).append(tensor)
        return [self.options(tensors) for tensors in grouped.values()]

    def options(self, tensors: Sequence[PlannedTensor]) -> list[_Option]:
        """One for each type of any; who cannot take it takes its own next larger one."""
        options, bits = [], _bits(tensors)
        for wanted in bits:
            types = {tensor.name: _nearest(tensor, wanted, bits) for tensor in tensors}
            cost = sum(self.costs[name][kind] for name, kind in types.items())
            stored = sum(self.target.stored(t.sizes[types[t.name]]) for t in tensors)
            options.append(_Option(cost, stored, types))
        return options

    def _expected(self, types: Mapping[str, str]) -> ExpectedKld:
        by_matrix: dict[str, float] = {}
        for tensor in self.target.tensors:
            cost = self.costs[tensor.name][types[tensor.name]]
            by_matrix[tensor.matrix.name] = by_matrix.get(tensor.matrix.name, 0.0) + cost
        return ExpectedKld(sum(by_matrix.values()), self.sensitivity.stderr(by_matrix))

    def _block(self, block: Block, types: Mapping[str, str]) -> PlanBlock:
        inside = [tensor for tensor in self.target.tensors if tensor.block == block.index]
        return PlanBlock(
            block.index,
            block.name,
            self.layout.numel(block),
            entropy=sum(self.costs[t.name][types[t.name]] for t in inside),
            precision=None,
            size_bytes=sum(t.sizes[types[t.name]] for t in inside),
        )


def smallest_below(
    fitting: Fitting, kld: float, plan: Callable[..., QuantizationPlan]
) -> QuantizationPlan:
    """The smallest of a scorer's plans of ``target_size_bytes`` expected below ``kld`` nats.

    Found by halving the range of sizes, to a thousandth of it, as if more bytes never cost more; a
    PlanError where no plan of this scorer is below.
    """
    sizes = [tensor.sizes.values() for tensor in fitting.target.tensors]
    low, high = (fitting.target.fixed_bytes + sum(map(end, sizes)) for end in (min, max))
    best = plan(target_size_bytes=high)
    if not fitting.expected_of(best).value <= kld:  # also where the target is no number
        raise PlanError(f"no plan of scorer {best.scorer} is below {kld:g} nats per token")
    step = max(1, (high - low) // 1000)
    while high - low > step:
        middle = (low + high) // 2
        try:
            found = plan(target_size_bytes=middle)
        except PlanError:
            found = None
        if found and fitting.expected_of(found).value <= kld:
            best, high = found, middle
        else:
            low = middle
    return replace(best, rule={"kind": "target_kld", "target_kld": kld})


@dataclass(frozen=True)
class _Option(Choice):
    """One way to store a group of tensors: nats per token, bytes in the file."""

    types: Mapping[str, str]


def _taken(units: Sequence[Sequence[_Option]], found: Sequence[int]) -> dict[str, str]:
    chosen = (unit[place] for unit, place in zip(units, found, strict=True))
    return {name: kind for option in chosen for name, kind in option.types.items()}


def _bits(tensors: Sequence[PlannedTensor]) -> dict[str, float]:
    """Bytes per value of every type that any of the tensors can take."""
    return {t: tensor.sizes[t] / tensor.matrix.numel for tensor in tensors for t in tensor.types}


def _nearest(tensor: PlannedTensor, wanted: str, bits: Mapping[str, float]) -> str:
    """The type wanted, else the smallest one of the tensor's own that is no smaller."""
    if wanted in tensor.types:
        return wanted
    larger = [name for name in tensor.types if bits[name] >= bits[wanted]]
    return min(larger or tensor.types, key=lambda name: bits[name])
