"""Records and stored runs as the plugin writes them, for tests of gates and comparisons."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ewq.measurement import NO_ITEMS, Doubt, DoubtKind, Items, Metric
from ewq.record import Record, Verdict

GPU = {
    "device": "cuda:0",
    "gpu": "NVIDIA H100 80GB HBM3",
    "driver": "580.1",
    "cuda": "13.0",
    "vram_bytes": 85_000_000_000,
    "torch": "2.13.0",
    "cpu": "Xeon",
    "cores": 16,
}
COMMIT = "a" * 40
CHANCE = (Doubt(DoubtKind.CHANCE, "accuracy 0.25 is at chance level"),)
NOISY = (Doubt(DoubtKind.NOISE, "times of decode vary by 20%"),)
THROTTLED = (Doubt(DoubtKind.THROTTLING, "the GPU was too hot"),)
SUBJECTS = [["anatomy", 100], ["virology", 100]]


def metric(value, *, stderr=None, n=200, better=True, unit="fraction"):
    return Metric(value, unit, better, n, stderr)


def record(task="mmlu", variant="ewq-0.65", metrics=None, **changes):
    base = {
        "model": "tiny",
        "fingerprint": "sha256:" + "1" * 64,
        "variant": variant,
        "task": task,
        "tier": "smoke",
        "settings": {"shots": 5, "data": "sha256:d"},
        "metrics": metrics if metrics is not None else {"accuracy": metric(0.7, stderr=0.03)},
        "items": NO_ITEMS,
        "verdict": Verdict.PASS,
    }
    return Record(**(base | changes))


def answers(right: int, wrong: int) -> str:
    return "A" * right + "b" * wrong


def letters(answers: str) -> Items:
    """MMLU items: a letter a question, upper case where it is right."""
    return Items({"answer": answers})


def mmlu(items: str, variant="ewq-0.65", **changes):
    """An MMLU record with the accuracy its items have."""
    n = len(items)
    share = sum(map(str.isupper, items)) / n
    error = (share * (1 - share) / (n - 1)) ** 0.5
    metrics = {"accuracy": metric(share, stderr=error, n=n)}
    settings = {"shots": 5, "data": "sha256:d", "subjects": [["anatomy", n]]}
    return record("mmlu", variant, metrics, items=letters(items), settings=settings, **changes)


def stored_run(
    folder: Path,
    records: Sequence[Record],
    *,
    number: int = 1,
    commit: str | None = COMMIT,
    dirty: bool = False,
    day: int = 1,
    machine: Mapping | None = GPU,
    session: Mapping | None = None,
    foreign: bool = False,
) -> Path:
    """Write what pytest-benchmark stores of such a session; returns its path."""
    document = {
        "machine_info": {"node": "vm", **({} if foreign else {"ewq": dict(machine)})},
        "commit_info": {"id": commit or "unversioned", "dirty": dirty, "branch": "main"},
        "benchmarks": [_benchmark(each) for each in records],
        "datetime": f"2026-01-{day:02}T12:00:00.000000+00:00",
        "version": "5.3.1",
    }
    if not foreign:
        standard = {
            "schema": 1,
            "complete": True,
            "selected": [list(each.key) for each in records],
            "failed": {},
            "exit_status": 0,
        }
        document["ewq"] = standard | dict(session or {})
    path = folder / "Linux-CPython-3.11-64bit" / f"{number:04}_{commit}_20260101.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def _benchmark(each: Record):
    return {
        "group": each.task,
        "name": f"test_{each.task}[{each.variant}]",
        "fullname": f"benchmarks/test_{each.task}.py::test_{each.task}[{each.variant}]",
        "params": {"variant": each.variant},
        "param": each.variant,
        "extra_info": {"ewq": each.to_json()},
        "options": {"disable_gc": False},
        "stats": {"min": 1.0, "max": 1.0, "mean": 1.0, "rounds": 1, "data": [1.0]},
    }
