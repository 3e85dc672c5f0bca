"""The variants' table: which columns, for a terminal of any width and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ewq.report import rows as cells
from ewq.report.rows import VariantRow

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Column:
    """A heading and what stands under it."""

    heading: str
    cell: Callable[[VariantRow], str]
    wide_only: bool = False
    """Left out below :data:`WIDE` columns."""


WIDE = 120
_WORDS = ("Variant", "Verdict")


def columns_for(rows: Sequence[VariantRow]) -> tuple[Column, ...]:
    """The table's columns; the memory column says which memory it shows."""
    on_gpu = _on_gpu(rows)
    return (
        Column("Variant", lambda row: row.variant),
        Column("VRAM GB" if on_gpu else "GB", cells.memory_gb),
        Column("Bits/w", cells.bits_per_weight),
        Column("Tok/s", cells.tokens_per_s),
        Column("MMLU %", cells.mmlu_percent),
        Column("Δ points", cells.mmlu_change_points, wide_only=True),
        Column("PPL", cells.perplexity),
        Column("Δ PPL %", cells.perplexity_change_percent),
        Column("KLD mnat", cells.kld_millinats, wide_only=True),
        Column("Verdict", lambda row: row.verdict.value, wide_only=True),
    )


def _on_gpu(rows: Sequence[VariantRow]) -> bool:
    return any(row.metric("memory", "vram_peak_bytes") for row in rows)


def terminal_table(rows: Sequence[VariantRow], width: int) -> Table:
    """The table for a terminal ``width`` columns wide."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown = [column for column in columns_for(rows) if width >= WIDE or not column.wide_only]
    for column in shown:
        justify = "left" if column.heading in _WORDS else "right"
        table.add_column(column.heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(column.cell(row) for column in shown))
    return table


def markdown_table(rows: Sequence[VariantRow]) -> str:
    """The full table in Markdown."""
    columns = columns_for(rows)
    lines = [
        "| " + " | ".join(column.heading for column in columns) + " |",
        "| :-- |" + " --: |" * (len(columns) - 2) + " :-- |",
    ]
    lines += ["| " + " | ".join(c.cell(row) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def footnotes(rows: Sequence[VariantRow]) -> list[str]:
    """What a reader must know to read the table rightly."""
    memory = "VRAM GB: the peak." if _on_gpu(rows) else "GB: the weights."
    notes = [f"{memory} ± is one standard error; Δ is paired with fp16 on the same items."]
    if any(row.at_chance for row in rows):
        notes.append("* MMLU at chance level: this model's letter score says nothing.")
    return notes
