"""The figures of ``run.sh`` as Markdown: speed against the bandwidth bound, CPU against GPU."""

# ruff: noqa: T201 - a script whose product is its output
from __future__ import annotations

import json
import sys
from pathlib import Path

from ewq.record import Record
from ewq.storage.runs import Run, read_run

GB = 1e9


def value(record: Record | None, name: str) -> float | None:
    """A metric's value where it was measured."""
    metric = record.metrics.get(name) if record else None
    return metric.value if metric else None


def shown(number: float | None, digits: int = 2) -> str:
    """A number for a table."""
    return "–" if number is None else f"{number:,.{digits}f}"


def variants(run: Run) -> list[str]:
    """Variants in the order they were measured."""
    return list(dict.fromkeys(variant for variant, _ in run.records))


def speed_table(run: Run, copy_bytes_per_s: float) -> list[str]:
    """Memory and speed of each variant, with its share of the bound.

    A decode step reads every weight once, so tokens per second are at most
    ``copy_bytes_per_s / weights_bytes``.
    """
    lines = [
        "| variant | weights GB | peak GB | prefill tok/s | decode tok/s | to fp16 | of bound |",
        "| :-- | --: | --: | --: | --: | --: | --: |",
    ]
    for variant in variants(run):
        memory = run.records.get((variant, "memory"))
        speed = run.records.get((variant, "throughput"))
        weights = value(memory, "weights_bytes")
        peak = value(memory, "vram_peak_bytes") or value(memory, "ram_peak_bytes")
        decode = value(speed, "decode_tokens_per_s")
        bound = decode * weights / copy_bytes_per_s if decode and weights else None
        cells = [
            shown(weights and weights / GB),
            shown(peak and peak / GB),
            shown(value(speed, "prefill_tokens_per_s"), 0),
            shown(decode, 1),
            shown(value(speed, "decode_ratio")),
            shown(bound),
        ]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return lines


AGREEMENT = (
    ("perplexity", "perplexity", 4),
    ("perplexity", "ln_ppl_ratio", 5),
    ("divergence", "kld_mean", 6),
    ("mmlu", "accuracy", 4),
)


def agreement_table(gpu: Run, cpu: Run) -> list[str]:
    """The same figures from both devices, and how many answers differ."""
    lines = ["| variant | figure | CPU | GPU |", "| :-- | :-- | --: | --: |"]
    for variant in variants(cpu):
        for task, name, digits in AGREEMENT:
            both = [value(run.records.get((variant, task)), name) for run in (cpu, gpu)]
            cells = " | ".join(shown(number, digits) for number in both)
            lines.append(f"| {variant} | {name} | {cells} |")
        records = [run.records.get((variant, "mmlu")) for run in (cpu, gpu)]
        answers = [str(record.items) for record in records if record]
        if len(answers) == 2 and len(answers[0]) == len(answers[1]):
            differing = sum(a.upper() != b.upper() for a, b in zip(*answers, strict=True))
            lines.append(
                f"| {variant} | answers that differ | | {differing} of {len(answers[0])} |"
            )
    return lines


def main(folder: Path) -> None:
    """Print the summary of a results folder; what is missing is said."""
    ceilings = json.loads((folder / "ceilings.json").read_text(encoding="utf-8"))
    copied = ceilings["copy_bytes_per_s"]
    print(f"Copy bandwidth {copied / GB:,.0f} GB/s; entropy analysis")
    print(f"{ceilings['weights_counted_per_s'] / 1e9:.1f} billion weights/s.")
    for name, title in (("shape", "Random weights"), ("embedded", "Embedded model")):
        file = folder / f"{name}.json"
        print(f"\n## {title}\n")
        print("\n".join(speed_table(read_run(file), copied)) if file.is_file() else "not measured")
    both = folder / "embedded.json", folder / "embedded-cpu.json"
    if all(file.is_file() for file in both):
        print("\n## CPU against GPU\n")
        print("\n".join(agreement_table(*map(read_run, both))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
