"""Whole runs of many variants: items first, metrics from them by the tasks' own code."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from ewq.measurement import Items, Metric, TaskResult
from ewq.record import Reason, Record, Verdict
from ewq.tasks import mmlu, perplexity, samples
from ewq.tasks.mmlu_scores import accuracy_metrics
from tests.make_runs import CHANCE, letters, stored_run

DOMAINS = ("code", "dialogue", "literature", "news", "science", "web")
SUBJECTS = {
    "anatomy": 30,
    "astronomy": 40,
    "college_mathematics": 20,
    "high_school_european_history": 35,
    "international_law": 25,
    "virology": 30,
}
BLOCKS = 30
DOCUMENTS = 8
"""Documents in each domain."""

# Variant -> share of the reference's bytes, damage in nats, tokens per second, factor of its plan.
VARIANTS = {
    "fp16": (1.0, 0.0, 60.0, None),
    "ewq-1.0": (0.71, 0.0015, 58.0, 1.0),
    "ewq-0.8": (0.68, 0.003, 57.0, 0.8),
    "ewq-0.65": (0.64, 0.006, 59.0, 0.65),
    "ewq-0.5": (0.58, 0.012, 61.0, 0.5),
    "bnb-int8": (0.65, 0.011, 31.0, None),
    "bnb-nf4": (0.42, 0.09, 66.0, None),
    "gguf-f16": (1.0, 0.0001, 64.0, None),
    "gguf-q8_0": (0.54, 0.001, 92.0, None),
    "gguf-q4_k_m": (0.36, 0.05, 128.0, None),
    "gguf-ewq-0.65": (0.44, 0.008, 105.0, 0.65),
    "gguf-ewq-0.5": (0.40, 0.016, 112.0, 0.5),
}
TASKS = ("mmlu", "perplexity", "divergence", "throughput", "memory", "samples")
FP16_BYTES = 269_000_000


def write_example(
    folder: Path,
    variants=tuple(VARIANTS),
    tasks=TASKS,
    *,
    model="HuggingFaceTB/SmolLM2-135M",
    at_chance=False,
    drift=0.0,
    change=lambda record: record,
    **stored,
) -> Path:
    """A stored run; ``change`` edits each record, ``stored`` goes to :func:`stored_run`."""
    makers = {
        "mmlu": lambda v: _mmlu(v, at_chance),
        "mmlu_cloze": lambda v: replace(_mmlu(v, False), task="mmlu_cloze"),
        "perplexity": lambda v: _perplexity(v, drift),
        "divergence": _divergence,
        "throughput": lambda v: _throughput(v, drift),
        "memory": _memory,
        "samples": _samples,
    }
    records = [
        change(_record(makers[task](variant), variant, model))
        for variant in variants
        for task in tasks
    ]
    return stored_run(folder, records, **stored)


def entropies() -> list[float]:
    x = np.linspace(0, 1, BLOCKS)
    return [float(v) for v in 5.2 + 0.4 * np.sin(4 * x) + _rng("entropy").normal(0, 0.08, BLOCKS)]


def _record(result: TaskResult, variant: str, model: str) -> Record:
    verdict = {"bnb-nf4": Verdict.FAIL, "ewq-0.5": Verdict.INCONCLUSIVE}.get(variant, Verdict.PASS)
    gated = result.task == "perplexity"
    return Record(
        model=model,
        fingerprint="sha256:" + "1" * 64,
        variant=variant,
        task=result.task,
        tier="quick",
        settings={"device": "cuda:0", "dtype": "float16", **result.settings},
        metrics=result.metrics,
        items=result.items,
        verdict=verdict if gated else Verdict.PASS,
        reasons=(Reason(verdict, f"ln_ppl_ratio is beyond max 0.05 for {variant}"),)
        if gated and verdict is not Verdict.PASS
        else (),
        doubts=result.doubts,
        notes=result.notes,
        side=result.side,
    )


def _mmlu(variant: str, at_chance: bool) -> TaskResult:
    damage = VARIANTS[variant][1]
    base = _rng("mmlu").random(sum(SUBJECTS.values())) < (0.27 if at_chance else 0.55)
    flipped = _rng("mmlu" + variant).random(len(base)) < min(0.4, 4 * damage)
    right = base ^ flipped
    settings = {"shots": 5, "data": "sha256:d", "subjects": [[s, n] for s, n in SUBJECTS.items()]}

    def result(answers):
        items = "".join("A" if r else "b" for r in answers)
        return TaskResult("mmlu", settings, accuracy_metrics(items, SUBJECTS), letters(items))

    return _paired(
        mmlu,
        variant,
        result(right),
        result(base),
        doubts=CHANCE if at_chance else (),
    )


def _perplexity(variant: str, drift: float) -> TaskResult:
    def result(damage, noise):
        rng, columns = _rng("texts"), {"domain": [], "nll": []}
        for domain in (d for d in DOMAINS for _ in range(DOCUMENTS)):
            nll = rng.normal(2.4 + 0.2 * DOMAINS.index(domain), 0.15)
            columns["domain"].append(domain)
            columns["nll"].append(512 * (nll + damage + noise.normal(0, 0.004)))
        count = len(columns["nll"])
        columns |= {"tokens": [512] * count, "bytes": [2200] * count}
        items = Items({**columns, "document": list(range(count))})
        return TaskResult(
            "perplexity",
            {"definition": "disjoint", "window": 2048, "data": "sha256:t"},
            perplexity._metrics(items),
            items,
        )

    damage = VARIANTS[variant][1]
    quiet = _Quiet() if variant == "fp16" else _rng("noise" + variant)
    return _paired(perplexity, variant, result(damage + drift, quiet), result(drift, _Quiet()))


def _divergence(variant: str) -> TaskResult:
    damage = VARIANTS[variant][1]
    metrics = {
        "kld_mean": Metric(1.1 * damage, "nats", False, 4096, 0.05 * damage),
        "kld_p99": Metric(9 * damage, "nats", False, 4096, 0.8 * damage),
        "top1_agreement": Metric(max(0.0, 1 - 2 * damage), "fraction", True, 4096, 0.002),
    }
    return TaskResult("divergence", {"window": 512, "data": "sha256:t"}, metrics)


def _throughput(variant: str, drift: float) -> TaskResult:
    speed = VARIANTS[variant][2] * (1 - drift)
    metrics = {
        f"decode_tokens_per_s{suffix}": Metric(speed * share, "tokens/s", True, 10, 0.01 * speed)
        for suffix, share in (("", 1.0), ("_p10", 0.97), ("_p90", 1.02))
    }
    metrics["decode_ratio"] = Metric(speed / 60.0, "ratio", True, 10, 0.01)
    return TaskResult("throughput", {"prompt_tokens": 512, "new_tokens": 128}, metrics)


def _memory(variant: str) -> TaskResult:
    share, _, _, factor = VARIANTS[variant]
    size_bytes = float(round(FP16_BYTES * share))
    metrics = {
        "weights_bytes": Metric(size_bytes, "bytes", False, 1),
        "bits_per_weight": Metric(16 * share, "bits", False, 1),
        "vram_peak_bytes": Metric(1.4 * size_bytes, "bytes", False, 1),
        "load_s": Metric(2.5, "s", False, 1),
    }
    side = {} if factor is None else {"plan": _plan(factor)}
    return TaskResult("memory", {"instrument": "nvml"}, metrics, side=side)


def _plan(factor: float) -> dict:
    values = entropies()
    mean, std = float(np.mean(values)), float(np.std(values))
    low = mean - factor * std

    def precision(entropy):
        return "raw" if entropy >= mean else "8bit" if entropy >= low else "4bit"

    return {
        "rule": {"kind": "factor", "factor": factor},
        "scorer": "histogram",
        "mean": mean,
        "std": std,
        "thresholds": {"raw": mean, "8bit": low},
        "blocks": [[i, v, precision(v)] for i, v in enumerate(values)],
    }


def _samples(variant: str) -> TaskResult:
    kept = max(4, int(40 * (1 - 8 * VARIANTS[variant][1])))
    items, shown = {}, []
    for name, prompt in samples.PROMPTS.items():
        words = _rng(name).integers(0, 900, 40).tolist()
        changed = words[:kept] + [900 + w for w in words[kept:]]
        items[name] = changed if kept < 40 else words
        text = " ".join(f"word{w}" for w in items[name])
        shown.append({"name": name, "prompt": prompt, "text": text})
    stored = Items({"prompt": list(items), "tokens": list(items.values())})
    return TaskResult("samples", {"new_tokens": 40}, {}, stored, side={"samples": shown})


class _Quiet:
    def normal(self, *_):
        return 0.0


def _paired(task, variant, result: TaskResult, reference: TaskResult, doubts=()) -> TaskResult:
    metrics = dict(result.metrics)
    if variant != "fp16":
        metrics |= task.pair(result, reference)
    return TaskResult(result.task, result.settings, metrics, result.items, doubts, side=result.side)


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))
