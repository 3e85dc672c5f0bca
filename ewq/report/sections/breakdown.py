"""Where a variant loses more than elsewhere: by domain of text, group of subjects and prompt."""

from collections.abc import Mapping, Sequence
from itertools import product, takewhile

from ewq.gating.gates import broken_and_mended
from ewq.report.document import Excerpts, Paragraph, Section, Table
from ewq.report.rows import (
    LM_EVAL,
    MMLU_TASKS,
    Estimate,
    ReportedRun,
    VariantRow,
    figure_text,
    lm_eval_figures,
    reference_row,
)
from ewq.tasks.table import CHAT, OF_FAMILY

_PERPLEXITY = (
    "Change of perplexity from FP16 in %, paired on the same tokens; ~: not distinguishable from "
    "no change at 95 %, or of unknown error"
)
_TAIL = {"kld_mean": "KLD", "kld_p99": "p99", "kld_p999": "p99.9"}
_Texts = Mapping[str, Mapping[str, str]]
"""Name of a prompt -> ``prompt`` and ``text``."""


def domains(shown: ReportedRun) -> Section | None:
    """Domains of text, tokens by FP16's confidence and depth, and groups of MMLU's subjects."""
    made = [_parts_table(shown.rows, "perplexity", "ln_ppl_ratio/", _PERPLEXITY)]
    made.append(_confidence_table(shown.rows))
    for task, title in MMLU_TASKS.items():
        title += " by group of subjects, % ± standard error; * guessing"
        made.append(_parts_table(shown.rows, task, "accuracy/", title))
    parts = tuple(part for part in made if part is not None)
    return Section("domains", "By domain", parts) if parts else None


def _parts_table(rows: Sequence[VariantRow], task: str, prefix: str, title: str) -> Table | None:
    """A figure by the parts of a task's data; ``None`` unless any variant beats guessing."""
    measured = [row for row in rows if _names([row], task, prefix)]
    if all(row.at_chance(task) for row in measured):
        return None

    def cell(row: VariantRow, name: str) -> str:
        if task in MMLU_TASKS:
            return figure_text(row.estimate(task, name, 100), 1)
        change = row.metric(task, name)
        return _change_text(Estimate.percent_change(change) if change else None, 2)

    names = _names(measured, task, prefix)
    cells = [[cell(row, prefix + name) for name in names] for row in measured]
    variants = [row.variant + "*" * row.at_chance(task) for row in measured]
    body = tuple((name, *own) for name, own in zip(variants, cells, strict=True))
    headings = ("Variant", *(name.replace("_", " ") for name in names))
    return Table(headings, body, title=title, folded=task in MMLU_TASKS)


def _change_text(change: Estimate | None, digits: int | None = None) -> str:
    doubt = "~" * (change is not None and not change.differs_from_zero)
    return doubt + figure_text(change, digits, signed=True)


def _names(rows: Sequence[VariantRow], task: str, prefix: str) -> list[str]:
    """What follows ``prefix`` in the metrics of a task."""
    records = (row.records.get(task) for row in rows)
    keys = (key for record in records if record for key in record.metrics)
    return list(dict.fromkeys(key[len(prefix) :] for key in keys if key.startswith(prefix)))


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


def lm_eval(shown: ReportedRun) -> Section | None:
    """Every metric of lm-eval's tasks, with its change from FP16 document by document."""
    figures = lm_eval_figures(shown.rows)

    def cell(row: VariantRow, task: str, metric: str) -> str:
        change = row.estimate(task, f"delta/{metric}")
        paired = f" ({_change_text(change)})" if change else ""
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
    """MMLU's answers that changed against FP16, by direction; the changes cancel in accuracies."""
    made = []
    for row, task in product(shown.rows, MMLU_TASKS):
        delta, flipped = (row.metric(task, name) for name in ("accuracy_delta", "flips"))
        if delta and flipped:
            broken, mended = broken_and_mended(delta, flipped)
            cells = {"Variant": row.variant, "Questions": f"{MMLU_TASKS[task]}, {delta.n}"}
            cells |= {"Became wrong": str(broken), "Became right": str(mended)}
            made.append(cells | {"McNemar p": figure_text(row.estimate(task, "mcnemar_p"), 3)})
    table = Table.of(made, "Questions")
    return Section("flips", "Answers that flipped", (table,)) if made else None


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
    shown_texts = (_excerpts(name, prompt, texts, base) for name, prompt in prompts.items())
    return Section("samples", "Samples", (intro, *shown_texts))


def _texts(row: VariantRow) -> _Texts:
    record = row.records.get("samples")
    stored = record.side.get("samples") if record else None
    return {
        str(sample.get("name")): {key: str(sample.get(key, "")) for key in ("prompt", "text")}
        for sample in (stored if isinstance(stored, list) else [])
        if isinstance(sample, Mapping)
    }


def _excerpts(name: str, prompt: str, texts: Mapping[str, _Texts], base: _Texts) -> Excerpts:
    """Each variant's text, cut at the first difference from the reference's, if there is one."""
    excerpts = {}
    for variant, own in texts.items():
        if name in own:
            text = own[name]["text"]
            pairs = zip(text, base.get(name, own[name])["text"], strict=False)
            shared = len([*takewhile(lambda pair: pair[0] == pair[1], pairs)])
            excerpts[variant] = text[:shared], text[shared:]
    return Excerpts(name, prompt, excerpts)
