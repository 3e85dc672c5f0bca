"""The figures of ``run.sh`` as Markdown: speed against the bandwidth bound, CPU against GPU."""

# ruff: noqa: T201 - a script whose product is its output
from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ewq.errors import InputError
from ewq.record import Record
from ewq.storage.runs import Run, read_run

GB = 1e9
MODES = ("eager", "static", "graph", "compile")
PLACES = {"agreement-cpu": "CPU", "agreement-gpu-float32": "GPU float32", "agreement-gpu": "GPU"}
WHERE = ("device", "dtype")
"""Settings in which the compared runs differ on purpose."""
AGREEMENT = (
    ("perplexity", "perplexity", 4),
    ("perplexity", "ln_ppl_ratio", 5),
    ("divergence", "kld_mean", 6),
    ("mmlu", "accuracy", 4),
)


def value(record: Record | None, name: str) -> float | None:
    """A metric's value where it was measured."""
    metric = record.metrics.get(name) if record else None
    return metric.value if metric else None


def shown(number: float | None, digits: int = 2) -> str:
    """A number for a table."""
    return "–" if number is None else f"{number:,.{digits}f}"


def ratio(number: float | None, to: float | None) -> float | None:
    """A quotient of measured numbers."""
    return number / to if number and to else None


def table(head: str, align: str, rows: list[list[str]]) -> list[str]:
    """Markdown; ``align`` has a letter a column."""
    rule = " | ".join({"l": ":--", "r": "--:"}[letter] for letter in align)
    return [f"| {head} |", f"| {rule} |", *(f"| {' | '.join(row)} |" for row in rows)]


def variants(run: Run) -> list[str]:
    """Variants in the order they were measured."""
    return list(dict.fromkeys(variant for variant, _ in run.records))


def decode_speed(run: Run | None, variant: str) -> float | None:
    """Decode tokens per second at batch size 1."""
    return value(run.records.get((variant, "throughput")), "decode_tokens_per_s") if run else None


def of_bound(run: Run, variant: str, copy_bytes_per_s: float) -> float | None:
    """Share of the speed at which the weights could be read: a decode step reads each once."""
    weights = value(run.records.get((variant, "memory")), "weights_bytes")
    speed = decode_speed(run, variant)
    return speed * weights / copy_bytes_per_s if speed and weights else None


def speed_table(run: Run, copy_bytes_per_s: float, eager: float | None) -> list[str]:
    """Memory and speed of each variant, with its share of the bound.

    ``eager``: tokens per second of FP16 decoded step by step, from a run of its own.
    """
    rows = []
    for variant in variants(run):
        memory = run.records.get((variant, "memory"))
        weights = value(memory, "weights_bytes")
        peak = value(memory, "vram_peak_bytes") or value(memory, "ram_peak_bytes")
        decode = decode_speed(run, variant)
        rows.append(
            [
                variant,
                shown(ratio(weights, GB)),
                shown(value(memory, "bits_per_weight")),
                shown(ratio(peak, GB)),
                shown(value(run.records.get((variant, "throughput")), "prefill_tokens_per_s"), 0),
                shown(decode, 1),
                shown(ratio(decode, decode_speed(run, "fp16"))),
                shown(ratio(decode, eager)),
                shown(of_bound(run, variant, copy_bytes_per_s)),
            ]
        )
    head = (
        "variant | weights GB | bits per weight | peak GB | prefill tok/s | decode tok/s | to fp16 "
        "| to eager fp16 | of bound"
    )
    return table(head, "lrrrrrrrr", rows)


def modes_table(runs: Mapping[str, Run]) -> list[str]:
    """Decode tokens per second by way of decoding."""
    found = {mode: runs[f"shape-{mode}"] for mode in MODES if f"shape-{mode}" in runs}
    names = dict.fromkeys(variant for run in found.values() for variant in variants(run))
    rows = [
        [name, *(shown(decode_speed(run, name), 1) for run in found.values())] for name in names
    ]
    lines = table(" | ".join(["decode tok/s", *found]), "l" + "r" * len(found), rows)
    return [*lines, *(note for run in found.values() for note in notes(run))]


def notes(run: Run) -> list[str]:
    """What did not go as asked: failures, and notes of the records."""
    said = [f"- {key}: {reason}" for key, reason in run.failed.items()]
    for (variant, task), record in run.records.items():
        said += [f"- {variant}/{task}: {note}" for note in record.notes]
    return ["", *dict.fromkeys(said)] if said else []


