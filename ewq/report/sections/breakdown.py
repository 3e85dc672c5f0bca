"""Where a variant loses more than elsewhere: by domain of text, group, subject and prompt."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice, takewhile
from typing import cast

from ewq.record import Record
from ewq.report.document import Excerpt, Excerpts, Paragraph, Section, Table
from ewq.report.rows import (
    LM_EVAL,
    MMLU_TASKS,
    ReportedRun,
    VariantRow,
    figure_text,
    lm_eval_figures,
    reference_row,
)
from ewq.tasks.table import CHAT, OF_FAMILY

NO_REFERENCE = "This run holds no FP16 answers to the same questions: select fp16 too."
_TAIL = {"kld_mean": "KLD", "kld_p99": "p99", "kld_p999": "p99.9"}
_Answers = Mapping[str, Counter[tuple[bool, bool]]]
"""Subject -> questions by whether the reference's answer was right and whether this one is."""


def domains(shown: ReportedRun) -> Section | None:
    """Domains of text, tokens by FP16's confidence and depth, and groups of MMLU's subjects."""
    groups = (_group_table(task, shown.rows) for task in MMLU_TASKS)
    made = [_domain_table(shown.rows), _confidence_table(shown.rows), *groups]
    parts = tuple(part for part in made if part is not None)
    return Section("domains", "By domain", parts) if parts else None


def _names(rows: Sequence[VariantRow], task: str, prefix: str) -> list[str]:
    """What follows ``prefix`` in the metrics of a task."""
    records = (row.records.get(task) for row in rows)
    keys = (key for record in records if record for key in record.metrics)
    return list(dict.fromkeys(key[len(prefix) :] for key in keys if key.startswith(prefix)))


def _domain_table(rows: Sequence[VariantRow]) -> Table | None:
    paired = bool(_names(rows, "perplexity", "ln_ppl_ratio/"))
    prefix = "ln_ppl_ratio/" if paired else "perplexity/"
    found = _names(rows, "perplexity", prefix)
    if not found:
        return None

    def cell(row: VariantRow, name: str) -> str:
        if not paired:
            return figure_text(row.estimate("perplexity", prefix + name), 2)
        change = row.perplexity_change(f"/{name}")
        doubt = "~" * (change is not None and not change.differs_from_zero)
        return doubt + figure_text(change, 2, signed=True)

    measured = [row for row in rows if _names([row], "perplexity", prefix)]
    body = tuple((row.variant, *(cell(row, name) for name in found)) for row in measured)
    title = "Perplexity; nothing in this run was paired with FP16"
    if paired:
        title = "Change of perplexity from FP16 in %, paired on the same tokens; ~: not "
        title += "distinguishable from no change at 95 %, or of unknown error"
    return Table(("Variant", *found), body, title=title)


def _confidence_table(rows: Sequence[VariantRow]) -> Table | None:
    """Divergence and its tail wherever it was measured, and agreement by how sure FP16 is."""
    tasks = dict.fromkeys(t for row in rows for t in row.records if t.startswith("divergence"))
    found = dict.fromkeys(n for task in tasks for n in _names(rows, task, "top1_agreement/"))
    made = []
    for row, task in ((row, t) for row in rows for t in tasks if found and t in row.records):
        member = task.partition(OF_FAMILY)[2]
        where = {"": "texts", CHAT: "own answers"}.get(member, f"depth {member}")
        cells = {"Variant": row.variant, "On": where}
        for name, heading in _TAIL.items():
            cells[heading] = figure_text(row.estimate(task, name))
        for name in found:
            share = row.estimate(task, f"top1_agreement/{name}", 100)
            cells[f"{name.replace('_', ' ')} %"] = figure_text(share, 1)
        made.append(cells)
    title = "KLD; tokens agreed on in %, by the probability that FP16 gives its likeliest"
    return Table.of(made, "On", title=title) if made else None


def _group_table(task: str, rows: Sequence[VariantRow]) -> Table | None:
    """Accuracy by groups of subjects, where any variant did better than guessing."""
    measured = [row for row in rows if _names([row], task, "accuracy/")]
    guessed = {row.variant for row in measured if row.at_chance(task)}
    if len(guessed) == len(measured):
        return None
    groups = _names(measured, task, "accuracy/")
    body = tuple(
        (
            row.variant + "*" * (row.variant in guessed),
            *(figure_text(row.estimate(task, f"accuracy/{name}", 100), 1) for name in groups),
        )
        for row in measured
    )
    headings = ("Variant", *(name.replace("_", " ") for name in groups))
    title = f"{MMLU_TASKS[task]} by group of subjects, % ± standard error"
    return Table(headings, body, title=title + "; * guessing" * bool(guessed), folded=True)


