"""The table of variants: its columns, which of them fit a terminal, and its footnotes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ewq.record import Verdict
from ewq.report.document import VERDICT
from ewq.report.escaping import terminal_line
from ewq.report.estimate import MISSING, decimals_for, figure_text
from ewq.report.rows import VariantRow, size_unit

if TYPE_CHECKING:
    from rich.table import Table

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
_MOST_NAMED = 3
_GAP = 2
"""Blanks between columns."""


class Column(NamedTuple):
    """A heading and what stands under it."""

    heading: str
    cell: Callable[[VariantRow], str]
    dispensable: int = 0
    """Where a terminal is too narrow for all columns, those of the highest number go first."""


def columns_for(rows: Sequence[VariantRow], *, brief: bool = False) -> tuple[Column, ...]:
    """The columns of which anything was measured or, for verdicts, gated.

    ``brief`` tables count the tasks that passed instead of naming them.
    """
    unit, mmlu = size_unit(rows), mmlu_task(rows)
    on_gpu = any(row.metric("memory", "vram_peak_bytes") for row in rows)

    def memory(row: VariantRow) -> str:
        return MISSING if row.memory_bytes is None else unit.text(row.memory_bytes)

    def bits(row: VariantRow) -> str:
        found = row.estimate("memory", "bits_per_weight")
        return MISSING if found is None else found.text(2, error=False)

    def accuracy(row: VariantRow) -> str:
        text = figure_text(row.estimate(mmlu, "accuracy", 100), 1)
        return text + "*" * (row.at_chance(mmlu) and text != MISSING)

    def points(row: VariantRow) -> str:
        return figure_text(row.estimate(mmlu, "accuracy_delta", 100), 1, signed=True)

    columns = (
        Column("Variant", lambda row: row.variant),
        Column(f"VRAM {unit.name}" if on_gpu else unit.name, memory, 3),
        Column("Bits/w", bits, 8),
        Column("Tok/s", tokens_per_s, 5),
        Column("MMLU %" if mmlu == "mmlu" else "MMLU cloze %", accuracy, 6),
        Column("Δ points", points, 7),
        Column("PPL", lambda row: figure_text(row.estimate("perplexity", "perplexity"), 2), 9),
        Column("Δ PPL %", lambda row: figure_text(row.perplexity_change(), 2, signed=True), 4),
        Column("KLD", kld, 2),
        Column(VERDICT, lambda row: verdict_marks(row, brief=brief), 1),
    )
    return tuple(c for c in columns if any(c.cell(row) not in (MISSING, "") for row in rows))


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
    found = row.estimate("divergence", "kld_mean")
    return MISSING if found is None else found.rounded()


def verdict_marks(row: VariantRow, *, brief: bool = False) -> str:
    """``✗ KLD ? MMLU ✓ PPL``: what each gated task says; empty where nothing was gated.

    Where it must be ``brief``, or more than three passed, passes are counted: ``✗ KLD ✓ 4``.
    """
    labels = [*TASK_LABELS, *row.records]
    tasks = sorted(row.records, key=labels.index)
    groups = []
    for verdict, (mark, _) in VERDICT_MARKS.items():
        own = [TASK_LABELS.get(t, t) for t in tasks if row.records[t].verdict is verdict]
        if own:
            counted = verdict is Verdict.PASS and (brief or len(own) > _MOST_NAMED)
            groups.append(f"{mark} {len(own) if counted else ' '.join(own)}")
    return " ".join(groups)


def terminal_table(rows: Sequence[VariantRow], width: int) -> Table:
    """The table for a terminal ``width`` columns wide.

    Columns that do not fit are left out, never cut off: half a figure is a wrong figure. The line
    below the table names them.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    columns = columns_for(rows, brief=True)
    shown = _fitting(columns, rows, width)
    words = [column.heading in ("Variant", VERDICT) for column in shown]
    for column, word in zip(shown, words, strict=True):
        table.add_column(column.heading, justify="left" if word else "right", no_wrap=True)
    for row in rows:
        _, style = VERDICT_MARKS.get(row.verdict, ("", ""))
        # Text, since names are data: a file may be called "[/]".
        cells = zip((terminal_line(column.cell(row)) for column in shown), words, strict=True)
        table.add_row(*(Text(text, style if word else "") for text, word in cells))
    hidden = [column.heading for column in columns if column not in shown]
    if hidden:
        table.caption = f"No room for: {', '.join(hidden)}."
        table.caption_justify = "left"
    return table


def _fitting(columns: Sequence[Column], rows: Sequence[VariantRow], width: int) -> list[Column]:
    from rich.cells import cell_len

    def taken(column: Column) -> int:
        return _GAP + max(cell_len(text) for text in (column.heading, *map(column.cell, rows)))

    shown = list(columns)
    while sum(map(taken, shown)) > width:
        least = max(shown, key=lambda column: column.dispensable)
        if least.dispensable == 0:
            break
        shown.remove(least)
    return shown


def footnotes(rows: Sequence[VariantRow]) -> list[str]:
    """What a reader must know to read the table rightly."""
    unit, shown = size_unit(rows).name, {column.heading for column in columns_for(rows)}
    parts = {
        "": "±: one standard error",
        unit: f"{unit}: weights",
        f"VRAM {unit}": "VRAM: peak",
        "Δ": "Δ: change from fp16 on the same items",
        "KLD": "KLD: mean divergence from fp16 in nats per token",
    }
    shown |= {""} | {heading[0] for heading in shown}
    notes = ["; ".join(text for heading, text in parts.items() if heading in shown) + "."]
    if VERDICT in shown:
        notes.append(
            "✓ passed (or how many), ✗ failed, ? too little evidence, ▲ better than before."
        )
    if any(row.clock_doubt for row in rows):
        notes.append("~ speed unreliable: noisy or throttled clock.")
    if any(row.at_chance(mmlu_task(rows)) for row in rows):
        notes.append("* accuracy no better than guessing.")
    return notes