def memory_lines(run: Run) -> list[str]:
    """How far the memory before each load strays: what an earlier variant left behind."""
    sides = {v: r.side for (v, task), r in run.records.items() if task == "memory"}
    before = {v: side["baseline_bytes"] for v, side in sides.items() if "baseline_bytes" in side}
    if not before:
        return []
    spread = max(before.values()) - min(before.values())
    lines = ["", f"Memory in use before each load differs by {spread / 1e6:,.1f} MB at most."]
    for variant, side in sides.items():
        reserved = side.get("torch_reserved_peak_bytes")
        peak = value(run.records[variant, "memory"], "vram_peak_bytes")
        if reserved and peak:
            lines.append(
                f"- {variant}: NVML {peak / GB:.3f} GB, torch reserved {reserved / GB:.3f} GB"
            )
    return lines


def agreement_table(runs: Mapping[str, Run]) -> list[str]:
    """The same figures from every device, and how many answers differ from the first one's."""
    first, *others = runs.values()
    rows, unlike = [], []
    for variant in variants(first):
        for task, name, digits in AGREEMENT:
            records = [run.records.get((variant, task)) for run in runs.values()]
            if not alike(records):
                unlike.append(f"- {variant}/{task}: measured with different settings or data")
                continue
            cells = [shown(value(record, name), digits) for record in records]
            rows.append([variant, name, *cells])
        own = first.records.get((variant, "mmlu"))
        if own and alike([run.records.get((variant, "mmlu")) for run in runs.values()]):
            differing = [answers_that_differ(own, run.records.get(own.key)) for run in others]
            rows.append([variant, f"answers that differ of {len(own.items)}", "", *differing])
    lines = table(" | ".join(["variant", "figure", *runs]), "ll" + "r" * len(runs), rows)
    return [*lines, "", *unlike]


def alike(records: list[Record | None]) -> bool:
    """Whether those there are were measured on the same data in the same way."""
    kept: list[dict[str, Any]] = [
        {key: setting for key, setting in record.settings.items() if key not in WHERE}
        for record in records
        if record
    ]
    return all(each == kept[0] for each in kept)


def answers_that_differ(own: Record, other: Record | None) -> str:
    """A letter a question, upper case where it is right."""
    if other is None:
        return "–"
    pairs = zip(own.items.column("answer"), other.items.column("answer"), strict=True)
    return str(sum(a.upper() != b.upper() for a, b in pairs))


def targets(runs: Mapping[str, Run], ceilings: Mapping[str, Any]) -> list[str]:
    """What was aimed at, beside what was found."""
    lines = [f"- weights analysed per second, at least 50: {billions(ceilings)} billion"]
    run, eager = runs.get("shape"), decode_speed(runs.get("shape-eager"), "fp16")
    if run is None:
        return lines
    share = shown(of_bound(run, "fp16", ceilings["copy_bytes_per_s"]))
    lines.append(f"- fp16 decode, share of the bound, at least 0.60: {share}")
    for variant in variants(run):
        if "ewq-" in variant:
            least = 2.0 if variant.startswith("gguf") else 1.3
            found = shown(ratio(decode_speed(run, variant), eager))
            lines.append(f"- {variant} decode to eager fp16, at least {least}: {found}")
    return lines


def billions(ceilings: Mapping[str, Any]) -> str:
    """Weights counted per second, and with rounding errors where those were measured."""
    return f"{ceilings['weights_counted_per_s'] / 1e9:,.1f}"


def available(folder: Path) -> dict[str, Run]:
    """The runs that can be read, by the names of their files."""
    runs = {}
    for file in sorted(folder.glob("*.json")):
        if file.stem == "ceilings" or file.stat().st_size == 0:
            continue
        try:
            runs[file.stem] = read_run(file)
        except InputError as error:
            print(f"- {error}")
    return runs


def main(folder: Path) -> None:
    """Print the summary of a results folder; what is missing is said."""
    ceilings = json.loads((folder / "ceilings.json").read_text(encoding="utf-8"))
    runs = available(folder)
    copied = ceilings["copy_bytes_per_s"]
    print(
        f"Copy bandwidth {copied / GB:,.0f} GB/s; {billions(ceilings)} billion weights/s counted."
    )
    print("\n## Targets\n")
    print("\n".join(targets(runs, ceilings)))
    for name, title in (("shape", "Random weights"), ("embedded", "Embedded model")):
        print(f"\n## {title}\n")
        if name not in runs:
            print("not measured")
            continue
        eager = decode_speed(runs.get("shape-eager"), "fp16") if name == "shape" else None
        print("\n".join(speed_table(runs[name], copied, eager)))
        print("\n".join(memory_lines(runs[name]) + notes(runs[name])))
    print("\n## Ways of decoding (random weights)\n")
    print("\n".join(modes_table(runs)) if "shape-eager" in runs else "not measured")
    print("\n## CPU against GPU (embedded model)\n")
    compared = {title: runs[name] for name, title in PLACES.items() if name in runs}
    print("\n".join(agreement_table(compared)) if len(compared) > 1 else "not measured")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
