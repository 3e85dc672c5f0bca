"""The table of variants: its columns, which of them fit a terminal, and its footnotes."""

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.table import Table as RichTable
from rich.text import Text

from ewq.record import Verdict
from ewq.report.document import VERDICT, Table, terminal_line
from ewq.report.rows import (
    LM_EVAL,
    MISSING,
    VariantRow,
    decimals_for,
    figure_text,
    gigabytes,
    lm_eval_figures,
)

TASK_LABELS = {
    "perplexity": "PPL",
    "divergence": "KLD",
    "mmlu": "MMLU",
    "mmlu_cloze": "cloze",
    "throughput": "speed",
    "memory": "memory",
}
"""Short names of tasks beside their verdicts, in this order; other tasks stand by their own."""
VERDICT_MARKS = {
    Verdict.FAIL: ("✗", "bold red"),
    Verdict.INCONCLUSIVE: ("?", "yellow"),
    Verdict.IMPROVED: ("▲", "green"),
    Verdict.PASS: ("✓", ""),
}
"""Marks and styles in the order they are shown in; what was not gated has none."""
LEGEND = (
    "±: one standard error; GB: weights; VRAM: peak; Δ: change from fp16 on the same items; KLD: "
    "mean divergence from fp16 in nats per token."
)
_MOST_NAMED = 3
_LAST_TO_GO = (
    "Variant", VERDICT, "KLD", "VRAM", "GB", "Δ PPL", "Tok/s", "MMLU", "Δ points", "Bits/w",
    "PPL",
)  # fmt: skip
"""How headings begin, the most important first: what a narrow terminal keeps."""


def variants_table(rows: Sequence[VariantRow], *, brief: bool = False) -> Table:
    """All columns of which anything was measured; ``brief`` tables count the tasks that passed."""
    mmlu = mmlu_task(rows)
    on_gpu = any(row.metric("memory", "vram_peak_bytes") for row in rows)
    # Of each task of lm-eval its first metric.
    lm_eval = dict(reversed(lm_eval_figures(rows)))

    def cells(row: VariantRow) -> dict[str, str]:
        size, accuracy = row.memory_bytes, figure_text(row.estimate(mmlu, "accuracy", 100), 1)
        guessed = "*" * (row.at_chance(mmlu) and accuracy != MISSING)
        change = row.estimate(mmlu, "accuracy_delta", 100)
        return {
            "Variant": row.variant,
            "VRAM GB" if on_gpu else "GB": MISSING if size is None else gigabytes(size),
            "Bits/w": row.bits,
            "Tok/s": tokens_per_s(row),
            "MMLU %" if mmlu == "mmlu" else "MMLU cloze %": f"{accuracy}{guessed}",
            "Δ points": figure_text(change, 1, signed=True),
            **{
                f"{task.removeprefix(LM_EVAL)} {metric}": figure_text(row.estimate(task, metric))
                for task, metric in reversed(lm_eval.items())
            },
            "PPL": figure_text(row.estimate("perplexity", "perplexity"), 2),
            "Δ PPL %": figure_text(row.perplexity_change(), 2, signed=True),
            "KLD": kld(row),
            VERDICT: verdict_marks(row, brief=brief),
        }

    made = [cells(row) for row in rows]
    headings = made[0] if made else ()
    known = [key for key in headings if any(row[key] not in (MISSING, "") for row in made)]
    shown = [{heading: row[heading] for heading in known} for row in made]
    return Table.of(shown, VERDICT, verdicts=tuple(row.verdict for row in rows))


def mmlu_task(rows: Sequence[VariantRow]) -> str:
    """The form of MMLU to show: letters, or cloze where the letters say nothing."""
    useful = any("mmlu" in row.records and not row.at_chance("mmlu") for row in rows)
    cloze = any("mmlu_cloze" in row.records for row in rows)
    return "mmlu_cloze" if cloze and not useful else "mmlu"


def tokens_per_s(row: VariantRow) -> str:
    """Decode speed at batch size 1 with its standard error; a tilde where clocks are in doubt."""
    found = row.estimate("throughput", "decode_tokens_per_s")
    if found is None:
        return MISSING
    return "~" * bool(row.clock_doubt) + found.text(decimals_for(found.value))


def kld(row: VariantRow) -> str:
    """Mean KLD from FP16 in nats per token."""
    return figure_text(row.estimate("divergence", "kld_mean"))


def verdict_marks(row: VariantRow, *, brief: bool = False) -> str:
    """``✗ KLD ? MMLU ✓ PPL``: what gated tasks say; counted if ``brief`` or many: ``✗ KLD ✓ 4``."""
    labels = [*TASK_LABELS, *row.records]
    tasks = sorted(row.records, key=labels.index)
    groups = []
    for verdict, (mark, _) in VERDICT_MARKS.items():
        own = [TASK_LABELS.get(t, t) for t in tasks if row.records[t].verdict is verdict]
        if own:
            counted = verdict is Verdict.PASS and (brief or len(own) > _MOST_NAMED)
            groups.append(f"{mark} {len(own) if counted else ' '.join(own)}")
    return " ".join(groups)


def terminal_table(rows: Sequence[VariantRow], width: int) -> RichTable:
    """For a terminal; columns that do not fit ``width`` are named below, never cut off."""
    made = variants_table(rows, brief=True)
    columns = dict(zip(made.headings, zip(*made.rows, strict=True), strict=True))
    widths = {head: 2 + max(map(cell_len, (head, *own))) for head, own in columns.items()}
    shown = list(columns)
    while len(shown) > 1 and sum(widths[heading] for heading in shown) > width:
        shown.remove(max(shown, key=_place))
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    words = ("Variant", VERDICT)
    for heading in shown:
        table.add_column(heading, justify="left" if heading in words else "right", no_wrap=True)
    for place, verdict in enumerate(made.verdicts):
        style = VERDICT_MARKS.get(verdict, ("", ""))[1]
        # Text, since names are data: a file may be called "[/]".
        cells = {heading: terminal_line(columns[heading][place]) for heading in shown}
        table.add_row(*(Text(text, style if h in words else "") for h, text in cells.items()))
    if hidden := [heading for heading in columns if heading not in shown]:
        table.caption = f"No room for: {', '.join(hidden)}."
        table.caption_justify = "left"
    return table


def _place(heading: str) -> int:
    known = (n for n, name in enumerate(_LAST_TO_GO) if heading.startswith(name))
    return next(known, len(_LAST_TO_GO))


def footnotes(rows: Sequence[VariantRow]) -> list[str]:
    """What a reader must know to read the table rightly."""
    notes = [LEGEND]
    if VERDICT in variants_table(rows).headings:
        notes.append(
            "✓ passed (or how many), ✗ failed, ? too little evidence, ▲ better than before."
        )
    if any(row.clock_doubt for row in rows):
        notes.append("~ speed unreliable: noisy or throttled clock.")
    if any(row.at_chance(mmlu_task(rows)) for row in rows):
        notes.append("* accuracy no better than guessing.")
    return notes
