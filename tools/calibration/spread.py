"""What repeated runs of the same code differ by, and the tolerance that follows."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from ewq.errors import InputError
from ewq.gating.change import doubt_about, incomparable
from ewq.gating.thresholds import CPU_TOLERANCES, DEFAULT_TOLERANCES
from ewq.storage.environment import comparable
from ewq.storage.runs import Run

FEWEST_RUNS = 3
ADVISED_RUNS = 10
SPREADS = 3.0
"""Standard deviations of a difference: a false alarm of chance in some 700 comparisons."""


@dataclass(frozen=True)
class Spread:
    """How much one metric of one variant varies over repeated runs."""

    task: str
    metric: str
    variant: str
    mean: float
    sd: float
    log_sd: float
    """Standard deviation of the logarithms; infinite where a value that varies is not positive."""
    largest: float
    """Largest difference between two runs."""
    runs: int
    """Runs that count: a gate says nothing of one whose notes call it noisy."""
    higher_is_better: bool | None

    @property
    def relative(self) -> float:
        """Standard deviation as a share of the mean."""
        return self.sd / abs(self.mean) if self.mean else (math.inf if self.sd else 0.0)

    @property
    def tolerance(self) -> tuple[str, float]:
        """``relative`` or ``absolute``, as the built-in tolerance has it, and its size.

        A share is taken on the scale of logarithms: half the speed is as far as twice the time.
        """
        built_in = DEFAULT_TOLERANCES.get(self.task, {}).get(self.metric)
        reach = SPREADS * math.sqrt(2)
        if built_in is not None and built_in.relative is None:
            return "absolute", max(_rounded_up(reach * self.sd), built_in.absolute or 0.0)
        floor = (built_in.relative or 0.0) if built_in else 0.0
        logs = reach * self.log_sd
        share = -math.expm1(-logs) if self.higher_is_better else math.expm1(logs)
        return "relative", max(_rounded_up(share), floor)


def spreads(runs: Sequence[Run]) -> list[Spread]:
    """The spread of every gated metric: of its most variable variant, by task.

    Raises:
        InputError: fewer than three runs, or runs of different things.
    """
    if len(runs) < FEWEST_RUNS:
        raise InputError(f"{len(runs)} runs tell nothing about variance: store {ADVISED_RUNS}")
    _require_repeats(runs)
    found: dict[tuple[str, str], Spread] = {}
    for spread in _all_spreads(runs):
        key = (spread.task, spread.metric)
        if key not in found or spread.relative > found[key].relative:
            found[key] = spread
    return sorted(found.values(), key=lambda spread: (spread.task, spread.metric))


def to_table(found: Iterable[Spread], runs: int) -> str:
    """Markdown for docs/."""
    lines = [
        f"Variance over {runs} runs of the same code. What a run itself calls noisy is left out.",
        "",
        "| task | metric | most variable | runs | mean | sd | sd / mean | largest change "
        "| tolerance |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for each in found:
        kind, size = each.tolerance
        lines.append(
            f"| {each.task} | {each.metric} | {each.variant} | {each.runs} | {each.mean:.6g} "
            f"| {each.sd:.3g} | {each.relative:.3%} | {each.largest:.3g} | {kind} {size:g} |"
        )
    return "\n".join(lines) + "\n"


def to_toml(found: Iterable[Spread], device: str) -> str:
    """Tables to paste into thresholds.toml; clocks on a CPU have tables of their own."""
    lines: list[str] = []
    task = None
    for each in found:
        if each.task != task:
            task = each.task
            own = "cpu." if device == "cpu" and task in CPU_TOLERANCES else ""
            lines += ["", f"[{own}tolerance.{task}]"]
        kind, size = each.tolerance
        lines.append(f"{each.metric} = {{ {kind} = {size:g} }}")
    return "\n".join(lines).lstrip() + "\n"


def _all_spreads(runs: Sequence[Run]) -> Iterable[Spread]:
    for variant, task in runs[0].records:
        records = [run.records[variant, task] for run in runs]
        for metric in DEFAULT_TOLERANCES.get(task, {}):
            if all(metric in record.metrics for record in records):
                trusted = [record for record in records if not doubt_about(metric, record)]
                values = [record.metrics[metric].value for record in trusted]
                if len(values) < FEWEST_RUNS:
                    continue
                largest = max(values) - min(values)
                yield Spread(
                    task, metric, variant, fmean(values), stdev(values), _log_sd(values), largest,
                    len(values), records[0].metrics[metric].higher_is_better,
                )  # fmt: skip


def _log_sd(values: Sequence[float]) -> float:
    if min(values) <= 0:
        return math.inf if stdev(values) else 0.0
    return stdev(map(math.log, values))


def _require_repeats(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs:
        reasons = comparable(first.machine, run.machine)
        if run.machine.get("ewq_code") != first.machine.get("ewq_code"):
            reasons.append("measured by other code")
        if run.records.keys() != first.records.keys():
            reasons.append("measured other benchmarks")
        else:
            for key, record in run.records.items():
                reasons += incomparable(first.records[key], record)
        if reasons:
            raise InputError(f"{run.path} is no repetition of {first.path}: {'; '.join(reasons)}")


def _rounded_up(value: float) -> float:
    """Two significant digits, never below ``value``."""
    if value == 0.0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit - 1e-9) * unit
