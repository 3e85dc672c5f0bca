"""The runs that a report must cope with, by name."""

from dataclasses import replace
from pathlib import Path

from ewq.measurement import Metric
from ewq.record import Reason
from tests.report.example_runs import TASKS, VARIANTS, write_example

HOSTILE = (
    "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>"
    "<!--<a href=javascript:window.pwned=1>&lt;b&gt;{title}\u202e\x00\ud800"
)
"""Text that tries every door: tags, comments, entities, templates, bidi, invalid characters."""


def hostile(record):
    """A record whose every text from data is hostile."""
    side = dict(record.side or {})
    if "samples" in side:
        side["samples"] = [
            {"name": each["name"] + HOSTILE, "prompt": HOSTILE, "text": HOSTILE + record.variant}
            for each in side["samples"]
        ]
    if "plan" in side:
        side["plan"] = {**side["plan"], "scorer": HOSTILE}
    settings = dict(record.settings)
    if "subjects" in settings:
        settings["subjects"] = [[name + HOSTILE, n] for name, n in settings["subjects"]]
    metrics = dict(record.metrics)
    if record.task == "perplexity":
        metrics["perplexity/" + HOSTILE] = Metric(9.0, "ratio", False, 10)
        metrics["ln_ppl_ratio/" + HOSTILE] = Metric(0.01, "nats", False, 10)
    variant = record.variant if record.variant == "fp16" else record.variant + HOSTILE
    return replace(
        record,
        variant=variant,
        settings=settings | {HOSTILE: HOSTILE},
        metrics=metrics,
        side=side,
        reasons=(Reason(record.verdict, HOSTILE, HOSTILE),),
        notes=(HOSTILE,),
    )


def _history(folder: Path) -> list[Path]:
    few = ("fp16", "ewq-0.65", "bnb-nf4")
    return [
        write_example(folder, few, number=day, day=day, commit=f"{day}" * 40, drift=0.01 * day)
        for day in (1, 2, 3)
    ]


def _partial(folder: Path) -> list[Path]:
    selected = [[variant, task] for variant in ("fp16", "ewq-0.65") for task in TASKS]
    session = {
        "complete": False,
        "selected": selected,
        "failed": {"ewq-0.65/mmlu": "out of memory <b>"},
    }
    return [write_example(folder, ("fp16",), ("memory", "perplexity"), session=session)]


CASES = {
    "twelve variants": lambda folder: [write_example(folder)],
    "one variant": lambda folder: [write_example(folder, ("fp16",))],
    "no reference": lambda folder: [write_example(folder, ("ewq-0.65", "bnb-nf4"))],
    "missing tasks": lambda folder: [write_example(folder, tasks=("throughput", "memory"))],
    "partial": _partial,
    "letters at chance": lambda folder: [
        write_example(folder, tasks=("mmlu", "mmlu_cloze", "memory"), at_chance=True)
    ],
    "history": _history,
    "hostile": lambda folder: [
        write_example(folder, ("fp16", "ewq-0.65", "bnb-nf4"), model=HOSTILE, change=hostile)
    ],
}
assert len(VARIANTS) == 12