def lm_eval(shown: ReportedRun) -> Section | None:
    """Every metric of lm-eval's tasks, with its change from FP16 document by document."""
    figures = lm_eval_figures(shown.rows)

    def cell(row: VariantRow, task: str, metric: str) -> str:
        change = row.estimate(task, f"delta/{metric}")
        doubt = "~" * (change is not None and not change.differs_from_zero)
        paired = f" ({doubt}{change.text(signed=True)})" if change else ""
        return figure_text(row.estimate(task, metric)) + paired

    body = tuple(
        (task.removeprefix(LM_EVAL), metric, *(cell(row, task, metric) for row in shown.rows))
        for task, metric in figures
    )
    title = "± standard error; in brackets: change from FP16 on the same documents, ~: none found"
    headings = ("Task", "Metric", *(row.variant for row in shown.rows))
    part = Table(headings, body, title=title)
    return Section("lm-eval", "Tasks of lm-evaluation-harness", (part,)) if body else None


def flips(shown: ReportedRun) -> Section | None:
    """MMLU's answers that changed against FP16: subjects by variants, most flips first."""
    reference = reference_row(shown.rows)
    others = [r for r in shown.rows if "mmlu" in r.records and r is not reference]
    if not others:
        return None
    base = reference.records.get("mmlu") if reference else None
    found = [(row.variant, _by_subject(row.records["mmlu"], base)) for row in others if base]
    counted = {variant: subjects for variant, subjects in found if subjects}
    parts = _flips_table(counted) if counted else (Paragraph(NO_REFERENCE),)
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


def _flips_table(counted: Mapping[str, _Answers]) -> tuple[Paragraph | Table, ...]:
    subjects = {name: own.total() for name, own in next(iter(counted.values())).items()}
    flipped = {
        name: sum(own[name][True, False] + own[name][False, True] for own in counted.values())
        for name in subjects
    }
    moved = sorted(filter(flipped.get, subjects), key=lambda name: -flipped[name])
    steady = len(subjects) - len(moved)
    still = f" {steady} of {len(subjects)} subjects did not flip in any variant." * bool(steady)
    text = "A flip is an answer that became wrong (−) or right (+); both change the model, "
    intro = Paragraph(f"{text}though they may leave its accuracy.{still}")
    names = [f"{name.replace('_', ' ')} ({subjects[name]})" for name in moved]
    cells = [[_flips_text(own[name]) for own in counted.values()] for name in moved]
    rows = tuple((name, *own) for name, own in zip(names, cells, strict=True))
    table = Table(("Subject (questions)", *counted), rows, title="Flips by subject", folded=True)
    return (intro, table) if moved else (intro,)


def _flips_text(answers: Counter[tuple[bool, bool]]) -> str:
    wrong, right = answers[True, False], answers[False, True]
    return f"−{wrong} +{right}" if wrong or right else "0"


def samples(shown: ReportedRun) -> Section | None:
    """The same prompts continued by every variant; what differs from FP16's text is marked."""
    texts = {row.variant: found for row in shown.rows if (found := _texts(row))}
    if not texts:
        return None
    prompts = {name: sample["prompt"] for own in texts.values() for name, sample in own.items()}
    reference = reference_row(shown.rows)
    base = texts.get(reference.variant, {}) if reference else {}
    marked = " Text is marked from its first difference from FP16's on." * bool(base)
    intro = Paragraph(f"Greedy decoding.{marked} A difference is not a fault: judge by reading.")
    groups = []
    for name, prompt in prompts.items():
        excerpts = (
            _excerpt(variant, own[name]["text"], None if own is base else base.get(name))
            for variant, own in texts.items()
            if name in own
        )
        groups.append(Excerpts(name, prompt, tuple(excerpts)))
    return Section("samples", "Samples", (intro, *groups))


def _texts(row: VariantRow) -> Mapping[str, Mapping[str, str]]:
    """Name of a prompt -> ``prompt`` and ``text``."""
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
