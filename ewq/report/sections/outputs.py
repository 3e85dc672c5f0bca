"""What the models answered and wrote: flips of MMLU's answers against FP16, and samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice, takewhile
from typing import cast

from ewq.record import Record
from ewq.report.document import Excerpt, Excerpts, Paragraph, Plot, Section, Table
from ewq.report.plotting import WORSE, MapCell, map_plot
from ewq.report.rows import ReportedRun, VariantRow

NO_REFERENCE = (
    "This run holds no FP16 answers to the same questions: select fp16 together with the other "
    "variants to count flips by subject."
)


_Answers = Mapping[str, Counter[tuple[bool, bool]]]
"""Subject -> questions by whether the reference's answer was right and whether this one is."""


def flips(shown: ReportedRun) -> Section | None:
    """A map of subjects and variants, subjects with most flips first."""
    others = [r for r in shown.rows if "mmlu" in r.records and r is not shown.reference]
    if not others:
        return None
    base = shown.reference.records.get("mmlu") if shown.reference else None
    found = [(row.variant, _by_subject(row.records["mmlu"], base)) for row in others if base]
    counted = {variant: subjects for variant, subjects in found if subjects}
    parts = _drawn(counted) if counted else (Paragraph(NO_REFERENCE),)
    return Section("flips", "Answers that flipped", parts)


def _by_subject(record: Record, base: Record) -> _Answers:
    """Empty where the two were not asked the same questions."""
    same = all(record.settings.get(key) == base.settings.get(key) for key in ("data", "subjects"))
    if not same or not len(record.items) or not len(base.items):
        return {}
    pairs = zip(base.items.column("answer"), record.items.column("answer"), strict=True)
    subjects = cast("Sequence[tuple[str, int]]", record.settings.get("subjects") or ())
    # Letters of right answers are capitals.
    return {
        name: Counter((old.isupper(), new.isupper()) for old, new in islice(pairs, size))
        for name, size in subjects
    }


def _drawn(counted: Mapping[str, _Answers]) -> tuple[Paragraph | Plot, ...]:
    subjects = {name: own.total() for name, own in next(iter(counted.values())).items()}
    flipped = {name: sum(sum(_flips(own[name])) for own in counted.values()) for name in subjects}
    moved = sorted(filter(flipped.get, subjects), key=lambda name: -flipped[name])
    steady = len(subjects) - len(moved)
    intro = Paragraph(
        "A flip is an answer that became wrong or became right. Equal numbers of both leave the "
        "accuracy as it was, yet the model changed."
        + f" {steady} of {len(subjects)} subjects did not flip in any variant."
        * bool(steady)
    )
    if not moved:
        return (intro,)
    cells = {
        f"{name.replace('_', ' ')} ({subjects[name]})": [
            _cell(own[name]) for own in counted.values()
        ]
        for name in moved
    }
    caption = (
        "− became wrong, + became right; colour: their share of the subject's questions, whose "
        "number stands behind its name."
    )
    plot = Plot("flips", "Flips by subject", caption, Table(("Subject", *counted), ()))
    return (intro, map_plot(plot, cells, colorscale=WORSE, zmin=0.0))


def _flips(answers: Counter[tuple[bool, bool]]) -> tuple[int, int]:
    """How many became wrong, and right."""
    return answers[True, False], answers[False, True]


def _cell(answers: Counter[tuple[bool, bool]]) -> MapCell:
    wrong, right = _flips(answers)
    if not wrong and not right:
        return MapCell(0.0, "", "0")
    text = f"−{wrong} +{right}"
    return MapCell((wrong + right) / answers.total(), text, text)


_Texts = Mapping[str, Mapping[str, str]]
"""Name of a prompt -> ``prompt`` and ``text``."""


def samples(shown: ReportedRun) -> Section | None:
    """The same prompts continued by every variant; what differs from FP16's text is marked."""
    texts = {row.variant: found for row in shown.rows if (found := _texts(row))}
    if not texts:
        return None
    prompts = {name: sample["prompt"] for own in texts.values() for name, sample in own.items()}
    base: _Texts = texts.get(shown.reference.variant, {}) if shown.reference else {}
    marked = " Text is marked from its first difference from FP16's on." * bool(base)
    intro = Paragraph(f"Greedy decoding.{marked} A difference is not a fault: judge by reading.")
    groups = tuple(
        Excerpts(
            name,
            prompt,
            tuple(
                _excerpt(variant, own[name]["text"], None if own is base else base.get(name))
                for variant, own in texts.items()
                if name in own
            ),
        )
        for name, prompt in prompts.items()
    )
    return Section("samples", "Samples", (intro, *groups))


def _texts(row: VariantRow) -> _Texts:
    record = row.records.get("samples")
    stored = record.side.get("samples") if record else None
    return {
        str(sample.get("name")): {key: str(sample.get(key, "")) for key in ("prompt", "text")}
        for sample in (stored if isinstance(stored, list) else [])
        if isinstance(sample, Mapping)
    }


def _excerpt(variant: str, text: str, reference: Mapping[str, str] | None) -> Excerpt:
    if reference is None:
        return Excerpt(variant, text, "")
    pairs = zip(reference["text"], text, strict=False)
    same = "".join(new for _, new in takewhile(lambda pair: pair[0] == pair[1], pairs))
    note = "same as FP16" if text == reference["text"] else ""
    return Excerpt(variant, same, text[len(same) :], note)
