"""docs/results/calibration.md: what was repeated, what moved, and the tolerances that follow."""

import platform
from datetime import UTC, datetime
from pathlib import Path

from calibration.spread import Spread, spreads, to_table, to_toml

from ewq.gating.thresholds import Limit, Thresholds, load_thresholds
from ewq.measurement import DoubtKind
from ewq.storage.runs import Run

ROOT = Path(__file__).resolve().parents[2]
THRESHOLDS = ROOT / "benchmarks" / "thresholds.toml"
PAIRED = ("ln_ppl_ratio", "kld_mean", "top1_agreement", "accuracy_delta")
"""Figures of quality that thresholds.toml limits."""


def document(speed: list[Run], quality: list[Run], duration_s: float, command: str) -> str:
    """The whole page."""
    thresholds = load_thresholds(THRESHOLDS, ())
    found, device = spreads(speed), str(speed[0].machine.get("device"))
    lines = [
        "<!-- Written by tools/calibrate.py. -->",
        "",
        "# Calibration",
        "",
        _where(speed[0], duration_s, command),
        "",
        "## Clocks and memory",
        "",
        f"{len(speed)} processes one after the other, each loading every variant anew: "
        f"{', '.join(dict.fromkeys(variant for variant, _ in speed[0].records))}. The tolerance is "
        "what a change of three standard deviations of a difference of two runs, `3 sqrt(2) sd` "
        "of the logarithms, makes of a value in its bad direction.",
        "",
        to_table(found, len(speed)).rstrip(),
        "",
        *_untrusted(speed),
        "## Quality",
        "",
        *_equality(quality),
        "",
        "What decides about quality is therefore no variance between runs, but how well the items "
        "show a difference: the standard error of the difference from FP16, paired on the same "
        "items.",
        "",
        *_errors(quality[0], thresholds),
        "",
        "## What follows for thresholds.toml",
        "",
        *_verdicts(found, thresholds, device),
        "",
        "Tolerances of quality stay at the built-in values: they absorb another library version's "
        "rounding, since the same code repeats its figures exactly. Limits against FP16 are "
        "bounds on damage, not on noise; how far each lies from what was measured is in the "
        "table above.",
        "",
        "```toml",
        to_toml(found, device).rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _where(run: Run, duration_s: float, command: str) -> str:
    machine = run.machine
    device = machine.get("gpu") or f"{machine.get('cpu')}, {machine.get('cores')} cores"
    libraries = ", ".join(f"{name} {machine.get(name)}" for name in ("torch", "llama-cpp-python"))
    model = next(iter(run.records.values())).model
    day = datetime.now(UTC).date().isoformat()
    commit = f"{(run.commit or 'no commit')[:10]}{' with changed files' if run.dirty else ''}"
    return (
        f"`{command}`: {model} on {device} ({platform.system()}, {libraries}), commit {commit}, "
        f"{day}, {duration_s / 60:.0f} minutes."
    )


def _untrusted(runs: list[Run]) -> list[str]:
    """Variants that called their own clocks noisy, and how often."""
    counts: dict[str, int] = {}
    for run in runs:
        for (variant, task), record in run.records.items():
            kinds = {doubt.kind for doubt in record.doubts}
            if task == "throughput" and kinds & {DoubtKind.NOISE, DoubtKind.BUSY}:
                counts[variant] = counts.get(variant, 0) + 1
    if not counts:
        return []
    told = ", ".join(f"{variant} {number} times" for variant, number in counts.items())
    return [f"Called noisy by themselves, and so inconclusive in a gate: {told}.", ""]


def _equality(runs: list[Run]) -> list[str]:
    first, *others = runs
    moved = [
        f"{'/'.join(key)}: {name}"
        for key, record in first.records.items()
        for name in record.metrics
        if any(run.records[key].metrics.get(name) != record.metrics[name] for run in others)
    ]
    items = [
        f"{'/'.join(key)}: items"
        for key, record in first.records.items()
        if any(run.records[key].items != record.items for run in others)
    ]
    metrics = sum(len(record.metrics) for record in first.records.values())
    count = f"{metrics} metrics and the items of {len(first.records)} measurements"
    if moved or items:
        return [f"{len(runs)} processes gave different values of:", ""] + [
            f"- {each}" for each in [*moved, *items]
        ]
    return [f"{len(runs)} processes gave {count} equal to the last bit."]


def _errors(run: Run, thresholds: Thresholds) -> list[str]:
    """Each paired figure with its error, and how far its limit is."""
    lines = [
        "| variant | task | metric | value | error | n | limit | errors to the limit |",
        "| --- | --- | --- | ---: | ---: | ---: | --- | ---: |",
    ]
    for (variant, task), record in run.records.items():
        limits = thresholds.for_(variant, task)
        for name in PAIRED:
            metric = record.metrics.get(name)
            if metric is None or variant == "fp16":
                continue
            limit = limits.get(name)
            error = "" if metric.stderr is None else f"{metric.stderr:.2g}"
            room = _room(metric.value, metric.stderr, limit)
            lines.append(
                f"| {variant} | {task} | {name} | {metric.value:.4g} | {error} | {metric.n} "
                f"| {limit or 'none'} | {room} |"
            )
    return lines


def _room(value: float, stderr: float | None, limit: Limit | None) -> str:
    if limit is None or not stderr:
        return ""
    sides = [(limit.max, 1.0), (limit.min, -1.0)]
    room = min(sign * (bound - value) for bound, sign in sides if bound is not None)
    return f"{room / stderr:.1f}"


def _verdicts(found: list[Spread], thresholds: Thresholds, device: str) -> list[str]:
    lines = [
        "| task | metric | measured | in thresholds.toml | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in found:
        kind, size = each.tolerance
        there = thresholds.tolerances_for(each.task, device)[each.metric]
        needed = size * abs(each.mean) if kind == "relative" else size
        enough = there.allowed(each.mean) >= needed * (1 - 1e-9)
        lines.append(
            f"| {each.task} | {each.metric} | {kind} {size:g} | {there} "
            f"| {'holds' if enough else '**too tight**'} |"
        )
    return lines
