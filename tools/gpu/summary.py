"""The figures of ``run.sh`` as Markdown: speed against the bandwidth bound, CPU against GPU."""

# ruff: noqa: T201 - a script whose product is its output
from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ewq.errors import InputError
from ewq.record import Record
from ewq.storage.runs import Run, read_run

GB = 1e9
MODES = {"eager": "shape-eager", "automatic": "shape", "compile": "shape-compile"}
"""Ways of decoding, and the runs that took them."""
PLACES = {"agreement-cpu": "CPU", "agreement-gpu-float32": "GPU float32", "agreement-gpu": "GPU"}
WHERE = ("device", "dtype", "decode_mode")
"""Settings in which the compared runs differ on purpose; none of what is compared is decoded."""
QUESTIONS = "mmlu_cloze"
"""Letters are not asked of variants where FP16 guesses them, as the embedded model does."""
AGREEMENT = (
    ("perplexity", "perplexity", 4),
    ("perplexity", "ln_ppl_ratio", 5),
    ("divergence", "kld_mean", 6),
    (QUESTIONS, "accuracy", 4),
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


def decode_mode(run: Run, variant: str) -> str:
    """How a variant decoded; ratios of two ways are not of two models alone."""
    record = run.records.get((variant, "throughput"))
    return str(record.side.get("decode_mode") or "") if record else ""


def embedding_bits(variant: str) -> float | None:
    """Bits a weight of the embedding takes, where that is the same in every model."""
    if not variant.startswith("gguf"):
        return 16
    return {"gguf-q8_0": 8.5, "gguf-f16": 16}.get(variant, 16 if "-ewq-" in variant else None)


def read_bytes(run: Run, variant: str, config: Mapping[str, Any]) -> float | None:
    """Bytes that decoding one token reads: all weights, but one row of an untied embedding."""
    weights = value(run.records.get((variant, "memory")), "weights_bytes")
    if config.get("tie_word_embeddings", True) or weights is None:
        return weights
    bits = embedding_bits(variant)
    return bits and weights - config["vocab_size"] * config["hidden_size"] * bits / 8


def of_bound(
    run: Run, variant: str, copy_bytes_per_s: float | None, config: Mapping[str, Any]
) -> float | None:
    """Share of the speed at which what a decode step needs could be read."""
    needed = read_bytes(run, variant, config)
    speed = decode_speed(run, variant)
    return speed * needed / copy_bytes_per_s if speed and needed and copy_bytes_per_s else None


def speed_table(
    run: Run, copy_bytes_per_s: float | None, eager: float | None, config: Mapping[str, Any]
) -> list[str]:
    """Memory and speed of each variant, with its share of the bound.

    Args:
        run: what was measured.
        copy_bytes_per_s: the card's bandwidth.
        eager: tokens per second of FP16 decoded step by step, from a run of its own.
        config: of the model; empty where its head is tied to its embedding.
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
                decode_mode(run, variant),
                shown(ratio(decode, decode_speed(run, "fp16"))),
                shown(ratio(decode, eager)),
                shown(of_bound(run, variant, copy_bytes_per_s, config)),
            ]
        )
    head = (
        "variant | weights GB | bits per weight | peak GB | prefill tok/s | decode tok/s | mode "
        "| to fp16 | to eager fp16 | of bound"
    )
    return table(head, "lrrrrrlrrr", rows)


def modes_table(runs: Mapping[str, Run]) -> list[str]:
    """Decode tokens per second by way of decoding."""
    found = {mode: runs[name] for mode, name in MODES.items() if name in runs}
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
        said += [f"- {variant}/{task}: {note}" for note in record.remarks]
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
        own = first.records.get((variant, QUESTIONS))
        if own and alike([run.records.get((variant, QUESTIONS)) for run in runs.values()]):
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


def targets(
    runs: Mapping[str, Run], ceilings: Mapping[str, float], config: Mapping[str, Any]
) -> list[str]:
    """What was aimed at, beside what was found."""
    lines = [
        "- weights analysed per second, from the page cache, at least 10 billion: "
        f"{billions(ceilings, 'analysed')}"
    ]
    run, eager = runs.get("shape"), decode_speed(runs.get("shape-eager"), "fp16")
    if run is None:
        return lines
    share = shown(of_bound(run, "fp16", ceilings.get("copy_bytes_per_s"), config))
    lines.append(f"- fp16 decode, share of the bound, at least 0.60: {share}")
    for variant in variants(run):
        if "ewq-" in variant:
            least = 2.0 if variant.startswith("gguf") else 1.3
            found = shown(ratio(decode_speed(run, variant), eager))
            lines.append(f"- {variant} decode to eager fp16, at least {least}: {found}")
    return lines


def billions(ceilings: Mapping[str, float], what: str) -> str:
    """Weights ``counted`` or ``analysed`` per second."""
    return shown(ratio(ceilings.get(f"weights_{what}_per_s"), 1e9), 1)


def read_json(file: Path) -> dict[str, Any]:
    """An object; empty where there is no such file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


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


def together(runs: Mapping[str, Run]) -> dict[str, Run]:
    """A model's variants as one run where they were measured apart; what came first stays."""
    joined = dict(runs)
    for name, other in (("shape", "shape-gguf"), ("embedded", "embedded-fit")):
        parts = [runs[each] for each in (name, other) if each in runs]
        if parts:
            records = {key: record for part in parts[::-1] for key, record in part.records.items()}
            first = {key: records[key] for part in parts for key in part.records}
            failed = {key: reason for part in parts for key, reason in part.failed.items()}
            joined[name] = replace(parts[0], records=first, failed=failed)
    return joined


def main(folder: Path) -> None:
    """Print the summary of a results folder; what is missing is said."""
    ceilings, config = read_json(folder / "ceilings.json"), read_json(folder / "shape.config")
    runs = together(available(folder))
    copied = ceilings.get("copy_bytes_per_s")
    print(
        f"Copy bandwidth {shown(ratio(copied, GB), 0)} GB/s; "
        f"{billions(ceilings, 'counted')} billion weights/s counted in the card's memory."
    )
    print("\n## Targets\n")
    print("\n".join(targets(runs, ceilings, config)))
    for name, title in (("shape", "Random weights"), ("embedded", "Embedded model")):
        print(f"\n## {title}\n")
        if name not in runs:
            print("not measured")
            continue
        own = name == "shape"
        eager = decode_speed(runs.get("shape-eager"), "fp16") if own else None
        print("\n".join(speed_table(runs[name], copied, eager, config if own else {})))
        print("\n".join(memory_lines(runs[name]) + notes(runs[name])))
    print("\n## Ways of decoding (random weights)\n")
    print("\n".join(modes_table(runs)) if "shape-eager" in runs else "not measured")
    print("\n## CPU against GPU (embedded model)\n")
    compared = {title: runs[name] for name, title in PLACES.items() if name in runs}
    print("\n".join(agreement_table(compared)) if len(compared) > 1 else "not measured")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
